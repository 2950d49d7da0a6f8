"""
The report of a campaign: figures by kind, as a table and as JSON.
"""

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from tests.chaos.campaign.episodes import Verdict


class KindRow(msgspec.Struct, kw_only=True):
    """
    The figures of one kind; an episode of two kinds counts for both.

    Attributes:
        bit: the sum of the proofs.
    """

    kind: str
    episodes: int
    not_bitten: int
    bit: int
    acknowledged: int
    violations: int
    recovery_p50_s: float
    recovery_max_s: float


class Report(msgspec.Struct, kw_only=True):
    """
    The whole campaign.

    Attributes:
        episodes: those of which every fault bit; idle: the others.
    """

    seed: int
    machine: str
    episodes: int
    idle: int
    kinds: int
    acknowledged: int
    unknown: int
    refused: dict[str, int]
    lost_by_contract: dict[str, int]
    violations: dict[str, int]
    recovery_p50_s: float
    recovery_p99_s: float
    recovery_max_s: float
    failovers: int
    failover_p50_s: float
    failover_p99_s: float
    failover_max_s: float
    took_s: float
    rows: list[KindRow]
    found: list[Verdict]
    all: list[Verdict]


def report_of(verdicts: Sequence[Verdict], seed: int) -> Report:
    """
    The report of all episodes.
    """
    by_kind: dict[str, list[Verdict]] = defaultdict(list)
    for one in verdicts:
        for kind in one.kinds:
            by_kind[kind].append(one)
    good = [one for one in verdicts if one.counts]
    recoveries = [one.recovery_s for one in good]
    failovers = [one.failover_s for one in good if one.failover_s is not None]
    return Report(
        seed=seed,
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
        episodes=len(good),
        idle=len(verdicts) - len(good),
        kinds=len({kind for one in good for kind in one.kinds}),
        acknowledged=sum(one.acknowledged for one in verdicts),
        unknown=sum(one.unknown for one in verdicts),
        refused=_sum(one.refused for one in verdicts),
        lost_by_contract=_sum(one.lost_by_contract for one in verdicts),
        violations=_sum(one.violations for one in verdicts),
        recovery_p50_s=_share(recoveries, 0.5),
        recovery_p99_s=_share(recoveries, 0.99),
        recovery_max_s=_share(recoveries, 1),
        failovers=len(failovers),
        failover_p50_s=_share(failovers, 0.5),
        failover_p99_s=_share(failovers, 0.99),
        failover_max_s=_share(failovers, 1),
        took_s=round(sum(one.took_s for one in verdicts), 1),
        rows=[_row(kind, by_kind[kind]) for kind in sorted(by_kind)],
        found=[one for one in verdicts if one.violations],
        all=list(verdicts),
    )


def _row(kind: str, verdicts: Sequence[Verdict]) -> KindRow:
    recoveries = [one.recovery_s for one in verdicts]
    return KindRow(
        kind=kind,
        episodes=sum(one.bit[kind] > 0 for one in verdicts),
        not_bitten=sum(one.bit[kind] == 0 for one in verdicts),
        bit=sum(one.bit[kind] for one in verdicts),
        acknowledged=sum(one.acknowledged for one in verdicts),
        violations=sum(sum(one.violations.values()) for one in verdicts),
        recovery_p50_s=round(median(recoveries), 2),
        recovery_max_s=round(max(recoveries), 2),
    )


def table_of(report: Report) -> str:
    """
    The report as Markdown.
    """
    lines = [
        "| kind | episodes | not bitten | proof | acknowledged | violations "
        "| recovery p50 s | max s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += (
        f"| {r.kind} | {r.episodes} | {r.not_bitten} | {r.bit:,} | "
        f"{r.acknowledged:,} | {r.violations} | {r.recovery_p50_s:.2f} | "
        f"{r.recovery_max_s:.2f} |"
        for r in report.rows
    )
    lines += [
        "",
        f"seed {report.seed}: {report.episodes} episodes of {report.kinds} kinds "
        f"({report.idle} more did not bite), {report.acknowledged:,} acknowledged "
        f"writes in {report.took_s:,.0f} s, violations: {report.violations or 0}",
        f"lost by contract: {report.lost_by_contract or 0}; refused: "
        f"{report.refused}; never known: {report.unknown}",
        f"recovery p50 {report.recovery_p50_s:.2f} s, p99 "
        f"{report.recovery_p99_s:.2f} s, max {report.recovery_max_s:.2f} s; "
        f"{report.failovers} failovers p50 {report.failover_p50_s:.2f} s, p99 "
        f"{report.failover_p99_s:.2f} s, max {report.failover_max_s:.2f} s; "
        f"{report.machine}",
    ]
    return "\n".join(lines)


def written(report: Report, path: Path) -> None:
    """
    Write the report as JSON.
    """
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _share(values: Sequence[float], share: float) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
