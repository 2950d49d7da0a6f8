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
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import structlog
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.cluster_wire import is_of_one_node, wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.messages import SCHEMA
from everbus.bus.server_errors import refusal
from everbus.bus.subscription import Subscription
from everbus.bus.waits import set_within
from everbus.bus.wire import Argument, Command
from everbus.gateway.lane.connection import LaneLost
from everbus.gateway.lane.loop import Lane, LaneParts
from everbus.gateway.presence.lane import PresenceLane, PresenceParts
from everbus.gateway.presence.mad_quotas import MadQuotas, QuotaLimits
from everbus.gateway.presence.replica_liveness import ReplicaLiveness
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import load_scripts, script
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import NOTED

log = structlog.get_logger()

LANE_TTL_MS = 5_000
TICK_S = 1.0
TICK_TIMEOUT_S = 2.0
DEAF_S = 10.0
# Part of maxmemory from which on lanes hold writes back. The rest is for requests that
# read: a server that is full takes no command of a MAD at all.
MEMORY_SHARE = 0.95


class NameTaken(Exception):
    """
    Another process runs under this replica's name; two must never share one.
    """


class Served(Protocol):
    """
    What has one owner at a time: the lane of a partition, or that of the leases.

    Attributes:
        number: the partition, or `bus.keys.PRESENCE`; part of its owner key.
        owner: the value of that key while we serve it; a new one a connection.
        polled_at: monotonic time of the last completed exchange.
    """

    @property
    def number(self) -> int | str: ...

    @property
    def owner(self) -> str: ...

    polled_at: float

    def admit(self, mads: frozenset[str]) -> None: ...

    def note_memory(self, *, full: bool) -> None: ...

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


