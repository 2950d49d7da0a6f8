"""
The one node of a Redis Cluster that serves the slot of a key.

All that a lane says is about one slot, so it needs one connection, as to a server
alone, and what costs there is what it costs here.
"""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from bus.errors import Unavailable
from bus.nodes import MAX_HOPS, Nodes, told_address
from bus.wire import EXCHANGE_TIMEOUT_S, Command, Wire, WireFailed, refusal


class PinnedWire(Wire):
    """
    A connection to the node of *key*; of Wire it keeps `call` and `together`.

    Nothing is sent twice here: where the node says that the slot is elsewhere, or on
    its way, the exchange has failed, as if by a lost connection. So what follows a
    commit and names no key (WAIT, TIME) is always about the node of that commit.
    """

    def __init__(self, url: str, key: str, *, name: str = "everbus") -> None:
        self._nodes = Nodes(url, name)
        self._key = key
        self._address = ""

    @property
    def connected(self) -> bool:
        """
        As of Wire: whether the last exchange left a usable connection.
        """
        return bool(self._address) and self._nodes.connected

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        The replies to *commands*, in order, after one write; as of Wire.

        Raises:
            WireFailed: as of Wire; or the slot is not wholly there any more.
        """
        address = self._address or await self._find(timeout_s)
        wire = self._nodes.wire(address)
        try:
            replies = await wire.exchange(commands, timeout_s=timeout_s)
        except BaseException:
            # Another node may serve the slot when it is asked for again.
            self._address = ""
            raise
        self._address = address
        for reply in replies:
            if isinstance(reply, AskError | ClusterDownError):
                await self.close()
                raise WireFailed(f"no node serves {self._key} wholly: {reply}")
        return replies

    async def close(self) -> None:
        """
        Close the connection, if there is one; never raises.
        """
        self._address = ""
        await self._nodes.close()

    async def _find(self, timeout_s: float) -> str:
        """
        The address of the node that serves the slot.

        Raises:
            WireFailed: no node that we know of answers, or not the one that should.
            Unavailable: the cluster does not serve the slot now.
        """
        failed: Unavailable = WireFailed(f"no node admits to serve {self._key}")
        for address in self._nodes.named:
            try:
                return await self._follow(address, timeout_s)
            except Unavailable as error:
                # Also one that says so of the cluster: it may be cut off alone.
                failed = error
                await self._nodes.forget(address)
                await self._nodes.close()
        raise failed

    async def _follow(self, address: str, timeout_s: float) -> str:
        for _ in range(MAX_HOPS):
            wire = self._nodes.wire(address)
            [reply] = await wire.exchange([("EXISTS", self._key)], timeout_s=timeout_s)
            if isinstance(reply, MovedError):
                await self._nodes.close()
                address = told_address(reply, address)
            elif isinstance(reply, ResponseError) and not isinstance(reply, AskError):
                raise refusal(reply)
            else:
                return address
        raise WireFailed(f"no node admits to serve {self._key}")
