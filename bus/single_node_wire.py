"""
A connection to the one node of a Redis Cluster that serves the slot of a key.

All commands of a lane are about one slot, so the lane needs one connection and pays
what it pays on a single server.
"""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from everbus.bus.cluster_nodes import MAX_HOPS, ClusterNodes, redirect_address
from everbus.bus.errors import Unavailable
from everbus.bus.known_nodes import ASK
from everbus.bus.server_errors import refusal
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Command, Wire, WireFailed


class SingleNodeWire(Wire):
    """
    A connection to the node of *key*; it inherits `call` and `group_by_slot` from Wire.

    Nothing is sent twice: a redirection fails the exchange, like a lost connection.
    So commands without a key behind a commit (WAIT, TIME) always reach the node of
    that commit.
    """

    def __init__(self, url: str, key: str, *, name: str = "everbus") -> None:
        self._nodes = ClusterNodes(url, name)
        self._key = key
        self._address = ""

    @property
    def connected(self) -> bool:
        """
        Whether the last exchange left a usable connection.
        """
        return bool(self._address) and self._nodes.is_connected(self._address)

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        Send *commands* with one write; return the replies as `Wire.exchange` does.

        Raises:
            WireFailed: the connection broke, or the node no longer serves the whole
                slot.
        """
        address = self._address or await self._find(timeout_s)
        wire = self._nodes.wire(address)
        try:
            replies = await wire.exchange(commands, timeout_s=timeout_s)
        except BaseException:
            # Another node may serve the slot at the next exchange.
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
        Address of the node that serves the slot.

        Raises:
            WireFailed: no known node answers, or the serving node does not.
            Unavailable: the cluster does not serve the slot now.
        """
        failed: Unavailable = WireFailed(f"no node admits to serve {self._key}")
        for address in self._nodes.seeds:
            try:
                return await self._follow(address, timeout_s)
            except Unavailable as error:
                # Also a node that reports the cluster down: it alone may be cut off.
                failed = error
                await self._nodes.drop(address)
                await self._nodes.close()
        raise failed

    async def _follow(self, address: str, timeout_s: float) -> str:
        for _ in range(MAX_HOPS):
            wire = self._nodes.wire(address)
            reply, answer = await wire.exchange(
                [("EXISTS", self._key), ASK], timeout_s=timeout_s
            )
            self._nodes.note_answer(address, answer)
            if isinstance(reply, MovedError):
                await self._nodes.close()
                address = redirect_address(reply, address)
            elif isinstance(reply, ResponseError) and not isinstance(reply, AskError):
                raise refusal(reply)
            else:
                return address
        raise WireFailed(f"no node admits to serve {self._key}")
