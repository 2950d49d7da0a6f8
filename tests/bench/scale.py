"""
Whether it carries what it is asked to: `python -m tests.bench.scale [--short]`.

Each measure has real servers of its own, new and empty, and checks afterwards that
nothing was lost, doubled or out of order; else the exit code is 1. What is compared
runs in turns. With --short a measure ends within two minutes, and its figures only
tell that it works.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from tests.bench import (
    scale_cost,
    scale_held,
    scale_hot,
    scale_sessions,
    scale_timeline,
)
from tests.bench.scale_goals import GOALS
from tests.bench.scale_rig import Scale
from tests.bench.tier_rig import Figures, stack

MEASURES: dict[str, Callable[[Scale], Awaitable[None]]] = {
    "sessions": scale_sessions.sessions,
    "held": scale_held.held,
    "timeline": scale_timeline.timeline,
    "memory": scale_cost.memory,
    "idle": scale_cost.idle,
    "hot": scale_hot.hot,
    "times": scale_hot.times,
}
# SecantusDB's cache, where it is to have more than the 256M of the embedded stack:
# with those, inserting becomes ten times slower from about 35,000 sessions on.
CACHES = {"held": "4G", "timeline": "4G"}
SHORT_PART, SHORT_MINUTES = 0.05, 0.2


async def measure(arguments: argparse.Namespace, figures: Figures) -> None:
    """
    All chosen measures, one after another.
    """
    ours = asyncio.current_task()
    assert ours is not None
    # As Ctrl-C does: unwinding is what ends the servers.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ours.cancel)
    part = SHORT_PART if arguments.short else 1.0
    minutes = arguments.minutes or (SHORT_MINUTES if arguments.short else 10.0)
    for name in arguments.only or MEASURES:
        print(name, file=sys.stderr)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            async with stack(Path(folder), CACHES.get(name, "256M")) as servers:
                scale = Scale(
                    servers,
                    figures,
                    part,
                    minutes=minutes,
                    rate=arguments.rate,
                    tails=arguments.tails,
                    entries=int((arguments.entries or 1_000_000) * part),
                    drained=arguments.drained,
                    pairs=arguments.pairs,
                )
                await MEASURES[name](scale)
        took_s = time.perf_counter() - started
        print(f"  {took_s:.0f} s, load {os.getloadavg()}", file=sys.stderr)


def main() -> int:
    """
    Measure, print the table and one line of JSON; 1 if anything was not true.
    """
    figures = Figures(GOALS)
    figures.notes["load before"] = os.getloadavg()
    try:
        uvloop.run(measure(_arguments(), figures))
    finally:
        figures.notes["load after"] = os.getloadavg()
        print(figures.table())
        print(json.dumps(figures.values | figures.notes))
    untrue = [n for n, v in figures.values.items() if _is_untrue(n, v)]
    print("NOT CLEAN: " + "; ".join(untrue) if untrue else "clean")

    return 1 if untrue else 0


def _is_untrue(name: str, values: list[float]) -> bool:
    """
    Whether the figure counts what must never be, and there was some.
    """
    goal = GOALS.get(name)

    return goal is not None and goal.most == 0 and any(values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=MEASURES, metavar="NAME")
    add("--short", action="store_true", help="a twentieth of the work")
    add("--minutes", type=float, help="how long `sessions` goes on; default 10")
    add("--rate", type=float, default=300, help="its requests/s")
    add("--tails", action="store_true", help="its sessions begin with full tails")
    add("--entries", type=int, help="length of the long timeline; default 1,000,000")
    add("--drained", action="store_true", help="its entries go through the archiver")
    add("--pairs", type=int, default=5, help="how often the arms of `hot` take turns")

    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
