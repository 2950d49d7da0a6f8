"""
What each process of ours tells the others of itself, every few seconds.

Metrics are inside a process; who asks for the health of the whole (`everbus
doctor`, the manager that exports the indicators) finds them here: `eb:status`, one
field a process. It is a report and decides nothing; a lost one costs nothing.
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

from bus.cluster import wire_to
from bus.codec import pack
from bus.errors import EverbusError
from gateway import metrics
from gateway.failures import NOTED, total

log = structlog.get_logger()

STATUS = "eb:status"
EVERY_S = 5.0
# A status that is older belongs to a process that ended without goodbye, or hangs.
STALE_MS = 20_000
GONE_MS = 24 * 3600 * 1000
# Processes that are remembered; a crash loop makes a new one with every start.
MOST = 500
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
        totals: what it has counted since it started.
        recent: what of that within the last RECENT_S or less; and the 99th
            percentile of its commits in ms, if there were any.
        gauges: what is so now.
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
        Whether it should have told of itself again by *now_ms*.
        """
        return now_ms - self.at_ms > STALE_MS


def field_of(role: Role, name: str) -> str:
    """
    The field of a process in STATUS.
    """
    return f"{role}:{name}"


def statuses_in(fields: Iterable[bytes]) -> list[Status]:
    """
    The statuses in STATUS's values; what another version wrote and we do not
    understand is left out.
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
    beyond = (one for one in newest[MOST:] if one.stale(now_ms))
    old = (one for one in newest[:MOST] if now_ms - one.at_ms > GONE_MS)

    return [field_of(one.role, one.name) for one in (*old, *beyond)]


def totals_now() -> Totals:
    """
    What this process has counted.
    """
    found = {name: total(counter) for name, counter in _COUNTERS.items()}
    failures = NOTED.totals().items()

    return found | {f"failures.{kind}": times for kind, times in failures}


def gauges_now() -> Totals:
    """
    What is so in this process now.
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


class Recent:
    """
    What has come to the totals within the last few minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        kept = round(RECENT_S / MARK_EVERY_S)
        self._marks: deque[tuple[float, Totals, Buckets]] = deque(maxlen=kept)

    def of(self, totals: Totals, commits: Buckets) -> Totals:
        """
        The differences to the oldest mark; the first call sets it.
        """
        now = self._clock()
        if not self._marks:
            # What was counted before anybody looked counts as recent.
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


class Teller:
    """
    Tells of this process until it is cancelled, then takes its status away.

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
        self._recent = Recent()
        self._started_ms = 0
        self._also = also
        self._silent = False

    async def run(self) -> None:
        """
        Tell every EVERY_S; a bus that is away is waited for.
        """
        while True:
            try:
                await self.tell()
                if self._also is not None:
                    await self._also()
                self._silent = False
            except EverbusError as error:
                if not self._silent:
                    log.warning("status.not_told", error=error.message)
                self._silent = True
            except Exception:  # a report must not end the process that it is of
                log.exception("status.failed")
            await asyncio.sleep(EVERY_S)

    async def tell(self) -> None:
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
        await self._wire.call(
            "HSET", STATUS, field, pack(status), timeout_s=CALL_TIMEOUT_S
        )

    async def withdraw(self) -> None:
        """
        Take the status away: this process ends in order. Never raises.
        """
        try:
            field = field_of(self._role, self._name)
            await self._wire.call("HDEL", STATUS, field, timeout_s=CALL_TIMEOUT_S)
        except EverbusError as error:
            log.debug("status.not_withdrawn", error=error.message)
        finally:
            await self._wire.close()


@asynccontextmanager
async def told(teller: Teller) -> AsyncIterator[None]:
    """
    Let *teller* tell while the block runs; nothing of it ends the block.
    """
    telling = asyncio.create_task(teller.run())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await teller.withdraw()


def skew_ms(asked_at: float, answered_at: float, server_ms: int) -> int:
    """
    How far this host's clock is ahead of the server's; what the answer's way may
    account for is left out.
    """
    if asked_at * 1000 <= server_ms <= answered_at * 1000:
        return 0
    earliest, latest = asked_at * 1000 - server_ms, answered_at * 1000 - server_ms

    return round(earliest if abs(earliest) < abs(latest) else latest)
