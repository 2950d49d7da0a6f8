"""
The report of a bench: figures and verdict, for people and for programs.
"""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import msgspec

from everbus.compose.bench.checking import CheckMethod
from everbus.compose.bench.histogram import Histogram
from everbus.compose.bench.kills import Kill
from everbus.compose.bench.plan import CALLS, UNANSWERED, BenchPlan
from everbus.compose.bench.run import Bench
from everbus.compose.verify.violations import KINDS, Violation

CLIENT = (
    "the public SDK (bus.connect, the methods of Mad), {mads} MADs in one process, "
    "which shares this machine's cores with what it measures if that is here"
)


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """
    The figures of one call; a call without a reply ends when it is on the bus.
    """

    call: str
    answered: bool
    count: int
    per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """
    The extent of the check, and its reader.

    Attributes:
        by: `sdk` or `outboxes`, see `compose.bench.checking`.
        timelines_read: sessions whose timelines were checked entry by entry.
        timelines_measured: checked by their length, for *why_not*.
        acknowledged: writes that must be there.
        refused: writes that must not; unknown: never answered, there once or not.
    """

    by: str
    sessions: int
    timelines_read: int
    timelines_measured: int
    why_not: str
    acknowledged: int
    refused: int
    unknown: int


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """
    The whole report.

    Attributes:
        ended: why the load ended early; empty if it did not.
        rows: of the measured time; all: of all calls together.
        never_sent: due by --rate, and not sent before the end.
        late_p99_ms: how late commands were sent after they were due.
        settled_s: from the load's end until all was applied.
        applied_per_s: writes acknowledged, from the start until all was applied.
        violations: kind → number; first: the first few of each.
    """

    verdict: str
    clean: bool
    ended: str
    plan: BenchPlan
    client: str
    place: str
    software: dict[str, str]
    load_s: float
    rows: tuple[ReportRow, ...]
    refusals: dict[str, int]
    never_sent: int
    late_p50_ms: float
    late_p99_ms: float
    settled_s: float
    applied_per_s: float
    checked: Checked
    kills: tuple[Kill, ...]
    violations: dict[str, int]
    first: tuple[Violation, ...]


def report_of(bench: Bench, method: CheckMethod, place: str) -> BenchReport:
    """
    The report of a bench that was checked; *place* says on what it ran.
    """
    figures, violations = bench.figures, bench.violations
    checked = _checked(bench, method)
    return BenchReport(
        verdict=violations.line(),
        clean=violations.clean,
        ended=bench.ended,
        plan=bench.plan,
        client=CLIENT.format(mads=len(bench.mads)),
        place=place,
        software=_software(),
        load_s=round(bench.load_s, 3),
        rows=tuple(_rows(bench)),
        refusals={f"{call}: {c}": n for (call, c), n in figures.refusals.most_common()},
        never_sent=bench.load.schedule.never_sent,
        late_p50_ms=_ms(figures.late, 0.5),
        late_p99_ms=_ms(figures.late, 0.99),
        settled_s=round(bench.settled_s - bench.load_s, 3),
        applied_per_s=round(checked.acknowledged / max(bench.settled_s, 1e-9), 1),
        checked=checked,
        kills=tuple(bench.kills),
        violations={kind: violations.counts[kind] for kind in KINDS},
        first=tuple(violations.first),
    )


def notes(report: BenchReport) -> Iterator[str]:
    """
    The notes beside the table, line by line.
    """
    yield f"on {report.place}; by {report.client}"
    if report.ended:
        yield f"ended early, after {report.load_s:.1f} s: {report.ended}"
    yield from _rate_notes(report)
    for refusal, count in report.refusals.items():
        yield f"refused or unanswered: {count:,} {refusal}"
    yield (
        f"all applied {report.settled_s:.2f} s after the last was sent: "
        f"{report.applied_per_s:,.0f} acknowledged writes/s from start to end"
    )
    if report.kills:
        yield _kills_note(report.kills)
    checked = report.checked
    yield (
        f"checked by {checked.by}: {checked.acknowledged:,} acknowledged, "
        f"{checked.refused:,} refused, {checked.unknown:,} unknown writes in "
        f"{checked.sessions:,} sessions"
    )
    if checked.timelines_measured:
        yield (
            f"{checked.timelines_measured:,} timelines were checked by their length, "
            f"{checked.timelines_read:,} entry by entry: {checked.why_not}"
        )


def _rate_notes(report: BenchReport) -> Iterator[str]:
    if report.plan.rate is not None:
        yield (
            f"rate {report.plan.rate:g}/s, latency from when each was due; sent late "
            f"by p50 {report.late_p50_ms:g} ms, p99 {report.late_p99_ms:g} ms"
        )
    if report.never_sent:
        yield (
            f"RATE NOT REACHED: {report.never_sent:,} were due and never sent, so the "
            "latencies are worse than they look"
        )


def _kills_note(kills: tuple[Kill, ...]) -> str:
    bit = sum(kill.bit for kill in kills)
    lanes, hit = sum(k.lanes for k in kills), sum(k.in_flight for k in kills)
    waited = sum(kill.waited for kill in kills)
    back = [kill.ready_s for kill in kills if kill.ready_s is not None]
    slowest = f"; back after {max(back):.1f} s at most" if back else ""

    return (
        f"{len(kills)} replicas killed (SIGKILL), {bit} of them at work: {lanes} "
        f"lanes, {hit:,} commands in flight in these, {waited:,} that waited for "
        f"another replica{slowest}"
    )


def _rows(bench: Bench) -> Iterator[ReportRow]:
    figures = bench.figures
    took_s = max(figures.last_s - figures.warm_up_s, 1e-9)
    for call in CALLS:
        its = figures.calls.get(call)
        if its is not None:
            yield ReportRow(
                call=call,
                answered=call not in UNANSWERED,
                count=its.count,
                per_s=round(its.count / took_s, 1),
                p50_ms=_ms(its, 0.5),
                p90_ms=_ms(its, 0.9),
                p99_ms=_ms(its, 0.99),
                p999_ms=_ms(its, 0.999),
                max_ms=its.max_us / 1000,
            )


def _checked(bench: Bench, method: CheckMethod) -> Checked:
    marks = [
        its
        for expectation in bench.expectations
        for its in (*expectation.appends.values(), *expectation.updates.values())
    ]
    return Checked(
        by=method.by,
        sessions=len(bench.expectations),
        timelines_read=method.whole,
        timelines_measured=method.measured,
        why_not=method.why_not,
        acknowledged=sum(its.acknowledged for its in marks),
        refused=sum(len(its.refused) for its in marks),
        unknown=sum(len(its.doubtful) for its in marks),
    )


def _software() -> dict[str, str]:
    packages = ("everbus", "redis", "hiredis", "msgspec", "uvloop")

    return {"python": platform.python_version()} | {p: version(p) for p in packages}


def _ms(latencies: Histogram, share: float) -> float:
    return latencies.quantile_us(share) / 1000


def json_of(report: BenchReport) -> bytes:
    """
    The report as one line of JSON.
    """
    plain: Any = msgspec.to_builtins(report)
    for kill, plainly in zip(report.kills, plain["kills"], strict=True):
        plainly["bit"] = kill.bit

    return msgspec.json.encode(plain)
