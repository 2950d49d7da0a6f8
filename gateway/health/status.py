"""
The status report of each process, written to `eb:status` every few seconds.

Metrics stay inside a process. `everbus doctor` and the manager that exports the
indicators read the reports: one field per process. A report decides nothing; a lost
one costs nothing.
"""

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import msgspec
import structlog
from prometheus_client import Counter, Gauge, Histogram

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.messages import pack
from everbus.gateway.store.scripts import write_at_all_times
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import NOTED, total

log = structlog.get_logger()

STATUS = "eb:status"
EVERY_S = 5.0
# An older status belongs to a process that crashed or hangs.
STALE_MS = 20_000
FORGET_MS = 24 * 3600 * 1000
# Statuses kept; a crash loop adds one with every start.
MAX_STATUSES = 500
RECENT_S = 300.0
MARK_EVERY_S = 30.0
CALL_TIMEOUT_S = 2.0

Role = Literal["manager", "archiver"]
Totals = dict[str, float]

_COUNTERS: Mapping[str, Counter] = {
    "commands": metrics.COMMANDS,
    "takeovers": metrics.TAKEOVERS,
    "superseded": metrics.SUPERSEDED,
    "disturbed": metrics.DISTURBED,
    "dead_letters": metrics.DEAD,
    "lost_mads": metrics.LOST_MADS,
    "heartbeats": metrics.HEARTBEATS,
    "drained": metrics.DRAINED,
    "doubtful": metrics.DOUBTFUL,
    "stale_side": metrics.STALE_SIDE,
}
_GAUGES: Mapping[str, Gauge] = {
    "parked": metrics.PARKED,
    "drain_failing_s": metrics.DRAIN_FAILING,
}


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One process at one moment.

    Attributes:
        at_ms: when, on the server's clock.
        skew_ms: how far this host's clock is ahead of the server's.
        totals: counts since its start.
        recent: counts within the last RECENT_S or less, and the 99th percentile of
            its commits in ms, if there were any.
        gauges: present values.
    """

    role: Role
    name: str
    at_ms: int
    started_ms: int
    pid: int = 0
    host: str = ""
    skew_ms: int = 0
    totals: Totals = {}
    recent: Totals = {}
    gauges: Totals = {}

    def stale(self, now_ms: int) -> bool:
        """
        Whether its next report is overdue at *now_ms*.
        """
        return now_ms - self.at_ms > STALE_MS


def field_of(role: Role, name: str) -> str:
    """
    The field of a process in STATUS.
    """
    return f"{role}:{name}"


def statuses_in(fields: Iterable[bytes]) -> list[Status]:
    """
    The statuses in STATUS's values; unreadable ones of other versions are skipped.
    """
    found = []
    for packed in fields:
        try:
            found.append(msgspec.msgpack.decode(packed, type=Status))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def outdated(statuses: Iterable[Status], now_ms: int) -> list[str]:
    """
    The fields to be removed: of processes that have been silent for a day, and of
    the longest silent beyond MOST.
    """
    newest = sorted(statuses, key=lambda one: one.at_ms, reverse=True)
    beyond = (one for one in newest[MAX_STATUSES:] if one.stale(now_ms))
    old = (one for one in newest[:MAX_STATUSES] if now_ms - one.at_ms > FORGET_MS)

    return [field_of(one.role, one.name) for one in (*old, *beyond)]


def totals_now() -> Totals:
    """
    The counts of this process.
    """
    found = {name: total(counter) for name, counter in _COUNTERS.items()}
    failures = NOTED.totals().items()

    return found | {f"failures.{kind}": times for kind, times in failures}


def gauges_now() -> Totals:
    """
    The present values of this process.
    """
    found = {name: sum(_values(gauge)) for name, gauge in _GAUGES.items()}
    for metric in metrics.BREAKER.collect():
        found |= {f"breaker.{s.labels['tier']}": s.value for s in metric.samples}

    return found


def _values(gauge: Gauge) -> list[float]:
    return [sample.value for metric in gauge.collect() for sample in metric.samples]


Buckets = dict[float, float]


def buckets_of(histogram: Histogram) -> Buckets:
    """
    Upper bound → how many observations were at most so much.
    """
    return {
        float(sample.labels["le"]): sample.value
        for metric in histogram.collect()
        for sample in metric.samples
        if sample.name.endswith("_bucket")
    }


def quantile(buckets: Buckets, before: Buckets, share: float) -> float | None:
    """
    What *share* of the observations since *before* did not exceed, from the bounds
    of *buckets*, as Prometheus reckons it; None if there were none.
    """
    counts = [
        (bound, count - before.get(bound, 0))
        for bound, count in sorted(buckets.items())
    ]
    if not counts or not counts[-1][1]:
        return None
    wanted = share * counts[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


class RecentCounts:
    """
    Counts within the last few minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        kept = round(RECENT_S / MARK_EVERY_S)
        self._marks: deque[tuple[float, Totals, Buckets]] = deque(maxlen=kept)

    def of(self, totals: Totals, commits: Buckets) -> Totals:
        """
        The differences to the oldest mark; the first call sets one.
        """
        now = self._clock()
        if not self._marks:
            # Counts before the first mark are recent.
            self._marks.append((now, {}, {}))
        at, before, commits_before = self._marks[0]
        recent = {name: n - before.get(name, 0) for name, n in totals.items()}
        recent["seconds"] = round(now - at, 1)
        slow = quantile(commits, commits_before, 0.99)
        if slow is not None:
            recent["commit_p99_ms"] = round(slow * 1000, 2)
        if now - self._marks[-1][0] >= MARK_EVERY_S:
            self._marks.append((now, totals, commits))
        return recent


