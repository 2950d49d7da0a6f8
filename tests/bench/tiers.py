"""
How fast the tiers are: `python -m tests.bench.tiers [--short] [--only NAME]`.

Each pass of each measure has servers of its own, on an empty folder. What is to be
compared runs in turns within one pass: judge the ratios, and the goals where the
issue gives one.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

from tests.bench import tier_reads, tier_writes
from tests.bench.tier_rig import Figures, Goal, Run, stack

GOALS = {
    "warm get, 1 in flight, p95 ms": Goal(20, "< 20 ms"),
    "warm get, 16 in flight, p95 ms": Goal(20, "< 20 ms"),
    "hot get p99, beside a waiting session : without": Goal(2, "≤ 2 x"),
    "cold get_session, 1,000,000 entries, s": Goal(2, "< 2 s"),
    "cold first page, 1,000,000 entries, s": Goal(2, "< 2 s"),
    "archiver's peak MB, 100,000 entries from MongoDB": Goal(200, "< 200 MB"),
    "archiver's peak MB, 1,000,000 entries generated": Goal(200, "< 200 MB"),
    "archiver's peak MB while it drains": Goal(200, "< 200 MB"),
    "append, us each: last_seq 1,000,000 : 100": Goal(1.3, "≤ 1.3 x"),
    "append_and_wait p50: last_seq 1,000,000 : 100": Goal(1.3, "≤ 1.3 x"),
    "warm write, us an entry: 100,000 held : 100": Goal(1.3, "≤ 1.3 x"),
    "Redis bytes a session, largest": Goal(50 * 1024, "< 50 KB"),
    "checkpoint, warm, p99 ms": Goal(500, "< 500 ms"),
    "checkpoint, hot, p99 ms": Goal(500, "< 500 ms"),
}

MEASURES: dict[str, Callable[[Run], Awaitable[None]]] = {
    "drain": tier_writes.drain,
    "warm_get": tier_reads.warm_get,
    "waits": tier_reads.waits,
    "cold_get": tier_reads.cold_get,
    "archive": tier_writes.archive,
    "append": tier_writes.append,
    "append_warm": tier_writes.append_warm,
    "checkpoint": tier_writes.checkpoint,
    "durability": tier_writes.durability,
    "find": tier_reads.find,
}
# SecantusDB's cache, where it is to have more than in the embedded stack: with 256M
# inserting becomes ten times slower from about 35,000 sessions on.
CACHES = {"find": "4G"}


async def measure(
    figures: Figures, names: Sequence[str], pairs: int, scale: float
) -> None:
    """
    All of *names*, *pairs* times, each pass on servers of its own.
    """
    for number in range(pairs):
        for name in names:
            print(f"{name}, pass {number + 1} of {pairs}", file=sys.stderr)
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                async with stack(Path(folder), CACHES.get(name, "256M")) as made:
                    await MEASURES[name](Run(made, figures, scale))
            took_s = time.perf_counter() - started
            print(f"  {took_s:.0f} s, load {os.getloadavg()}", file=sys.stderr)


def main() -> None:
    """
    Measure, and print the table and one line of JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="passes of all measures")
    parser.add_argument("--short", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", action="append", choices=MEASURES, metavar="NAME")
    arguments = parser.parse_args()
    figures = Figures(GOALS)
    figures.notes["load before"] = os.getloadavg()
    chosen = arguments.only or list(MEASURES)
    scale = 0.1 if arguments.short else 1.0
    try:
        uvloop.run(measure(figures, chosen, arguments.pairs, scale))
    finally:
        figures.notes["load after"] = os.getloadavg()
        print(figures.table())
        print(json.dumps(figures.values | figures.notes))


if __name__ == "__main__":
    main()
