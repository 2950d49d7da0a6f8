"""
Which replicas have died, by their closed sockets: a kill is noticed at once.

Each replica listens to a channel of its own, and the others count its listeners. It is
a hint: a replica that only lost its connection costs a hand-over, since every commit is
fenced. A hung replica keeps its sockets; the TTL of its lanes finds it.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from everbus.bus.errors import EverbusError
from everbus.bus.known_nodes import server_urls
from everbus.bus.subscription import Subscription
from everbus.bus.wire import Wire

LOOK_EVERY_S = 0.15
LOOK_TIMEOUT_S = 1.0
# Looks in a row without a listener.
LOOKS = 2
# Looks in which a replica may come back that was cut when we were: 5 s.
RETURN_LOOKS = round(5 / LOOK_EVERY_S)


def alive_channel(name: str) -> str:
    """
    The channel that the replica *name* listens to.
    """
    return f"eb:alive:{name}"


class ReplicaLiveness:
    """
    Watches the replicas that *living* gives; *on_death* is called when one has died.

    Attributes:
        dead: names of replicas without a listener. Only a replica counts that had one
            before; a restart of the bus cuts all of them for a moment.
    """

    def __init__(
        self,
        redis_url: str,
        name: str,
        living: Callable[[], Iterable[str]],
        on_death: Callable[[], None],
    ) -> None:
        self.dead: set[str] = set()
        self._url = redis_url
        self._name = name
        self._living = living
        self._on_death = on_death
        self._missed: dict[str, int] = {}
        self._wires: dict[str, Wire] = {}

    async def run(self) -> None:
        """
        Listen and look until cancelled.
        """
        own = Subscription(
            self._url,
            alive_channel(self._name),
            on_message=lambda _: None,
            on_subscribed=self._begin_anew,
        )
        listening = asyncio.create_task(own.run())
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                self._note(await self._listeners())
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            for wire in self._wires.values():
                await wire.close()

    def _begin_anew(self) -> None:
        """
        What cut us may have cut the others: they have time to come back. Who does not
        is dead all the same, also if the node with the list of replicas is away.
        """
        self._missed = dict.fromkeys(self._missed, -RETURN_LOOKS)

    def _note(self, listeners: dict[str, int]) -> None:
        if not listeners.get(self._name):
            return  # without a listener of our own, the others' prove nothing
        for name, count in listeners.items():
            if count:
                self._missed[name] = 0
                self.dead.discard(name)
            elif name in self._missed:
                self._missed[name] += 1
                if self._missed[name] == LOOKS:
                    self.dead.add(name)
                    self._on_death()

    async def _listeners(self) -> dict[str, int]:
        """
        Replica → its listeners on all nodes that answer.
        """
        names = [*dict.fromkeys((self._name, *self._living()))]
        found = dict.fromkeys(names, 0)
        command = ("PUBSUB", "NUMSUB", *map(alive_channel, names))
        for url in server_urls(self._url):
            wire = self._wires.setdefault(url, Wire(url, name="everbus-alive"))
            try:
                counts: list[Any] = await wire.call(*command, timeout_s=LOOK_TIMEOUT_S)
            except EverbusError:
                continue  # its listeners have reconnected elsewhere, or will
            for name, count in zip(names, counts[1::2], strict=True):
                found[name] += count
        return found