class StatusReporter:
    """
    Reports this process until cancelled, then withdraws its status.

    Args:
        also: called after each telling, for what is to be looked at as often.
    """

    def __init__(
        self,
        redis_url: str,
        role: Role,
        name: str,
        *,
        also: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._role: Role = role
        self._name = name
        self._wire = wire_to(redis_url, name=f"everbus-status-{name}")
        self._recent = RecentCounts()
        self._started_ms = 0
        self._also = also
        self._failing = False

    async def run(self) -> None:
        """
        Report every EVERY_S; an absent bus is waited for.
        """
        while True:
            try:
                await self.report()
                if self._also is not None:
                    await self._also()
                self._failing = False
            except EverbusError as error:
                if not self._failing:
                    log.warning("status.not_told", error=error.message)
                self._failing = True
            except Exception:  # a report must not end the process that it is of
                log.exception("status.failed")
            await asyncio.sleep(EVERY_S)

    async def report(self) -> None:
        """
        Write the status once.

        Raises:
            WireFailed: the bus is away.
        """
        asked_at = time.time()
        seconds, micros = await self._wire.call("TIME", timeout_s=CALL_TIMEOUT_S)
        answered_at = time.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        self._started_ms = self._started_ms or now_ms
        totals = totals_now()
        status = Status(
            role=self._role,
            name=self._name,
            at_ms=now_ms,
            started_ms=self._started_ms,
            pid=os.getpid(),
            host=socket.gethostname(),
            skew_ms=skew_ms(asked_at, answered_at, now_ms),
            totals=totals,
            recent=self._recent.of(totals, buckets_of(metrics.COMMIT)),
            gauges=gauges_now(),
        )
        field = field_of(self._role, self._name)
        # Also out of memory: else doctor would say that no manager lives.
        await write_at_all_times(
            *(self._wire, "HSET", STATUS, field, pack(status)),
            timeout_s=CALL_TIMEOUT_S,
        )

    async def withdraw(self) -> None:
        """
        Remove the status at an orderly end. Never raises.
        """
        try:
            field = field_of(self._role, self._name)
            await self._wire.call("HDEL", STATUS, field, timeout_s=CALL_TIMEOUT_S)
        except EverbusError as error:
            log.debug("status.not_withdrawn", error=error.message)
        finally:
            await self._wire.close()


@asynccontextmanager
async def reporting(reporter: StatusReporter) -> AsyncIterator[None]:
    """
    Run *reporter* while the block runs; its errors never end the block.
    """
    running = asyncio.create_task(reporter.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await reporter.withdraw()


def skew_ms(asked_at: float, answered_at: float, server_ms: int) -> int:
    """
    The lead of this host's clock over the server's, less the round trip's share.
    """
    if asked_at * 1000 <= server_ms <= answered_at * 1000:
        return 0
    earliest, latest = asked_at * 1000 - server_ms, answered_at * 1000 - server_ms

    return round(earliest if abs(earliest) < abs(latest) else latest)
