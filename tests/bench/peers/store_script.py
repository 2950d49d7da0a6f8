"""
What the scripts of the session stores have in common: the same calls, timed alike.

`python -m tests.bench.peers.stores.NAME TARGET COUNT [--watch PID]…` enters 50 entries
of 300 bytes in each of 50 sessions, reads and appends COUNT times each way, counts
what is there, and tells it all in one line of JSON. A session has one writer at a
time. Only the standard library: these run under the peers' own Python as well.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.bench.peers import script

SESSIONS = 50
ENTRIES = 50
TAIL = 20
AT_ONCE = 16
APPEND_AT_ONCE = f"append, {AT_ONCE} at once"
# Of a store that acknowledges later, or never.
LATER = "append, not waited for"

Call = Callable[[int], Awaitable[object]]


class Store(Protocol):
    """
    A session store with 50 sessions that are known by their number.
    """

    async def open(self, target: str) -> bool:
        """
        Make the sessions; whether they have their 50 entries already.
        """

    async def append(self, session: int, text: str) -> object:
        """
        Add one entry; returns when it is stored.
        """

    async def tail(self, session: int) -> int:
        """
        Read the newest TAIL entries; how many there are.
        """

    async def full(self, session: int) -> int:
        """
        Read all entries; how many there are.
        """

    async def count(self, session: int) -> int:
        """
        How many entries a session has.
        """

    async def close(self) -> None:
        """
        Close what open() opened.
        """


def texts() -> Iterator[str]:
    """
    Entries of 300 bytes, each another one.
    """
    number = 0
    while True:
        yield f"{number:0{script.DIGITS}d}{script.TAIL}"
        number += 1


def cpu_s(pids: list[int]) -> float:
    """
    CPU seconds of other processes, by the scheduler's accounting.
    """
    threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]
    used = [int((path / "schedstat").read_text().split()[0]) for path in threads]
    return sum(used) / 1e9


class Stopwatch:
    """
    Times calls, and the CPU that this process and the *watched* ones spend on them.
    """

    def __init__(self, watched: list[int]) -> None:
        self._watched = watched
        self.found: dict[str, dict[str, Any]] = {}

    async def time(
        self, name: str, call: Call, count: int, at_once: int = 1, last: Any = None
    ) -> None:
        """
        Call so many times, then await *last*, which counts towards the rate.
        """
        took: list[float] = []
        lanes = [iter(range(lane, count, at_once)) for lane in range(at_once)]

        async def lane(numbers: Iterator[int]) -> None:
            for number in numbers:
                began = time.perf_counter()
                await call(number)
                took.append(time.perf_counter() - began)

        cpu = time.process_time(), cpu_s(self._watched)
        began = time.perf_counter()
        await asyncio.gather(*map(lane, lanes))
        if last:
            await last()
        wall = time.perf_counter() - began
        used = time.process_time() - cpu[0], cpu_s(self._watched) - cpu[1]
        self.found[name] = {"per_s": count / wall, **_shares(took, used)}


def _shares(took_s: list[float], used_s: tuple[float, float]) -> dict[str, float]:
    took, count = sorted(took_s), len(took_s)
    return {
        "n": count,
        "p50_ms": took[count // 2] * 1e3,
        "p99_ms": took[min(count - 1, int(0.99 * count))] * 1e3,
        "client_us": used_s[0] / count * 1e6,
        "behind_us": used_s[1] / count * 1e6,
    }


async def measure(
    store: Store, watch: Stopwatch, count: int, *, full: bool = True
) -> int:
    """
    All that every store can do; how many entries it appended.
    """
    text = texts()

    async def append(number: int) -> None:
        await store.append(number % SESSIONS, next(text))

    async def tail(number: int) -> None:
        if (got := await store.tail(number % SESSIONS)) != TAIL:
            raise AssertionError(f"{got} entries in a tail of {TAIL}")

    async def whole(number: int) -> None:
        if (got := await store.full(number % SESSIONS)) != ENTRIES:
            raise AssertionError(f"{got} entries of {ENTRIES}")

    await watch.time("tail read, 1 at a time", tail, count)
    if full:
        await watch.time("full read, 1 at a time", whole, count)
    await watch.time("append, 1 at a time", append, count)
    # Lanes step over sessions: 16 lanes of a multiple of 16 share no session at once.
    await watch.time(APPEND_AT_ONCE, _spread(store, text), count, AT_ONCE)
    return 2 * count


def _spread(store: Store, text: Iterator[str]) -> Call:
    per_lane = SESSIONS // AT_ONCE

    async def append(number: int) -> None:
        lane, turn = number % AT_ONCE, number // AT_ONCE
        await store.append(lane * per_lane + turn % per_lane, next(text))

    return append


async def fill(store: Store) -> None:
    """
    Enter what every session has before anything is timed.
    """
    text = texts()
    for number in range(ENTRIES * SESSIONS):
        await store.append(number % SESSIONS, next(text))


async def check(store: Store, expected: int) -> None:
    """
    Every entry must be there once.
    """
    found = [await store.count(session) for session in range(SESSIONS)]
    if sum(found) != expected:
        raise AssertionError(f"{expected} entries appended, {sum(found)} found")


async def plain(store: Store, watch: Stopwatch, count: int) -> int:
    """
    Nothing but that.
    """
    return await measure(store, watch, count)


def run(store: Store, measured: Callable[..., Awaitable[int]] = plain) -> None:
    """
    Do what the command line says.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("count", type=int)
    parser.add_argument("--watch", type=int, action="append", default=[])
    given = parser.parse_args()

    async def main() -> None:
        watch = Stopwatch(given.watch)
        if not await store.open(given.target):
            await fill(store)
        expected = ENTRIES * SESSIONS
        if given.count:
            expected += await measured(store, watch, given.count)
        await check(store, expected)
        await store.close()
        script.tell(found=watch.found)

    script.loop()(main())
