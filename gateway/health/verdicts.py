"""
Verdicts on a whole bus: an indicator, what it measured, and what to do about it.

The indicators are in `gateway.health.indicators`. The managers' first, by name, exports
all verdicts each EXAMINE_EVERY_S; `everbus doctor` shows them.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

import structlog

from bus.routing import is_cluster
from bus.wire import Wire
from gateway import metrics
from gateway.health.readings import Readings, follower_priorities, read_bus
from gateway.health.status import STATUS, outdated
from gateway.store import names

log = structlog.get_logger()

EXAMINE_EVERY_S = 15.0
# A manager that has just started takes its lanes first.
FIRST_AFTER_S = 4.0
PRIORITIES_EVERY_S = 300.0

# Of these a manager warns when it starts.
TOLD_AT_START = frozenset(
    {
        "bus_config",
        "eviction_policy",
        "fsync",
        "min_replicas",
        "notifications",
        "persistence",
    }
)

Verdict = Literal["pass", "warn", "fail"]
GRADES: dict[Verdict, int] = {"pass": 0, "warn": 1, "fail": 2}


class Measured(NamedTuple):
    """
    What one indicator has measured.

    Attributes:
        value: None if it cannot be known here, which passes.
        shown: for people, where the number alone says too little.
    """

    value: float | None
    shown: str = ""


# The values of indicators that are a state and no number.
FINE, WARNED, FAILED = 0.0, 1.0, 2.0


class Indicator(NamedTuple):
    """
    Something that is measured, and from where on it is not well.

    Attributes:
        unit: of the value; empty for a count, `state` for FINE, WARNED, FAILED.
        warn: from this value on a warning; None: never.
        fail: from this value on a failure; None: never.
        low: whether small values are the bad ones: then it is *down to* these.
        wanted: for people, where thresholds say too little.
    """

    name: str
    unit: str
    means: str
    remedy: str
    measure: Callable[[Readings], Measured]
    warn: float | None = None
    fail: float | None = None
    low: bool = False
    wanted: str = ""

    def verdict(self, value: float | None) -> Verdict:
        """
        What is to be said of *value*.
        """
        if value is None:
            return "pass"
        for bound, verdict in ((self.fail, "fail"), (self.warn, "warn")):
            if bound is None:
                continue
            if (value <= bound) if self.low else (value >= bound):
                return "fail" if verdict == "fail" else "warn"
        return "pass"

    @property
    def threshold(self) -> str:
        """
        Its thresholds, for people: the values from which on it is so.
        """
        if self.wanted:
            return self.wanted
        bounds = (("warn", self.warn), ("fail", self.fail))
        told = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]

        return ", ".join(told)


class Finding(NamedTuple):
    """
    One indicator's verdict.
    """

    name: str
    verdict: Verdict
    value: float | None
    unit: str
    shown: str
    threshold: str
    means: str
    remedy: str


def examine(readings: Readings, indicators: Sequence[Indicator]) -> list[Finding]:
    """
    The verdicts on *readings*, in the order of the indicators.
    """
    return [_finding(indicator, readings) for indicator in indicators]


def _finding(indicator: Indicator, readings: Readings) -> Finding:
    measured = indicator.measure(readings)
    verdict = indicator.verdict(measured.value)

    return Finding(
        name=indicator.name,
        verdict=verdict,
        value=None if measured.value is None else round(measured.value, 3),
        unit=indicator.unit,
        shown=measured.shown or _shown(measured.value, indicator.unit),
        threshold=indicator.threshold,
        means=indicator.means,
        remedy="" if verdict == "pass" else indicator.remedy,
    )


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "not known"
    number = f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
    if unit in ("", "state"):
        return number
    return f"{number}%" if unit == "%" else f"{number} {unit}"


def export(findings: Sequence[Finding]) -> None:
    """
    Tell Prometheus the verdicts and the numbers.
    """
    for finding in findings:
        metrics.HEALTH.labels(finding.name).set(GRADES[finding.verdict])
        if finding.value is not None:
            metrics.HEALTH_VALUE.labels(finding.name).set(finding.value)


class Examiner:
    """
    Examines the bus now and then, if this is the first of the managers that live;
    whoever was first before exports nothing any more.
    """

    def __init__(
        self,
        redis_url: str,
        name: str,
        indicators: Sequence[Indicator],
        *,
        outbox_limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Prepare to examine, FIRST_AFTER_S from now on.
        """
        self._url = redis_url
        self._name = name
        self._indicators = indicators
        self._outbox_limit = outbox_limit
        self._clock = clock
        self._wire = Wire(redis_url, name=f"everbus-health-{name}")
        self._examined_at = clock() - EXAMINE_EVERY_S + FIRST_AFTER_S
        self._asked_at = clock() - PRIORITIES_EVERY_S
        self._priorities: tuple[int, ...] = ()
        self._said: dict[str, Verdict] = {}

    async def examine(self) -> None:
        """
        Examine the bus, if it is time and this manager's turn.

        Raises:
            EverbusError: the bus is away.
        """
        if self._clock() - self._examined_at < EXAMINE_EVERY_S:
            return
        self._examined_at = self._clock()
        if not await self._first():
            self._said.clear()
            metrics.HEALTH.clear()
            metrics.HEALTH_VALUE.clear()
            return
        readings = await read_bus(self._wire, outbox_limit=self._outbox_limit)
        if self._clock() - self._asked_at >= PRIORITIES_EVERY_S:
            self._asked_at = self._clock()
            self._priorities = await follower_priorities(self._url, readings.server)
        readings = readings._replace(priorities=self._priorities)
        findings = examine(readings, self._indicators)
        export(findings)
        self._log(findings)
        await self._clean(readings)

    async def close(self) -> None:
        """
        Export nothing any more.
        """
        metrics.HEALTH.clear()
        metrics.HEALTH_VALUE.clear()
        await self._wire.close()

    async def _first(self) -> bool:
        living = await self._wire.call("ZRANGE", names.REPLICAS, 0, -1)

        return bool(living) and min(living).decode() == self._name

    def _log(self, findings: Sequence[Finding]) -> None:
        """
        Tell of what has become worse since the last time.
        """
        for finding in findings:
            before = self._said.get(finding.name, "pass")
            worse = GRADES[finding.verdict] > GRADES[before]
            if worse and finding.name not in TOLD_AT_START:
                log.warning(
                    "health.worse",
                    indicator=finding.name,
                    verdict=finding.verdict,
                    value=finding.shown,
                    remedy=finding.remedy,
                )
            self._said[finding.name] = finding.verdict

    async def _clean(self, readings: Readings) -> None:
        fields = outdated(readings.statuses, readings.now_ms)
        if fields:
            await self._wire.call("HDEL", STATUS, *fields)


@asynccontextmanager
async def examining(
    redis_url: str, name: str, indicators: Sequence[Indicator], *, outbox_limit: int
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """
    What examines the bus whenever it is called and it is time, while the block runs.
    """
    if is_cluster(redis_url):
        # What it reads is about one server.
        log.warning("health.not_examined", reason="a Redis Cluster; not done yet")
        yield _nothing
        return
    examiner = Examiner(redis_url, name, indicators, outbox_limit=outbox_limit)
    try:
        yield examiner.examine
    finally:
        await examiner.close()


async def _nothing() -> None:
    """
    Examine nothing.
    """
