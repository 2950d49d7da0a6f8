"""
Which MAD instances have died, by their closed sockets: a kill is noticed in seconds.

The SDK of each instance listens to its wake-up channel, and the server counts the
listeners. Who had one and has none for the grace is taken for dead. An instance that
was never heard to listen (another client, without a subscription) is judged by its
lease only, and so is a hung one, which keeps its sockets.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from everbus.bus import keys
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.known_nodes import server_urls
from everbus.bus.wire import Wire
from everbus.gateway.store import lease_records

LOOK_EVERY_S = 1.0
LOOK_TIMEOUT_S = 1.0
# Instances of one call, about; other clients of the server wait for it.
PAGE = 500
PAGE_PAUSE_S = 0.02
# A longer pause between two looks (a machine asleep) may have cut everybody.
MAX_PAUSE_S = 3.0
# How long a subscriber may need to notice that its node is away.
RETURN_S = 10.0
LISTENING = float("inf")


class MadLiveness:
    """
    Watches the channels of the living instances; *on_death* is called for the dead.

    Args:
        grace_s: how long nobody may listen to the channel of a living instance.
    """

    def __init__(
        self, redis_url: str, grace_s: float, on_death: Callable[[], None]
    ) -> None:
        self._url = redis_url
        self._grace_s = grace_s
        self._on_death = on_death
        # Instance → since when it has no listener, of those that had one.
        self._since: dict[str, float] = {}
        self._dead: dict[str, int] = {}
        self._not_before = 0.0
        self._away: set[str] = set()
        self._looked_at = time.monotonic()
        self._wires: dict[str, Wire] = {}

    def __bool__(self) -> bool:
        """
        Whether an instance has died since the last `take`.
        """
        return bool(self._dead)

    def take(self) -> dict[str, int]:
        """
        `<mad>:<instance>` of the dead since the last call → ms without a listener.
        """
        dead, self._dead = self._dead, {}

        return dead

    async def run(self) -> None:
        """
        Look until cancelled.
        """
        records = wire_to(self._url, name="everbus-mads-alive")
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                try:
                    await self._look(records)
                except EverbusError:
                    # The server is away: it has cut everybody, perhaps.
                    self._wait_for_return()
        finally:
            for wire in (records, *self._wires.values()):
                await wire.close()

    async def _look(self, records: Wire) -> None:
        now = time.monotonic()
        if now - self._looked_at > MAX_PAUSE_S:
            self._not_before = max(self._not_before, now)
        before, self._since = self._since, {}
        cursor = b"0"
        try:
            while True:
                cursor, fields = await records.call(
                    *("ZSCAN", lease_records.DEADLINES, cursor, "COUNT", PAGE)
                )
                members = [member.decode() for member in fields[::2]]
                if members:
                    self._note(await self._listeners(members), before)
                if cursor == b"0":
                    break
                await asyncio.sleep(PAGE_PAUSE_S)
        except EverbusError:
            self._since = before | self._since
            raise
        self._looked_at = time.monotonic()
        if self._dead:
            self._on_death()

    def _note(self, listeners: dict[str, int], before: dict[str, float]) -> None:
        now = time.monotonic()
        for member, count in listeners.items():
            if count:
                self._since[member] = LISTENING
            elif member in before:
                since = max(min(before[member], now), self._not_before)
                if now - since >= self._grace_s:
                    self._dead[member] = round(1000 * (now - since))
                    since = now  # judged again, if a heartbeat has saved it
                self._since[member] = since

    async def _listeners(self, members: Sequence[str]) -> dict[str, int]:
        """
        Instance → the listeners of its channel, on all nodes that answer.
        """
        found = dict.fromkeys(members, 0)
        channels = [keys.wake(*member.split(":", 1)) for member in members]
        for url in server_urls(self._url):
            wire = self._wires.setdefault(url, Wire(url, name="everbus-mads-alive"))
            try:
                counts: list[Any] = await wire.call(
                    *("PUBSUB", "NUMSUB", *channels), timeout_s=LOOK_TIMEOUT_S
                )
            except EverbusError:
                self._note_away(url)
                continue
            self._away.discard(url)
            for member, count in zip(members, counts[1::2], strict=True):
                found[member] += count
        return found

    def _note_away(self, url: str) -> None:
        if url not in self._away:
            self._away.add(url)
            self._wait_for_return()

    def _wait_for_return(self) -> None:
        """
        Give listeners of a node that is away time to come back elsewhere.
        """
        self._not_before = time.monotonic() + RETURN_S
