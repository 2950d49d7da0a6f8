"""
A Redis Cluster behind the interface of one connection.

Each command of a batch goes to the node that serves its key; all nodes are written to
at once, and the replies come back in the order of the commands. A redirected command
had no effect, so it is sent again; no other command ever is.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from everbus.bus.cluster_nodes import MAX_HOPS, ClusterNodes
from everbus.bus.cluster_routing import LOCAL, by_slot, is_cluster, key_of
from everbus.bus.single_node_wire import SingleNodeWire
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Command, Wire, WireFailed


def wire_to(
    url: str, *, name: str = "everbus", at: str = "", moves_fail: bool = False
) -> Wire:
    """
    The connection to the bus at *url*: a server, or a Redis Cluster by its scheme.

    Args:
        at: a key; on a cluster all commands then go to the one node that serves its
            slot, also commands without a key.
        moves_fail: see `ClusterWire`.
    """
    if not is_cluster(url):
        return Wire(url, name=name)
    if at:
        return SingleNodeWire(url, at, name=name)
    return ClusterWire(url, name=name, moves_fail=moves_fail)


class Unreached(ResponseError):
    """
    Stands for the reply of a node that gave none; the effect of the command is unknown.
    """

    def __init__(self, failed: WireFailed) -> None:
        super().__init__(f"UNREACHED {failed.message}")
        self.failed = failed


# A redirection that led nowhere, or a part of the cluster that is down.
_OF_ONE_NODE = (Unreached, AskError, ClusterDownError)


def is_of_one_node(reply: Any) -> bool:
    """
    Whether an error reply says that one node serves nothing now; others may serve.
    """
    return isinstance(reply, _OF_ONE_NODE)


class ClusterWire(Wire):
    """
    One connection per node, opened when needed; it inherits `call` from Wire.

    Args:
        moves_fail: a command whose slot has left its known node gets `Unreached`, is
            not sent on, and `connected` is False. For who has to say something else
            first on the new node, which may have lost what the old one had.
    """

    def __init__(
        self, url: str, *, name: str = "everbus", moves_fail: bool = False
    ) -> None:
        self._nodes = ClusterNodes(url, name)
        self._moves_fail = moves_fail
        # Whether a node was dropped, or lost a slot, in the last exchange.
        self._disturbed = False
        self._scripts: dict[bytes, Command] = {}
        # The nodes that have all of them, as long as their connection lasts.
        self._loaded: set[str] = set()

    @property
    def connected(self) -> bool:
        """
        Whether the last exchange left usable connections.
        """
        return not self._disturbed and self._nodes.connected

    def group_by_slot(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """
        Group *keys* by slot.
        """
        return by_slot(keys)

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        Send *commands* with one write per node; return the replies in their order.

        Commands about one slot reach its node in their order. When only some nodes
        answer, the replies of the others are `Unreached`.

        Raises:
            WireFailed: no node answered; see `Wire.exchange`.
        """
        until = asyncio.get_running_loop().time() + timeout_s
        self._disturbed = False
        await self._nodes.forget_ended()
        await self._nodes.connect_any(timeout_s)
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
        Reply to a command that is answered here, without a node; None for all others.
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
        Register a script, which every node loads before its next commands; return its
        SHA.
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
        Send the commands at the indexes *which* and fill in their *replies*.

        Returns the indexes of redirected commands, ascending.
        """
        routed: dict[str, list[int]] = {}
        for i in which:
            routed.setdefault(self._nodes.address_for(key_of(commands[i])), []).append(
                i
            )
        asked = {a: [commands[i] for i in some] for a, some in routed.items()}
        moved: list[int] = []
        for address, answers in (await self._answers(asked, until)).items():
            lost = self._lost_slots(answers, address)
            for i, reply in zip(routed[address], answers, strict=True):
                replies[i] = reply
                if isinstance(reply, MovedError):
                    self._nodes.learn(reply, address)
                    if reply.slot_id in lost:
                        replies[i] = Unreached(WireFailed(f"no answer: {reply}"))
                    else:
                        moved.append(i)
                elif isinstance(reply, ClusterDownError):
                    # This node alone may be cut off; another one may know better.
                    await self._drop(address)
                elif self._moves_fail and not isinstance(reply, ResponseError):
                    self._nodes.note_slot(key_of(commands[i]), address)
        return sorted(moved)

    def _lost_slots(self, answers: Sequence[Any], address: str) -> set[int]:
        """
        The slots that have left the node at *address*, where that fails a command.
        """
        if not self._moves_fail:
            return set()
        moved = {one.slot_id for one in answers if isinstance(one, MovedError)}
        lost = {slot for slot in moved if self._nodes.serves(slot, address)}
        self._disturbed = self._disturbed or bool(lost)
        return lost

    async def _drop(self, address: str) -> None:
        self._disturbed = True
        await self._nodes.drop(address)

    async def _answers(
        self, asked: Mapping[str, Sequence[Command]], until: float
    ) -> dict[str, list[Any]]:
        """
        Replies by address of the node.
        """
        if len(asked) == 1:
            [(address, commands)] = asked.items()
            return {address: await self._exchange_at(address, commands, until)}
        answers = await asyncio.gather(
            *(
                self._exchange_at(address, some, until)
                for address, some in asked.items()
            ),
            # No exchange may be abandoned while the others go on.
            return_exceptions=True,
        )
        found: dict[str, list[Any]] = {}
        for address, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            found[address] = answer
        return found

    async def _exchange_at(
        self, address: str, commands: Sequence[Command], until: float
    ) -> list[Any]:
        """
        Replies of one node; missing scripts are loaded in the same write.
        """
        wire = self._nodes.wire(address)
        known = wire.connected and address in self._loaded
        loads = () if known else tuple(self._scripts.values())
        left_s = max(0.0, until - asyncio.get_running_loop().time())
        try:
            replies = await wire.exchange([*loads, *commands], timeout_s=left_s)
        except WireFailed as error:
            self._loaded.discard(address)
            await self._drop(address)
            return [Unreached(error)] * len(commands)
        self._loaded.add(address)

        return replies[len(loads) :]

    async def _ask(self, command: Command, redirect: AskError, until: float) -> Any:
        """
        Reply to a command about a key that has moved before its slot.
        """
        address = self._nodes.learn(redirect, self._nodes.address_for(key_of(command)))
        _, reply = await self._exchange_at(address, [("ASKING",), command], until)

        return reply
