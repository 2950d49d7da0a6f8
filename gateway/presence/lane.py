"""
The `mads` lane: turns heartbeats into leases, and silence into losses.

Like any lane it has one owner at a time, and each of its scripts checks the owner. A
pass applies the published heartbeats, then sweeps expired leases, then announces the
losses to the partitions. The order protects an instance whose heartbeat only waited to
be read. All state is in Redis, so every failure has one remedy: start the pass again.
"""

import asyncio
import time
from functools import partial
from typing import Literal, NamedTuple

import structlog

from everbus.bus import keys
from everbus.bus.backoff import Backoff
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.known_nodes import server_urls
from everbus.bus.messages import pack
from everbus.bus.waits import set_within
from everbus.bus.wire import Command
from everbus.gateway.failpoints import FailPoint, disarmed
from everbus.gateway.lane.connection import Disturbed, LaneLost
from everbus.gateway.presence.announcements import Announcements
from everbus.gateway.presence.expiry import ExpiryHints
from everbus.gateway.presence.heartbeats import HeartbeatBatch, parse_heartbeats
from everbus.gateway.presence.leases import (
    CHUNK,
    MAX_INSTANCES,
    Instance,
    Leases,
    LostInstance,
)
from everbus.gateway.presence.mad_liveness import MadLiveness
from everbus.gateway.store.scripts import load_scripts
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

# Pause between reads, in which heartbeats gather: one batch is much cheaper.
POLL_S = 0.25
SWEEP_S = 1.0
# Pause between sweeps that hints start, so that many hints share one.
HINT_S = 0.02
# Sweeps in a row, at most; then heartbeats are read again.
MAX_SWEEPS = 20
# Entries of one MAD per pass, at most; fewer if each may cause many announcements.
READ_ENTRIES = 256
READ_COMMANDS = 8192
# How often the server's notification mode is read.
MODE_CHECK_S = 30.0
# How often the garbled entries of one MAD are logged.
LOG_EVERY_S = 60.0
# Pause after a partition has refused an announcement.
RETRY_ANNOUNCE_S = 1.0
# What a loss was noticed by.
Noticed = Literal["event", "sweep", "disconnect"]
FIRST_RETRY_S, MAX_RETRY_S, STEADY_S = 0.1, 1.0, 2.0


class PresenceParts(NamedTuple):
    """
    Parts of the presence lane of one replica.
    """

    redis_url: str
    partitions: int
    lease_ttl_ms: int = 30_000
    lost_after_disconnect_s: float = 5.0
    fail: FailPoint = disarmed


