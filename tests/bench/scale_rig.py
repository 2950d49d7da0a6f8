"""
What the measures of scale share: their terms, requests at a pace, what a process and
the server spend.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from everbus.bus import Mad
from everbus.bus.wire import Wire
from tests.bench.rig import cpu_s
from tests.bench.tier_rig import TIMEOUT_S, Figures, Stack, in_flight

MAX_CONCURRENT = 200
# Beyond what any wait here should take, so that a run always ends by itself.
MANAGER_TIMEOUT_S = 1800.0
SAID_EVERY_S = 10.0


class Scale(NamedTuple):
    """
    One measure: where, what for, and how much.

    Attributes:
        part: which part of the work is done; 1.0 is all.
        minutes: how long the sessions are used.
        rate: requests a second to them; SecantusDB takes 200 changed sessions/s.
        tails: they begin with 20 entries each, which takes it 20 minutes.
        entries: how long the long timeline becomes.
        drained: its entries reach MongoDB by the archiver, not by a seeding.
        pairs: how often the arms of `hot` take turns.
    """

    stack: Stack
    figures: Figures
    part: float = 1.0
    minutes: float = 10.0
    rate: float = 300.0
    tails: bool = False
    entries: int = 1_000_000
    drained: bool = False
    pairs: int = 5

    def count(self, whole: int, least: int = 20) -> int:
        """
        How many of *whole* things to do.
        """
        return max(least, int(whole * self.part))

    def seconds(self, whole: float, least: float = 2.0) -> float:
        """
        How long to do what takes *whole* seconds in full.
        """
        return max(least, whole * self.part)

    def quantiles(self, name: str, seconds: Sequence[float]) -> None:
        """
        Keep p50, p95, p99 and p99.9 of what took so many *seconds*.
        """
        self.figures.times(name, seconds, (50, 95, 99, 99.9))


def say(text: str) -> None:
    """
    Tell of progress, on stderr.
    """
    print(f"  {text}", file=sys.stderr, flush=True)


async def made(mad: Mad, count: int) -> list[str]:
    """
    The ids of *count* new sessions.
    """
    ids: list[str] = []

    async def one() -> None:
        ids.append((await mad.create_session("ada", timeout=TIMEOUT_S)).id)

    await in_flight(MAX_CONCURRENT, [one] * count)

    return ids


async def paced(
    rate: float, seconds: float, request: Callable[[int, float], Awaitable[None]]
) -> int:
    """
    Begin request n at n / *rate* seconds, whatever became of those before; how many.

    Each is given when it was due, so that a stall is not hidden by the requests that
    it kept from being made. The loop's timers are exact to 1 ms, which is in there.
    """
    began, count = time.perf_counter(), int(rate * seconds)
    async with asyncio.TaskGroup() as under_way:
        n = 0
        while n < count:
            due = min(count, 1 + int((time.perf_counter() - began) * rate))
            for number in range(n, due):
                under_way.create_task(_begun(request, number, began + number / rate))
            n = max(n, due)
            await asyncio.sleep(max(0.0, began + n / rate - time.perf_counter()))
    return count


async def _begun(
    request: Callable[[int, float], Awaitable[None]], n: int, due: float
) -> None:
    await request(n, due)


async def until_quiet(stack: Stack, what: str) -> float:
    """
    Wait until the archiver has confirmed everything; how many seconds that took.
    """
    began = said = time.monotonic()
    while records := await stack.backlog():
        now = time.monotonic()
        if now - began > MANAGER_TIMEOUT_S:
            raise AssertionError(
                f"{records} records not drained in {MANAGER_TIMEOUT_S} s"
            )
        if now - said > SAID_EVERY_S:
            said = now
            say(f"{what}: {records:,} records to drain")
        await asyncio.sleep(0.05)

    return time.monotonic() - began


def rss_mb(pid: int) -> float:
    """
    The memory that a process has now, by the kernel's VmRSS.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmRSS"))

    return int(line.split()[1]) / 1024


async def told(wire: Wire, section: str) -> dict[str, str]:
    """
    One section of INFO.
    """
    text = (await wire.call("INFO", section)).decode()

    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def used_memory(wire: Wire) -> int:
    """
    Bytes that the server's data takes.
    """
    return int((await told(wire, "memory"))["used_memory"])


class Spent(NamedTuple):
    """
    What was spent in a while.

    Attributes:
        calls: command → how often it was called, in scripts as well.
        usec: command → what it took in all, a script's own commands in it.
        cpu_s: pid → CPU seconds.
    """

    calls: dict[str, int]
    usec: dict[str, int]
    cpu_s: dict[int, float]


class Meter:
    """
    Counts what the server does, and the CPU time of processes, while a block runs.
    """

    def __init__(self, wire: Wire, *pids: int) -> None:
        self._wire = wire
        self._pids = pids
        self._before = Spent({}, {}, {})

    async def begin(self) -> None:
        """
        Count from now on.
        """
        self._before = await self._now()

    async def spent(self) -> Spent:
        """
        What was spent since `begin`; the INFO that asks is not in it.
        """
        now, before = await self._now(), self._before
        calls = {n: c - before.calls.get(n, 0) for n, c in now.calls.items()}
        calls["info"] = calls.get("info", 1) - 1
        return Spent(
            {name: count for name, count in calls.items() if count},
            {n: u - before.usec.get(n, 0) for n, u in now.usec.items()},
            {pid: s - before.cpu_s[pid] for pid, s in now.cpu_s.items()},
        )

    async def _now(self) -> Spent:
        calls, usec = {}, {}
        for name, stats in (await told(self._wire, "commandstats")).items():
            fields = dict(part.split("=") for part in stats.split(","))
            command = name.removeprefix("cmdstat_")
            calls[command], usec[command] = int(fields["calls"]), int(fields["usec"])
        return Spent(calls, usec, {pid: cpu_s(pid) for pid in self._pids})


@contextmanager
def since(due: float, into: list[float]) -> Any:
    """
    Append how many seconds after *due* the block ended.
    """
    yield
    into.append(time.perf_counter() - due)
