"""
Has it become slower? `make bench`: `python -m tests.bench.regress [--strict]`.

A short run of the spine and of single calls; its ratios beside the committed ones. A
ratio is judged, an absolute figure is shown: those of another machine, or of this one
in a slow phase, say nothing. Less than five minutes, about two here; with `--commit`
ten passes, about five minutes, are what later runs are compared with.

Exit code 0 also if something is worse: machines differ in more than speed (cores,
disk, neighbours), and who builds a package must not fail over that. `--strict` makes
it 1, for a machine that is known.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import uvloop

from tests.bench import goals, predecessor, rig, spine

COMMITTED = Path(__file__).with_name("committed.json")
SCALE = 0.2
CALLS = 200
PAIRS, COMMIT_PAIRS = 4, 10
# No pass of the spine is begun later than this, and all of it ends by LIMIT_S.
LAST_PASS_S = 150.0
LIMIT_S = 285.0
# How far beyond the worst committed pass the median of a run is still the same. If the
# ten passes and the four come from one spread, the two lowest of all fourteen are both
# new in 7 of 100 runs, the three lowest in 1: with twenty-five lines that would be
# news every day. So some room beyond it, which a loss of a fifth does not hide in.
MARGIN = 1.15
# Ratios that an arm computes itself.
MEASURED = {"request p50 : PING p50": False}
# Shown, not judged.
SHOWN = (
    spine.NO_REPLY,
    spine.BACKLOG,
    spine.WITH_REPLY,
    "appends published/s",
    "50 writers on one session, /s",
    "half load p50 ms",
    "half load p99 ms",
    "request p50 us",
    "PING p50 us",
    spine.WORKER,
    spine.SERVER,
    "replica's memory, MB",
)

Verdict = Literal["within", "worse", "better", "new", "not measured"]


class Known(NamedTuple):
    """
    What the passes of the committed run came to.
    """

    median: float
    least: float
    most: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Known":
        return cls(rig.median(values), min(values), max(values), len(values))


class Line(NamedTuple):
    """
    One ratio, today and as committed.

    Attributes:
        higher: whether more is better.
    """

    name: str
    higher: bool
    today: list[float]
    known: Known | None

    @property
    def allowed(self) -> float:
        """
        The worst median that is not worse.
        """
        if self.known is None:
            raise ValueError(f"{self.name} is not committed")
        return self.known.least / MARGIN if self.higher else self.known.most * MARGIN

    @property
    def verdict(self) -> Verdict:
        """
        How today's median lies to the passes of the committed run.
        """
        if not self.today:
            return "not measured"
        if self.known is None:
            return "new"
        now, known = rig.median(self.today), self.known
        if now < self.allowed if self.higher else now > self.allowed:
            return "worse"
        if self.higher:
            return "better" if now > known.most * MARGIN else "within"
        return "better" if now < known.least / MARGIN else "within"

    @property
    def row(self) -> str:
        """
        Its row of the table.
        """
        today = rig.spread(self.today, 2) if self.today else ""
        known, allowed = "", ""
        if self.known is not None:
            middle, least, most, _ = self.known
            known = f"{middle:,.2f} [{least:,.2f}-{most:,.2f}]"
            allowed = f"{'≥' if self.higher else '≤'} {self.allowed:,.2f}"
        verdict = f"**{self.verdict}**" if self.verdict == "worse" else self.verdict
        return f"| {self.name} | {today} | {known} | {allowed} | {verdict} |"


def compared(today: dict[str, list[float]], committed: dict[str, Any]) -> list[Line]:
    """
    A line a ratio, of today or committed.
    """
    known = {name: Known(**told) for name, told in committed["ratios"].items()}
    names = [*today, *(name for name in known if name not in today)]
    higher = directions()

    return [
        Line(name, higher[name], today.get(name, []), known.get(name))
        for name in names
        if name in higher
    ]


def directions() -> dict[str, bool]:
    """
    Ratio → whether more is better.
    """
    every = {**spine.RATIOS, **predecessor.RATIOS}

    return {name: ratio.higher for name, ratio in every.items()} | MEASURED


def ratios_in(figures: goals.Figures) -> dict[str, list[float]]:
    """
    The ratios of a run, pass by pass.
    """
    found = goals.ratios(figures, {**spine.RATIOS, **predecessor.RATIOS})
    found |= {name: list(figures[name]) for name in MEASURED if name in figures}

    return found


def summary(lines: list[Line]) -> str:
    """
    One sentence about all of them.
    """
    worse = [line.name for line in lines if line.verdict == "worse"]
    within = sum(line.verdict in ("within", "better") for line in lines)
    other = len(lines) - within - len(worse)
    told = f"{within} of {len(lines)} ratios within the spread or better"
    told += f", {other} not comparable" if other else ""

    return told + (f"; WORSE: {', '.join(worse)}" if worse else "; none is worse")


def report(figures: goals.Figures, lines: list[Line], committed: dict[str, Any]) -> str:
    """
    The table, what is only shown, and the summary.
    """
    head = "| ratio | today | committed | allowed | |\n|---|---|---|---|---|"
    here, there = goals.machine(), committed["machine"]
    note = ""
    if here["cores"] != there["cores"]:
        note = (
            f"\n\nCommitted on {there['cores']} cores, these are {here['cores']}: the "
            "ratios of replicas, of AOF and of the replica's rate to redis-benchmark's "
            "need not agree."
        )
    shown = {name: figures[name] for name in SHOWN if name in figures}
    rows = "\n".join(line.row for line in lines)
    told = "Not judged, since machines differ:"

    return f"{head}\n{rows}\n\n{told}\n\n{goals.table(shown)}{note}\n\n{summary(lines)}"


async def measure(pairs: int, last_pass_s: float) -> dict[str, list[float]]:
    """
    All figures of a short run; the two parts one after the other.
    """
    until = time.monotonic() + last_pass_s
    ran = await spine.measure(pairs, SCALE, spine.PARTS, until=until)
    single = await predecessor.measure(pairs, CALLS)

    return {**ran.figures, **single}


async def _limited(pairs: int) -> dict[str, list[float]]:
    try:
        async with asyncio.timeout(LIMIT_S):
            return await measure(pairs, LAST_PASS_S)
    except TimeoutError:
        raise SystemExit(
            f"the short bench took more than {LIMIT_S:.0f} s and was ended. Run it on "
            "a machine with less load, or `python -m tests.bench.spine` with no limit"
        ) from None


def commit(figures: goals.Figures) -> None:
    """
    Write what later runs are compared with.
    """
    known = {n: Known.of(values)._asdict() for n, values in ratios_in(figures).items()}
    rounded = {
        name: {key: round(value, 4) for key, value in told.items()}
        for name, told in known.items()
    }
    told = {"machine": goals.machine(), "ratios": rounded}
    COMMITTED.write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    """
    Measure, and compare or commit.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, help="passes; 4, or 10 to commit")
    parser.add_argument("--commit", action="store_true", help="write committed.json")
    parser.add_argument("--strict", action="store_true", help="exit 1 if any is worse")
    arguments = parser.parse_args()
    if arguments.commit:
        pairs = arguments.pairs or COMMIT_PAIRS
        figures = uvloop.run(measure(pairs, float("inf")))
        commit(figures)
        print(goals.table(ratios_in(figures)))
        return
    if not COMMITTED.exists():
        sys.exit(
            f"there is no {COMMITTED.name} to compare with: run with --commit first"
        )
    committed = json.loads(COMMITTED.read_text())
    figures = uvloop.run(_limited(arguments.pairs or PAIRS))
    lines = compared(ratios_in(figures), committed)
    print(report(figures, lines, committed))
    print(goals.line(figures))
    if arguments.strict and any(line.verdict == "worse" for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
