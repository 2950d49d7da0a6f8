"""
The cost of a turn of five entries and a patch, beside one update with the same patch.

`python -m tests.bench.turns`: CPU of manager, bus server and MAD, per command. Both
arms in turn, on one stack; each session is then at the version that its commands make.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from everbus.bus import Mad
from tests.bench.patches import another_of
from tests.bench.rig import cpu_s
from tests.replicas import Part, a_mad, manager
from tests.servers import RealServer, valkey

PATCH = {"context_summary": {"topic": "x" * 260}}
ENTRY = {"role": "assistant", "text": "x" * 40}
ENTRIES = 5
SESSIONS = 100
AT_ONCE = 64

Take = Callable[[Mad, str], Awaitable[object]]


class Used(NamedTuple):
    """
    CPU microseconds of one command.
    """

    manager: float
    server: float
    mad: float

    @property
    def all(self) -> float:
        """
        Of all three.
        """
        return sum(self)


async def an_update(mad: Mad, session: str) -> object:
    return await mad.update_session(session, another_of(PATCH), timeout=60)


async def a_turn(mad: Mad, session: str) -> object:
    entries = [ENTRY] * ENTRIES
    return await mad.turn(session, entries, another_of(PATCH), timeout=60)


async def five_appends(mad: Mad, session: str) -> object:
    await asyncio.gather(
        *(mad.append_and_wait(session, ENTRY, timeout=60) for _ in range(ENTRIES))
    )
    return await an_update(mad, session)


ARMS: dict[str, Take] = {
    "update": an_update,
    "turn": a_turn,
    "six commands": five_appends,
}


async def measured(
    mad: Mad, sessions: list[str], take: Take, count: int, pids: tuple[int, ...]
) -> Used:
    left = iter(range(count))

    async def worker() -> None:
        for n in left:
            await take(mad, sessions[n % len(sessions)])

    before = [cpu_s(pid) for pid in pids]
    async with asyncio.TaskGroup() as workers:
        for _ in range(AT_ONCE):
            workers.create_task(worker())
    used = [cpu_s(pid) - b for pid, b in zip(pids, before, strict=True)]

    return Used(*(1e6 * one / count for one in used))


async def passes(count: int, n: int) -> dict[str, list[Used]]:
    """
    CPU of each arm in *n* passes of *count* commands.
    """
    found: dict[str, list[Used]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            valkey(Path(folder)) as server,
            manager(Path(folder), server.url, "m0") as part,
            a_mad(server.url) as mad,
        ):
            await _passes(mad, _pids(part, server), count, n, found)
    return found


async def _passes(
    mad: Mad, pids: tuple[int, ...], count: int, n: int, found: dict[str, list[Used]]
) -> None:
    sessions = [(await mad.create_session("ada")).id for _ in range(SESSIONS)]
    for turn in range(n + 1):
        for name, take in ARMS.items():
            used = await measured(mad, sessions, take, count, pids)
            if turn:  # the first one warms up
                found[name].append(used)
    done = [await mad.get_session(one) for one in sessions]
    taken = count * (n + 1)
    assert sum(one.version - 1 for one in done) == taken * len(ARMS)
    assert sum(one.last_seq for one in done) == taken * ENTRIES * 2


def _pids(part: Part, server: RealServer) -> tuple[int, ...]:
    return part.pid, server.pid, os.getpid()


def report(found: dict[str, list[Used]]) -> str:
    """
    The table: median [min-max] of the passes.
    """
    lines = [
        "| CPU us of | manager | server | MAD | all | all : update |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in found.items():
        cells = [_shown([one[at] for one in some], "{:.0f}") for at in range(3)]
        cells.append(_shown([one.all for one in some], "{:.0f}"))
        ratios = [a.all / b.all for a, b in zip(some, found["update"], strict=True)]
        cells.append(_shown(ratios, "{:.2f}"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(some: list[float], form: str) -> str:
    middle, low, high = (
        form.format(one) for one in (statistics.median(some), min(some), max(some))
    )
    return f"{middle} [{low}-{high}]"


def main() -> None:
    """
    Measure and print.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--passes", type=int, default=7)
    given = parser.parse_args()
    found = asyncio.run(passes(given.count, given.passes))
    print(report(found))


if __name__ == "__main__":
    main()
