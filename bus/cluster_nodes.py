"""
The known nodes of a Redis Cluster.

The node of a slot is learnt from redirections (MOVED), not asked for beforehand: a MAD
needs no right to ask, and a slot that moves is one more redirection.
"""

from typing import Any

from redis.exceptions import AskError, MovedError

from everbus.bus.cluster_routing import slot_of
from everbus.bus.known_nodes import ASK, known_nodes
from everbus.bus.wire import Argument, Wire, WireFailed

# Most redirections of one command.
MAX_HOPS = 4


class ClusterNodes:
    """
    The known slots of one cluster, and one wire per node in use.
    """

    def __init__(self, url: str, name: str) -> None:
        self._known = known_nodes(url)
        self._name = name
        self._wires: dict[str, Wire] = {}
        self._slots: dict[int, str] = {}

    @property
    def connected(self) -> bool:
        """
        Whether every node in use left a usable connection.
        """
        wires = self._wires.values()

        return bool(wires) and all(wire.connected for wire in wires)

    def is_connected(self, address: str) -> bool:
        """
        Whether the connection to the node at *address* is usable.
        """
        wire = self._wires.get(address)

        return wire is not None and wire.connected

    @property
    def seeds(self) -> list[str]:
        """
        The known addresses, shuffled; nodes without an answer come last.
        """
        return self._known.candidates()

    def address_for(self, key: Argument | None) -> str:
        """
        Address for a command about *key*.

        For an unknown slot any node in use, which redirects if needed.
        """
        known = None if key is None else self._slots.get(slot_of(key))

        return known or next(iter(self._wires), "") or self.seeds[0]

    def note_slot(self, key: Argument | None, address: str) -> None:
        """
        Note that the node at *address* has served the slot of *key*.
        """
        if key is not None:
            self._slots[slot_of(key)] = address

    def serves(self, slot: int, address: str) -> bool:
        """
        Whether the node at *address* is known to serve *slot*.
        """
        return self._slots.get(slot) == address

    def wire(self, address: str) -> Wire:
        """
        The wire to the node at *address*.
        """
        wire = self._wires.get(address)
        if wire is None:
            url = self._known.url(address)
            wire = self._wires[address] = Wire(url, name=self._name)
        return wire

    async def connect_any(self, timeout_s: float) -> None:
        """
        Connect to one of the known nodes, unless some node is in use already.

        Raises:
            WireFailed: none of them answers.
            Unauthenticated, Unavailable: one of them refuses the connection.
        """
        if self._wires:
            return
        seeds = self.seeds
        failed = WireFailed("the URL names no node")
        for address in seeds:
            wire, share_s = self.wire(address), timeout_s / (1 + len(seeds))
            try:
                batch = [("PING",), ASK]
                [_, answer] = await wire.exchange(batch, timeout_s=share_s)
            except WireFailed as error:
                await self.drop(address)
                failed = error
            else:
                self._known.note_answer(address, answer)
                return
        raise failed

    def learn(self, redirect: AskError, asked: str) -> str:
        """
        Learn the slot from a redirection by the node at *asked*; return its address.
        """
        address = redirect_address(redirect, asked)
        if isinstance(redirect, MovedError):
            self._slots[redirect.slot_id] = address
            self._known.note(address)

        return address

    def note_answer(self, address: str, answer: Any) -> None:
        """
        Keep the nodes in the answer of the node at *address*.
        """
        self._known.note_answer(address, answer)

    async def drop(self, address: str) -> None:
        """
        Close and forget a node without an answer; its slots may be elsewhere by now.
        """
        self._known.note_away(address)
        wire = self._wires.pop(address, None)
        self._slots = {s: a for s, a in self._slots.items() if a != address}
        if wire is not None:
            await wire.close()

    async def forget_ended(self) -> None:
        """
        Forget the connections that their nodes have closed; known slots are kept.
        """
        ended = [a for a, wire in self._wires.items() if not wire.connected]
        for address in ended:
            await self._wires.pop(address).close()

    async def close(self) -> None:
        """
        Close every connection; known slots are kept.
        """
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            await wire.close()


def redirect_address(redirect: AskError, asked: str) -> str:
    """
    Address in a redirection by the node at *asked*; without a host, the same host.
    """
    host = redirect.host if redirect.host not in ("", "?") else asked.rpartition(":")[0]

    return f"{host}:{redirect.port}"