class SessionManager:
    """
    Serves its share of the lanes until it is stopped.
    """

    def __init__(
        self,
        name: str,
        parts: LaneParts,
        *,
        ttl_ms: int = LANE_TTL_MS,
        quotas: QuotaLimits | None = None,
    ) -> None:
        self.name = name
        self._parts = parts
        self._life = parts.incarnation
        self._ttl_ms = ttl_ms
        self._wire = wire_to(parts.redis_url, name=f"everbus-{name}")
        self._served: dict[int | str, Served] = {}
        self._serving: dict[int | str, asyncio.Task[None]] = {}
        self._mads: frozenset[str] = frozenset()
        self._living: list[str] = [name]
        self._liveness = ReplicaLiveness(
            parts.redis_url, name, lambda: self._living, self._note_death
        )
        self._quotas = MadQuotas(
            parts.redis_url,
            name,
            quotas or QuotaLimits(),
            lanes=lambda: tuple(self._served),
            mads=lambda: self._mads,
        )
        self._news = asyncio.Event()
        self._rival = False
        self._ticked_at = time.monotonic()
        self._trouble = ""

    @property
    def lanes(self) -> dict[int, Lane]:
        """
        Partition → its lane, for the partitions that this replica serves now.
        """
        served = self._served.values()

        return {lane.number: lane for lane in served if isinstance(lane, Lane)}

    @property
    def trouble(self) -> str:
        """
        Why this replica has not renewed its lanes for a TTL; empty while it has.
        """
        silent = time.monotonic() - self._ticked_at > self._ttl_ms / 1000

        return self._trouble if silent else ""

    async def run(self, stop: asyncio.Event) -> None:
        """
        Serve until *stop* is set, then finish what was read and hand over.

        Raises:
            NameTaken: another process runs under the same name.
        """
        log.info("replica.started", replica=self.name)
        listening = asyncio.create_task(self._subscription().run())
        watching = asyncio.create_task(self._liveness.run())
        measuring = asyncio.create_task(self._quotas.run())
        stopping = asyncio.create_task(self._stop_on(stop))
        try:
            while not stop.is_set():
                await self._tick()
                await self._pause()
            await self._hand_over()
        finally:
            beside = (listening, watching, measuring, stopping)
            for task in (*beside, *self._serving.values()):
                task.cancel()
            await asyncio.gather(
                *beside, *self._serving.values(), return_exceptions=True
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

    def _note_death(self) -> None:
        log.warning("replica.died", dead=sorted(self._liveness.dead))
        self._news.set()

    async def _stop_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._news.set()

    async def _pause(self) -> None:
        """
        Wait for the next tick; news makes it come at once.
        """
        await set_within(self._news, min(TICK_S, self._ttl_ms / 3000))
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
            self._ticked_at, self._trouble = time.monotonic(), ""
        except EverbusError as error:
            self._trouble = error.message
            NOTED.count("hot_tier_away", within_s=10)
            log.warning("replica.bus_away", replica=self.name, error=error.message)

    async def _renew(self) -> list[str]:
        if not self._wire.connected:
            await load_scripts(self._wire)
        owned = list(self._served.values())
        replies = await self._exchange(
            [
                script("register", [key_names.REPLICAS], self.name, self._ttl_ms),
                ("HKEYS", keys.MADS),
                ("HGET", keys.CONFIG, "partitions"),
                *(
                    script(
                        "renew",
                        [key_names.owner(lane.number)],
                        lane.owner,
                        self._ttl_ms,
                    )
                    for lane in owned
                ),
            ]
        )
        registered, mads, partitions = replies[:3]
        if partitions is None:
            await self._restore()
        elif not isinstance(mads, ResponseError):
            self._mads = _same(self._mads, frozenset(mad.decode() for mad in mads))
        for lane in owned:
            lane.admit(self._mads)
            metrics.OLDEST.labels(lane.number).set(lane.oldest_age_s())
        await self._note_memory(owned)
        if not isinstance(registered, ResponseError):
            crashed, living = registered
            NOTED.crashed(crashed)
            self._living = [name.decode() for name in living]
        return [name for name in self._living if name not in self._liveness.dead]

    async def _note_memory(self, owned: Sequence[Served]) -> None:
        """
        Tell the lanes whether their server's memory is nearly used up.
        """
        lanes = {key_names.owner(lane.number): lane for lane in owned}
        groups = self._wire.group_by_slot(list(lanes))
        measures = [script("memory", group[:1]) for group in groups]
        if not measures:
            return
        # Not as `_exchange`: all of these may be of one node, and that one away.
        measured = await self._wire.exchange(measures, timeout_s=TICK_TIMEOUT_S)
        for group, measure in zip(groups, measured, strict=True):
            if isinstance(measure, ResponseError):
                continue  # its node is away, or does not know the script yet
            used, limit = measure
            full = bool(limit) and used >= limit * MEMORY_SHARE
            for owner in group:
                lanes[owner].note_memory(full=full)

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
        The replies. An error among them is of a node of a Cluster that serves nothing
        now: the lanes of the others must not wait for it.
        """
        replies = await self._wire.exchange(commands, timeout_s=TICK_TIMEOUT_S)
        errors = [reply for reply in replies if isinstance(reply, ResponseError)]
        whole = len(errors) == len(replies)
        if errors and (whole or not all(map(is_of_one_node, errors))):
            # Also NOSCRIPT: the next tick connects anew and loads them.
            await self._wire.close()
            raise refusal(errors[0])
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
        claim: tuple[Argument, ...] = (self.name, self._life, self._ttl_ms)
        claim += tuple(self._liveness.dead)
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
                    [key_names.owner(lane), key_names.epoch(lane)],
                    *claim,
                )
                for lane in wanted
            ]
        )
        for number, reply in zip(wanted, replies, strict=True):
            if isinstance(reply, ResponseError):
                continue  # its node is away; the next tick tries again
            taken, owner = reply
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
        parts = self._parts
        presence = PresenceParts(
            *(parts.redis_url, parts.partitions, parts.lease_ttl_ms),
            parts.lost_after_disconnect_s,
            parts.fail,
        )
        return PresenceLane(owner, presence)

    async def _serve(self, lane: Served) -> None:
        """
        Serve one lane to its end, then give it up.
        """
        try:
            # In a task of its own: else each turn of the lane resumes this frame first.
            await asyncio.create_task(lane.run())
        except LaneLost:
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
            owner = await wire.call("GET", key_names.owner(number))
        except EverbusError:
            return
        finally:
            await wire.close()
        name, life = key_names.holder_of((owner or b"").decode())
        if name == self.name and life != self._life:
            self._rival = True
            self._news.set()

    async def _release(self, lane: Served) -> None:
        wire = wire_to(self._parts.redis_url)
        try:
            await load_scripts(wire)
            await wire.call(
                *script(
                    "release", [key_names.owner(lane.number)], lane.owner, keys.NEWS
                )
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
            await self._exchange(
                [script("register", [key_names.REPLICAS], self.name, 0)]
            )
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
