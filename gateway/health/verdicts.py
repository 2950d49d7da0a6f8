"""
Verdicts on a whole bus: an indicator, its measurement and its remedy.

The indicators are in `gateway.health.indicators`. The managers' first, by name, exports
all verdicts each EXAMINE_EVERY_S; `everbus doctor` shows them.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

import structlog

from everbus.bus.cluster_wire import wire_to
from everbus.gateway.health.readings import Readings, read_bus, read_servers
from everbus.gateway.health.status import STATUS, outdated
from everbus.gateway.store import key_names
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

EXAMINE_EVERY_S = 15.0
# A manager that has just started takes its lanes first.
FIRST_AFTER_S = 4.0

# A manager warns of these when it starts.
WARNED_AT_START = frozenset(
    {
        "bus_config",
        "client_bounds",
        "eviction_policy",
        "fsync",
        "min_replicas",
        "notifications",
        "persistence",
        "quota_rights",
    }
)

Verdict = Literal["pass", "warn", "fail"]
GRADES: dict[Verdict, int] = {"pass": 0, "warn": 1, "fail": 2}


class Measurement(NamedTuple):
    """
    The measurement of one indicator.

    Attributes:
        value: None if unknown here, which passes.
        shown: text for people, where the number alone is not enough.
    """

    value: float | None
    shown: str = ""


# Values of indicators that measure a state, not a number.
FINE, WARNED, FAILED = 0.0, 1.0, 2.0


class Indicator(NamedTuple):
    """
    A measure of the bus with its thresholds.

    Attributes:
        unit: of the value; empty for a count, `state` for FINE, WARNED, FAILED.
        warn: a warning from this value on; None: never.
        fail: a failure from this value on; None: never.
        low: whether small values are bad: then those at or below the thresholds.
        wanted: text for people, in place of the thresholds.
    """

    name: str
    unit: str
    means: str
    remedy: str
    measure: Callable[[Readings], Measurement]
    warn: float | None = None
    fail: float | None = None
    low: bool = False
    wanted: str = ""

    def verdict(self, value: float | None) -> Verdict:
        """
        The verdict on *value*.
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
        Its thresholds as text.
        """
        if self.wanted:
            return self.wanted
        bounds = (("warn", self.warn), ("fail", self.fail))
        parts = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]

        return ", ".join(parts)


class IndicatorResult(NamedTuple):
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


def examine(
    readings: Readings, indicators: Sequence[Indicator]
) -> list[IndicatorResult]:
    """
    The verdicts on *readings*, in the order of the indicators.
    """
    return [_result(indicator, readings) for indicator in indicators]


def _result(indicator: Indicator, readings: Readings) -> IndicatorResult:
    measured = indicator.measure(readings)
    verdict = indicator.verdict(measured.value)

    return IndicatorResult(
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


def export(findings: Sequence[IndicatorResult]) -> None:
    """
    Export the verdicts and the values to Prometheus.
    """
    for finding in findings:
        metrics.HEALTH.labels(finding.name).set(GRADES[finding.verdict])
        if finding.value is not None:
            metrics.HEALTH_VALUE.labels(finding.name).set(finding.value)


class Examiner:
    """
    Examines the bus at intervals, if this is the first live manager by name.

    A manager that is no longer the first stops exporting.
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
        Prepare; the first examination is FIRST_AFTER_S from now.
        """
        self._url = redis_url
        self._name = name
        self._indicators = indicators
        self._outbox_limit = outbox_limit
        self._clock = clock
        self._wire = wire_to(redis_url, name=f"everbus-health-{name}")
        self._examined_at = clock() - EXAMINE_EVERY_S + FIRST_AFTER_S
        self._reported: dict[str, Verdict] = {}

    async def examine(self) -> None:
        """
        Examine the bus, if it is time and this manager's turn.

        Raises:
            EverbusError: the bus is away.
        """
        if self._clock() - self._examined_at < EXAMINE_EVERY_S:
            return
        self._examined_at = self._clock()
        if not await self._is_first():
            self._reported.clear()
            metrics.HEALTH.clear()
            metrics.HEALTH_VALUE.clear()
            return
        readings = await read_bus(self._wire, outbox_limit=self._outbox_limit)
        readings = readings._replace(servers=await read_servers(self._url))
        findings = examine(readings, self._indicators)
        export(findings)
        self._log(findings)
        await self._remove_outdated(readings)

    async def close(self) -> None:
        """
        Stop exporting.
        """
        metrics.HEALTH.clear()
        metrics.HEALTH_VALUE.clear()
        await self._wire.close()

    async def _is_first(self) -> bool:
        replicas = await self._wire.call("ZRANGE", key_names.REPLICAS, 0, -1)

        return bool(replicas) and min(replicas).decode() == self._name

    def _log(self, findings: Sequence[IndicatorResult]) -> None:
        """
        Log the indicators that became worse since the last time.
        """
        for finding in findings:
            before = self._reported.get(finding.name, "pass")
            worse = GRADES[finding.verdict] > GRADES[before]
            if worse and finding.name not in WARNED_AT_START:
                log.warning(
                    "health.worse",
                    indicator=finding.name,
                    verdict=finding.verdict,
                    value=finding.shown,
                    remedy=finding.remedy,
                )
            self._reported[finding.name] = finding.verdict

    async def _remove_outdated(self, readings: Readings) -> None:
        fields = outdated(readings.statuses, readings.now_ms)
        if fields:
            await self._wire.call("HDEL", STATUS, *fields)


@asynccontextmanager
async def examining(
    redis_url: str, name: str, indicators: Sequence[Indicator], *, outbox_limit: int
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """
    A function that examines the bus when it is time, while the block runs.
    """
    examiner = Examiner(redis_url, name, indicators, outbox_limit=outbox_limit)
    try:
        yield examiner.examine
    finally:
        await examiner.close()