class PresenceLane:
    """
    Keeps the leases while *owner* is the value of the lane's owner key.

    Attributes:
        number: the lane's name, in place of a partition's number.
        polled_at: monotonic time of the last completed exchange.
    """

    number = keys.PRESENCE

    def __init__(self, owner: str, parts: PresenceParts) -> None:
        self.owner = owner
        self.polled_at = time.monotonic()
        self._fail = parts.fail
        self._wire = wire_to(parts.redis_url, name=f"everbus-lane-{self.number}")
        self._leases = Leases(self._wire, owner, parts.lease_ttl_ms)
        self._announcements = Announcements(
            self._wire, owner, parts.partitions, parts.fail
        )
        self._wake = asyncio.Event()
        self._hints = ExpiryHints(partial(server_urls, parts.redis_url), self._wake.set)
        self._liveness = MadLiveness(
            parts.redis_url, parts.lost_after_disconnect_s, self._wake.set
        )
        self._looks_at_sockets = parts.lost_after_disconnect_s > 0
        self._disconnected: set[str] = set()
        self._read_count = max(8, min(READ_ENTRIES, READ_COMMANDS // parts.partitions))
        self._mads: frozenset[str] = frozenset()
        self._stopping = False
        self._sweep_at = 0.0
        self._swept_at = 0.0
        self._mode_check_at = 0.0
        self._announce_at: float | None = 0.0
        self._unannounced_since: float | None = None
        self._logged_at: dict[str, float] = {}

    def admit(self, mads: frozenset[str]) -> None:
        """
        Read the heartbeats of these MADs from the next pass on.
        """
        self._mads = mads

    def note_memory(self, *, full: bool) -> None:
        """
        Do nothing: the sweep measures the memory itself, and nobody is lost of it.
        """

    def stop(self) -> None:
        """
        Finish the pass, then let `run` return.
        """
        self._stopping = True
        self._wake.set()

    def oldest_age_s(self) -> float:
        """
        Age of the oldest loss not yet announced to all partitions; 0 if none waits.
        """
        since = self._unannounced_since

        return 0.0 if since is None else time.monotonic() - since

    async def run(self) -> None:
        """
        Serve until stopped; survives every disturbance of the bus.

        Raises:
            LaneLost: another replica owns the lane.
        """
        backoff = Backoff(FIRST_RETRY_S, MAX_RETRY_S, steady_s=STEADY_S)
        looking = self._looking()
        began = time.monotonic()
        try:
            while not await self._run_until_disturbed():
                await asyncio.sleep(backoff.next_s(time.monotonic() - began))
                began = time.monotonic()
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
            await self._hints.close()
            await self._wire.close()
            metrics.LEASES.set(0)

    def _looking(self) -> list[asyncio.Task[None]]:
        if not self._looks_at_sockets:
            return []
        return [asyncio.create_task(self._liveness.run())]

    async def _run_until_disturbed(self) -> bool:
        """
        Serve until stopped or disturbed; True if stopped.
        """
        try:
            await self._run_passes()
        except EverbusError as error:
            cause = error.cause if isinstance(error, Disturbed) else error.code
            log.warning("presence.disturbed", cause=cause, error=error.message)
            metrics.DISTURBED.labels(cause).inc()
        except LaneLost:
            raise
        except Exception:  # a defect must not end the other lanes
            log.exception("presence.failed")
            metrics.DISTURBED.labels("defect").inc()
        return self._stopping

    async def _run_passes(self) -> None:
        """
        Run passes until stopped.
        """
        await load_scripts(self._wire)
        # Finish at once the work that an earlier owner has left.
        self._sweep_at = self._mode_check_at = self._announce_at = 0.0
        while True:
            more = await self._read_heartbeats()
            if self._is_sweep_due():
                more |= await self._sweep()
            more |= await self._announce()
            if self._stopping:
                return
            if not more:
                await self._pause()

    async def _read_heartbeats(self) -> bool:
        """
        Apply published heartbeats; True if there may be more.

        Reads from the start of each stream: applied entries are deleted.
        """
        mads = sorted(self._mads)
        batches: dict[str, HeartbeatBatch] = {}
        if mads:
            streams = [keys.ingress(self.number, mad) for mad in mads]
            starts = ["0"] * len(mads)
            found = await self._wire.call(
                "XREAD", "COUNT", self._read_count, "STREAMS", *streams, *starts
            )
            for key, entries in found or ():
                batches[key.decode().partition(":in:")[2]] = parse_heartbeats(entries)
        self._polled()
        if batches:
            await self._apply(batches)
        return any(len(batch.ids) == self._read_count for batch in batches.values())

    async def _apply(self, batches: dict[str, HeartbeatBatch]) -> None:
        ended: list[Instance] = []
        for mad, applied in (await self._leases.apply(batches)).items():
            self._count(mad, batches[mad], applied.over_limit)
            self._note_losses(applied.left)
            ended += applied.ended
        self._polled()
        if ended:
            metrics.HEARTBEATS.labels("refused").inc(len(ended))
            # Only a hint, so its outcome does not matter.
            await self._wire.exchange([_notice(one) for one in ended])

    def _count(self, mad: str, batch: HeartbeatBatch, over_limit: int) -> None:
        for kind, count in batch.kinds.items():
            metrics.HEARTBEATS.labels(kind).inc(count)
        problem = batch.problem
        if over_limit:
            metrics.HEARTBEATS.labels("crowded").inc(over_limit)
            problem = f"{MAX_INSTANCES} instances live, which is the limit; end some"
        last = self._logged_at.get(mad, -LOG_EVERY_S)
        if problem and time.monotonic() - last >= LOG_EVERY_S:
            self._logged_at[mad] = time.monotonic()
            log.warning("heartbeat.refused", mad=mad, problem=problem)

    def _is_sweep_due(self) -> bool:
        now = time.monotonic()

        return now >= self._sweep_at or (
            bool(self._hints or self._liveness) and now >= self._swept_at + HINT_S
        )

    async def _sweep(self) -> bool:
        """
        Declare instances with expired leases lost; True if there may be more.
        """
        if time.monotonic() >= self._mode_check_at:
            await self._hints.refresh(self._wire)
            self._mode_check_at = time.monotonic() + MODE_CHECK_S
        hinted = self._hints.take()
        await self._shorten()
        for _ in range(MAX_SWEEPS):
            sweep = await self._leases.sweep(self._hints.mode)
            self._polled()
            metrics.LEASES.set(sweep.living)
            if sweep.step_ms:
                log.error("bus.clock_set", step_ms=sweep.step_ms)
            if sweep.gap_ms:
                log.warning("presence.gap", gap_ms=sweep.gap_ms)
            waiting = await self._declare_lost(sweep.due, hinted)
            self._swept_at = time.monotonic()
            wait_s = sweep.grace_ms / 1000 or SWEEP_S
            # Instances with unread heartbeats are checked again without the full pause.
            wait_s = 0.0 if waiting else min(wait_s, SWEEP_S)
            self._sweep_at = self._swept_at + wait_s
            if waiting or len(sweep.due) < CHUNK:
                return False
        self._sweep_at = 0.0
        return True

    async def _shorten(self) -> None:
        """
        End the leases of instances whose sockets closed; the sweep finds them then.
        """
        dead = [*self._liveness.take().items()]
        self._disconnected = {member for member, _ in dead}
        for first in range(0, len(dead), CHUNK):
            await self._leases.shorten(dict(dead[first : first + CHUNK]))
            self._polled()

    def _noticed(self, member: str, hinted: set[str]) -> Noticed:
        if member in self._disconnected:
            return "disconnect"
        return "event" if member in hinted else "sweep"

    async def _declare_lost(self, due: tuple[str, ...], hinted: set[str]) -> int:
        """
        Declare the instances of *due* lost, if still due; returns how many wait.
        """
        if not due:
            return 0
        waiting, lost = await self._leases.declare_lost(
            {member: self._noticed(member, hinted) for member in due}
        )
        self._polled()
        if lost:
            self._fail("loss_declared")
        for one in lost:
            mad, instance, _ = one.instance
            self._note_lost(one, self._noticed(f"{mad}:{instance}", hinted))
        self._note_losses(len(lost))

        return waiting

    def _note_lost(self, lost: LostInstance, noticed: Noticed) -> None:
        metrics.LOST_MADS.labels(noticed).inc()
        metrics.DETECTION.observe(lost.late_ms / 1000)
        instance = lost.instance._asdict()
        log.warning("mad.lost", **instance, noticed=noticed, late_ms=lost.late_ms)

    def _note_losses(self, losses: int) -> None:
        if losses:
            self._announce_at = 0.0
            self._unannounced_since = self._unannounced_since or time.monotonic()

    async def _announce(self) -> bool:
        """
        Announce some losses to the partitions; True if more can follow now.
        """
        if self._announce_at is None or time.monotonic() < self._announce_at:
            return False
        result = await self._announcements.publish()
        self._polled()
        if result.error:
            log.error("losses.untold", losses=result.remaining, error=result.error)
            self._announce_at = time.monotonic() + RETRY_ANNOUNCE_S
        elif not result.remaining:
            self._announce_at = self._unannounced_since = None
        return result.remaining > 0 and not result.error

    async def _pause(self) -> None:
        """
        Wait for heartbeats to gather; a hint ends the wait.
        """
        self._wake.clear()
        if self._hints:
            await asyncio.sleep(HINT_S)
            return
        await set_within(self._wake, POLL_S)

    def _polled(self) -> None:
        self.polled_at = time.monotonic()


def _notice(ended: Instance) -> Command:
    """
    The message to an instance whose epoch is over.
    """
    channel = keys.wake(ended.mad, ended.instance)

    return ("PUBLISH", channel, pack([{"superseded": ended.epoch}]))
