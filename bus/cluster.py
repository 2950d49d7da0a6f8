"""
A Redis Cluster behind the interface of one connection.

Each command of a batch goes to the node that serves its key; all nodes are written to
at once, and the replies come back in the order of the commands. A command that is
told to go elsewhere had no effect, hence it is sent once more; nothing else ever is.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from bus.nodes import MAX_HOPS, Nodes
from bus.pinned import PinnedWire
from bus.routing import LOCAL, by_slot, is_cluster, key_of
from bus.wire import EXCHANGE_TIMEOUT_S, Command, Wire, WireFailed


def wire_to(url: str, *, name: str = "everbus", at: str = "") -> Wire:
    """
    The connection to the bus at *url*: a server, or a Redis Cluster by its scheme.

    Args:
        at: a key whose slot is all that is wanted; on a cluster everything then goes
            to the one node that serves it, also what is about no key.
    """
    if not is_cluster(url):
        return Wire(url, name=name)
    return PinnedWire(url, at, name=name) if at else ClusterWire(url, name=name)


class Unreached(ResponseError):
    """
    Stands for the reply of a node that gave none: nobody knows what became of it.
    """

    def __init__(self, failed: WireFailed) -> None:
        super().__init__(f"UNREACHED {failed.message}")
        self.failed = failed


class ClusterWire(Wire):
    """
    A connection to each node that is needed; of Wire it keeps `call`.
    """

    def __init__(self, url: str, *, name: str = "everbus") -> None:
        self._nodes = Nodes(url, name)
        self._scripts: dict[bytes, Command] = {}
        # The nodes that have all of them, as long as their connection lasts.
        self._loaded: set[str] = set()

    @property
    def connected(self) -> bool:
        """
        As of Wire: whether the last exchange left usable connections.
        """
        return self._nodes.connected

    def together(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """
        As of Wire: one group a slot.
        """
        return by_slot(keys)

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        The replies to *commands*, in order, after one write to each node concerned.

        Commands about one slot reach its node in their order. Where some nodes answer
        and others do not, the replies of those others are `Unreached`.

        Raises:
            WireFailed: no node answered; as of Wire.
        """
        until = asyncio.get_running_loop().time() + timeout_s
        await self._nodes.enter(timeout_s)
        replies = [self._own_reply(command) for command in commands]
        left = [i for i, reply in enumerate(replies) if reply is None]
        for _ in range(MAX_HOPS):
            left = await self._send(commands, left, replies, until)
            if not left:
                break
        for i, reply in enumerate(replies):
            if type(reply) is AskError:
                replies[i] = await self._ask(commands[i], reply, until)
        unreached = [one for one in replies if isinstance(one, Unreached)]
        if unreached and len(unreached) == len(replies):
            raise unreached[0].failed
        return replies

    async def close(self) -> None:
        """
        Close the connections, if there are any; never raises.
        """
        self._loaded.clear()
        await self._nodes.close()

    def _own_reply(self, command: Command) -> Any:
        """
        The reply to a command that is not sent now; None to all others.
        """
        if command[0] == "SCRIPT" and command[1] == "LOAD":
            return self._load(command)
        if command[0] in LOCAL or command[0] == "SCRIPT":
            return ResponseError(
                f"ERR each node of a Redis Cluster answers {command[0]} for itself; "
                "ask one by its own URL"
            )
        return None

    def _load(self, command: Command) -> bytes:
        """
        Have a script loaded by every node, before anything else that it is sent.
        """
        text = command[2]
        whole = text if isinstance(text, bytes) else str(text).encode()
        sha = hashlib.sha1(whole, usedforsecurity=False).hexdigest().encode()
        self._scripts[sha] = command
        self._loaded.clear()

        return sha

    async def _send(
        self,
        commands: Sequence[Command],
        which: Iterable[int],
        replies: list[Any],
        until: float,
    ) -> list[int]:
        """
        Put the replies to some of *commands* in their places; which of them have to go
        elsewhere, in their order.
        """
        routed: dict[str, list[int]] = {}
        for i in which:
            routed.setdefault(self._nodes.of(key_of(commands[i])), []).append(i)
        asked = {a: [commands[i] for i in some] for a, some in routed.items()}
        moved: list[int] = []
        for address, answers in (await self._answers(asked, until)).items():
            for i, reply in zip(routed[address], answers, strict=True):
                replies[i] = reply
                if isinstance(reply, MovedError):
                    self._nodes.note(reply, address)
                    moved.append(i)
                elif isinstance(reply, ClusterDownError):
                    # Another one may know better; this one may be cut off alone.
                    await self._nodes.forget(address)
        return sorted(moved)

    async def _answers(
        self, asked: Mapping[str, Sequence[Command]], until: float
    ) -> dict[str, list[Any]]:
        """
        Address → the replies of that node.
        """
        if len(asked) == 1:
            [(address, commands)] = asked.items()
            return {address: await self._at(address, commands, until)}
        answers = await asyncio.gather(
            *(self._at(address, some, until) for address, some in asked.items()),
            # A connection must not be left to itself while others go on.
            return_exceptions=True,
        )
        found: dict[str, list[Any]] = {}
        for address, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            found[address] = answer
        return found

    async def _at(
        self, address: str, commands: Sequence[Command], until: float
    ) -> list[Any]:
        """
        The replies of one node, which has our scripts by then.
        """
        wire = self._nodes.wire(address)
        known = wire.connected and address in self._loaded
        loads = () if known else tuple(self._scripts.values())
        left_s = max(0.0, until - asyncio.get_running_loop().time())
        try:
            replies = await wire.exchange([*loads, *commands], timeout_s=left_s)
        except WireFailed as error:
            self._loaded.discard(address)
            await self._nodes.forget(address)
            return [Unreached(error)] * len(commands)
        self._loaded.add(address)

        return replies[len(loads) :]

    async def _ask(self, command: Command, told: AskError, until: float) -> Any:
        """
        The reply to a command about a key that has gone ahead of its slot.
        """
        address = self._nodes.note(told, self._nodes.of(key_of(command)))
        _, reply = await self._at(address, [("ASKING",), command], until)

        return reply
