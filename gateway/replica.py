"""
One replica of the SessionManager: which lanes it serves, and for how long.

Replicas agree on nothing but what Redis says: a list of the living, from which
each computes by rendezvous hashing which lanes it should have, and an owner key
a lane, which decides. A second that a replica is wrong about the others costs
time, never order: every read and commit is fenced by the lane's epoch.
"""

import asyncio
import hashlib
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

import structlog
from redis.exceptions import ResponseError

from bus import keys
from bus.cluster import wire_to
from bus.errors import EverbusError
from bus.messages import SCHEMA
from bus.subscription import Subscription
from bus.wire import Command
from gateway import metrics
from gateway.errors import Superseded
from gateway.failures import NOTED
from gateway.lane import Lane, LaneParts
from gateway.presence.watch import Presence
from gateway.store import names
from gateway.store.scripts import load_scripts, script

log = structlog.get_logger()

LANE_TTL_MS = 5_000
TICK_S = 1.0
TICK_TIMEOUT_S = 2.0
DEAF_S = 10.0


class NameTaken(Exception):
    """
    Another process runs under this replica's name; two must never share one.
    """


class Served(Protocol):
    """
    What has one owner at a time: the lane of a partition, or that of the leases.

    Attributes:
        number: the partition, or `bus.keys.PRESENCE`; part of its owner key.
        owner: the value of that key while we serve it.
        polled_at: monotonic time of the last completed exchange.
    """

    @property
    def number(self) -> int | str: ...

    owner: str
    polled_at: float

    def admit(self, mads: frozenset[str]) -> None: ...

    def stop(self) -> None: ...

    def oldest_age_s(self) -> float: ...

    async def run(self) -> None: ...


def lane_owner(lane: int | str, replicas: Iterable[str]) -> str | None:
    """
    The replica that should own *lane*: highest random weight (rendezvous).

    When a replica comes or goes, only the lanes it gains or loses move.
    """
    return max(replicas, key=lambda name: _weight(lane, name), default=None)


def _weight(lane: int | str, name: str) -> bytes:
    return hashlib.blake2b(f"{lane}:{name}".encode(), digest_size=8).digest()


