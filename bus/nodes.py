"""
The nodes of a Redis Cluster, as far as they were heard of.

Which node serves a slot is learnt from what nodes say (MOVED), not asked for
beforehand: so a MAD needs no right to ask, and a slot that moves is one more answer of
that kind.
"""

import random

from redis.exceptions import AskError, MovedError

from bus.routing import places_in, slot_of
from bus.wire import Argument, Wire, WireFailed

# How often one command may be told to go elsewhere.
MAX_HOPS = 4


class Nodes:
    """
    What is known of one cluster, and a wire to each node that is talked with.
    """

    def __init__(self, url: str, name: str) -> None:
        self._places = places_in(url)
        self._name = name
        self._wires: dict[str, Wire] = {}
        self._slots: dict[int, str] = {}
        # Those that gave no answer the last time.
        self._away: set[str] = set()

    @property
    def connected(self) -> bool:
        """
        Whether every node that is talked with left a usable connection.
        """
        wires = self._wires.values()

        return bool(wires) and all(wire.connected for wire in wires)

    @property
    def named(self) -> list[str]:
        """
        The addresses in the URL, in any order, else all would begin with one node;
        but those that gave no answer come last.
        """
        addresses = self._places.addresses
        mixed = random.sample(addresses, len(addresses))

        return sorted(mixed, key=self._away.__contains__)

    def of(self, key: Argument | None) -> str:
        """
        The address to send a command about *key* to.

        Where nobody told yet, of a node that is talked with: it will tell.
        """
        known = None if key is None else self._slots.get(slot_of(key))

        return known or next(iter(self._wires), "") or self.named[0]

    def wire(self, address: str) -> Wire:
        """
        The wire to the node at *address*.
        """
        wire = self._wires.get(address)
        if wire is None:
            url = self._places.url(address)
            wire = self._wires[address] = Wire(url, name=self._name)
        return wire

    async def enter(self, timeout_s: float) -> None:
        """
        Talk with one of the nodes that the URL names, unless we talk with some.

        Raises:
            WireFailed: none of them answers.
            Unauthenticated, Unavailable: one of them turns us away.
        """
        if self._wires:
            return
        named = self.named
        failed = WireFailed("the URL names no node")
        for address in named:
            wire, share_s = self.wire(address), timeout_s / (1 + len(named))
            try:
                await wire.exchange([("PING",)], timeout_s=share_s)
            except WireFailed as error:
                await self.forget(address)
                failed = error
            else:
                self._away.discard(address)
                return
        raise failed

    def note(self, told: AskError, asked: str) -> str:
        """
        Note what the node at *asked* told of a slot; the address that it named.
        """
        address = told_address(told, asked)
        if isinstance(told, MovedError):
            self._slots[told.slot_id] = address

        return address

    async def forget(self, address: str) -> None:
        """
        Let go of a node that gave no answer: its slots may be elsewhere by now.
        """
        self._away.add(address)
        wire = self._wires.pop(address, None)
        self._slots = {s: a for s, a in self._slots.items() if a != address}
        if wire is not None:
            await wire.close()

    async def close(self) -> None:
        """
        Close every connection; what is known stays known.
        """
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            await wire.close()


def told_address(told: AskError, asked: str) -> str:
    """
    The address in a redirection by the node at *asked*; no host means: the same one.
    """
    host = told.host if told.host not in ("", "?") else asked.rpartition(":")[0]

    return f"{host}:{told.port}"
