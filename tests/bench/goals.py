"""
What figures come to: ratios within a pass, goals, and the tables that are printed.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from tests.bench import rig

Figures = Mapping[str, Sequence[float]]


class Ratio(NamedTuple):
    """
    One figure over another of the same pass.

    Attributes:
        higher: whether more is better.
    """

    one: str
    other: str
    higher: bool = True


class Goal(NamedTuple):
    """
    What a figure's median is to reach.
    """

    figure: str
    bound: float
    at_least: bool = True

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:,g}"

    def met(self, value: float) -> bool:
        """
        Whether *value* keeps it.
        """
        return value >= self.bound if self.at_least else value <= self.bound


def ratios(figures: Figures, wanted: Mapping[str, Ratio]) -> dict[str, list[float]]:
    """
    The *wanted* ratios, pass by pass, of those figures that were measured.
    """
    return {
        name: [
            a / b for a, b in zip(figures[ratio.one], figures[ratio.other], strict=True)
        ]
        for name, ratio in wanted.items()
        if ratio.one in figures and ratio.other in figures
    }


def table(figures: Figures) -> str:
    """
    A Markdown table, median [min-max].
    """
    lines = ["| figure | median [min-max] | n |", "|---|---|---|"]
    for name, values in figures.items():
        shown = rig.spread(list(values), digits_of(values))
        lines.append(f"| {name} | {shown} | {len(values)} |")
    return "\n".join(lines)


def verdicts(figures: Figures, goals: Sequence[Goal]) -> str:
    """
    A Markdown table of what was wanted, what the median came to, and whether it is met.
    """
    lines = ["| figure | wanted | got | met |", "|---|---|---|---|"]
    for goal in goals:
        values = figures.get(goal.figure)
        if not values:
            lines.append(f"| {goal.figure} | {goal.wanted} | not measured here | |")
            continue
        got = rig.median(list(values))
        met = "yes" if goal.met(got) else "**no**"
        shown = rig.spread(list(values), digits_of(values))
        lines.append(f"| {goal.figure} | {goal.wanted} | {shown} | {met} |")
    return "\n".join(lines)


def digits_of(values: Sequence[float]) -> int:
    """
    How many decimals tell these values apart.
    """
    return 2 if max(values) < 100 else 0


async def passes(
    a_pass: Callable[[], Awaitable[None]], pairs: int, until: float = float("inf")
) -> None:
    """
    Run *pairs* passes and tell of each; none but the first begins after *until*, of
    time.monotonic().
    """
    for number in range(pairs):
        if number and time.monotonic() > until:
            print("no time for another pass", file=sys.stderr)
            return
        started = time.perf_counter()
        await a_pass()
        took_s = time.perf_counter() - started
        print(
            f"pass {number + 1} of {pairs}: {took_s:.0f} s, {loaded()}",
            file=sys.stderr,
        )


def machine() -> dict[str, object]:
    """
    What the figures were measured on, for the line of JSON.
    """
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": loaded(),
    }


def loaded() -> str:
    """
    The machine's load, our own processes included.
    """
    return "load " + ", ".join(f"{load:.2f}" for load in os.getloadavg())


def line(figures: Figures, **more: object) -> str:
    """
    Everything as one line of JSON.
    """
    return json.dumps({"figures": figures, "machine": machine(), **more})