class Replica:
    """
    Serves its share of the lanes until told to stop.
    """

    def __init__(
        self, name: str, parts: LaneParts, *, ttl_ms: int = LANE_TTL_MS
    ) -> None:
        self.name = name
        self._parts = parts
        self._life = parts.incarnation
        self._ttl_ms = ttl_ms
        self._wire = wire_to(parts.redis_url, name=f"everbus-{name}")
        self._served: dict[int | str, Served] = {}
        self._serving: dict[int | str, asyncio.Task[None]] = {}
        self._mads: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        self._rival = False

    @property
    def lanes(self) -> dict[int, Lane]:
        """
        Partition → its lane, of those that this replica serves now.
        """
        served = self._served.values()

        return {lane.number: lane for lane in served if isinstance(lane, Lane)}

    async def run(self, stop: asyncio.Event) -> None:
        """
        Serve until *stop* is set, then finish what was read and hand over.

        Raises:
            NameTaken: another process runs under the same name.
        """
        log.info("replica.started", replica=self.name)
        listening = asyncio.create_task(self._subscription().run())
        stopping = asyncio.create_task(self._stop_on(stop))
        try:
            while not stop.is_set():
                await self._tick()
                await self._pause()
            await self._hand_over()
        finally:
            for task in (listening, stopping, *self._serving.values()):
                task.cancel()
            await asyncio.gather(
                listening, stopping, *self._serving.values(), return_exceptions=True
            )
            await self._wire.close()
            log.info("replica.stopped", replica=self.name)

    def _subscription(self) -> Subscription:
        return Subscription(
            self._parts.redis_url,
            keys.NEWS,
            on_message=lambda _: self._news.set(),
            on_subscribed=self._news.set,
        )

    async def _stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._news.set()

    async def _pause(self) -> None:
        """
        Wait for the next tick; news makes it come at once.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(min(TICK_S, self._ttl_ms / 3000)):
                await self._news.wait()
        self._news.clear()

    async def _tick(self) -> None:
        """
        Renew what we own, learn who lives, take and hand over lanes.
        """
        if self._rival:
            raise NameTaken(
                f"another process runs as replica {self.name!r}; give each its own "
                "EVERBUS_REPLICA"
            )
        try:
            living = await self._renew()
            self._drop_deaf()
            await self._rebalance(living)
        except EverbusError as error:
            NOTED.count("hot_tier_away", within_s=10)
            log.warning("replica.bus_away", replica=self.name, error=error.message)

    async def _renew(self) -> list[str]:
        if not self._wire.connected:
            await load_scripts(self._wire)
        owned = list(self._served.values())
        replies = await self._exchange(
            [
                script("register", [names.REPLICAS], self.name, self._ttl_ms),
                ("HKEYS", keys.MADS),
                ("HGET", keys.CONFIG, "partitions"),
                *(
                    script(
                        "renew", [names.owner(lane.number)], lane.owner, self._ttl_ms
                    )
                    for lane in owned
                ),
            ]
        )
        if replies[2] is None:
            await self._restore()
            replies[1] += (mad.encode() for mad in self._mads)
        self._mads = _same(self._mads, frozenset(mad.decode() for mad in replies[1]))
        for lane in owned:
            lane.admit(self._mads)
            metrics.OLDEST.labels(lane.number).set(lane.oldest_age_s())
        crashed, living = replies[0]
        NOTED.crashed(crashed)
        return [name.decode() for name in living]

    async def _restore(self) -> None:
        """
        Put back what every bus has, after somebody emptied this one.

        The MADs are still there and publish; unlisted, nobody would read them.
        """
        log.error("bus.emptied", replica=self.name, mads=len(self._mads))
        NOTED.count("hot_tier_emptied", within_s=10)
        partitions = ("HSETNX", keys.CONFIG, "partitions", self._parts.partitions)
        schema = ("HSETNX", keys.CONFIG, "schema", SCHEMA)
        listed = [("HSETNX", keys.MADS, mad, "{}") for mad in sorted(self._mads)]
        await self._exchange([partitions, schema, *listed])

    async def _exchange(self, commands: list[Command]) -> list[Any]:
        """
        The replies, of which none is an error.
        """
        replies = await self._wire.exchange(commands, timeout_s=TICK_TIMEOUT_S)
        for reply in replies:
            if isinstance(reply, ResponseError):
                # Also NOSCRIPT: the next tick connects anew and loads them.
                await self._wire.close()
                raise EverbusError(f"the bus refuses: {reply}")
        return replies

    def _drop_deaf(self) -> None:
        """
        End lanes whose exchanges do not complete while ours do.
        """
        for number, lane in self._served.items():
            silent_s = time.monotonic() - lane.polled_at
            if silent_s > DEAF_S:
                log.error("lane.deaf", lane=number, silent_s=round(silent_s, 1))
                metrics.DISTURBED.labels("deaf").inc()
                self._serving[number].cancel()

    async def _rebalance(self, living: list[str]) -> None:
        lanes: list[int | str] = [keys.PRESENCE, *range(self._parts.partitions)]
        ours = [lane for lane in lanes if lane_owner(lane, living) == self.name]
        for number in self._served.keys() - set(ours):
            self._served[number].stop()
        wanted = [lane for lane in ours if lane not in self._served]
        if not wanted:
            return
        replies = await self._exchange(
            [
                script(
                    "acquire",
                    [names.owner(lane), names.epoch(lane)],
                    *(self.name, self._life, self._ttl_ms),
                )
                for lane in wanted
            ]
        )
        for number, (taken, owner) in zip(wanted, replies, strict=True):
            if taken:
                self._begin(number, owner.decode())

    def _begin(self, number: int | str, owner: str) -> None:
        lane = self._made(number, owner)
        lane.admit(self._mads)
        self._served[number] = lane
        metrics.OWNED.labels(number).set(1)
        metrics.TAKEOVERS.inc()
        log.info("lane.taken", lane=number, owner=owner)
        self._serving[number] = asyncio.create_task(self._serve(lane))

    def _made(self, number: int | str, owner: str) -> Served:
        if isinstance(number, int):
            return Lane(number, owner, self._parts)
        return Presence(owner, self._parts)

    async def _serve(self, lane: Served) -> None:
        """
        Serve one lane to its end, then give it up.
        """
        try:
            await lane.run()
        except Superseded:
            metrics.SUPERSEDED.inc()
            log.warning("lane.superseded", lane=lane.number, owner=lane.owner)
            await self._check_rival(lane.number)
        finally:
            self._served.pop(lane.number, None)
            self._serving.pop(lane.number, None)
            metrics.OWNED.labels(lane.number).set(0)
            await self._release(lane)

    async def _check_rival(self, number: int | str) -> None:
        """
        Notice a successor under our own name: then we are the one too many.
        """
        wire = wire_to(self._parts.redis_url)
        try:
            owner = await wire.call("GET", names.owner(number))
        except EverbusError:
            return
        finally:
            await wire.close()
        name, life = names.holder_of((owner or b"").decode())
        if name == self.name and life != self._life:
            self._rival = True
            self._news.set()

    async def _release(self, lane: Served) -> None:
        wire = wire_to(self._parts.redis_url)
        try:
            await load_scripts(wire)
            await wire.call(
                *script("release", [names.owner(lane.number)], lane.owner, keys.NEWS)
            )
        except EverbusError as error:
            log.warning("lane.not_released", lane=lane.number, error=error.message)
        finally:
            await wire.close()

    async def _hand_over(self) -> None:
        """
        Leave the list of the living, finish every lane's batch, release it.
        """
        try:
            await self._exchange([script("register", [names.REPLICAS], self.name, 0)])
        except EverbusError as error:
            log.warning("replica.bus_away", replica=self.name, error=error.message)
        for lane in self._served.values():
            lane.stop()
        if self._serving:
            await asyncio.wait(self._serving.values(), timeout=self._ttl_ms / 1000)


def _same(before: frozenset[str], after: frozenset[str]) -> frozenset[str]:
    """
    *before* if nothing changed, so that lanes can compare by identity.
    """
    return before if before == after else after
