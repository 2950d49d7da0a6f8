"""
What a flood of one MAD costs another MAD on the same partition.

    python -m tests.bench.fairness [--seconds 8]

One lane, three processes of load: a MAD that asks 50 times a second and waits for each
reply, and a MAD that publishes as fast as it can: small appends, then appends of
200 KB. The latency of the first is the result, alone and beside each flood, and beside
the same flood on another bus, which costs the same CPU and shares no lane.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from everbus.bus import connect
from tests.bench.rig import bus, replica, token

EVERY_S = 0.02
# Before the first reply that counts: the flood has a backlog by then.
WARM_UP_S = 2.0
FLOODS = {"small": 100, "large": 200_000}


class Latency(NamedTuple):
    """
    Milliseconds from a request to its reply.
    """

    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Latency":
        """
        The figures of these replies.
        """
        ordered = sorted(1000 * one for one in seconds)
        last = len(ordered) - 1

        return cls(ordered[last // 2], ordered[round(last * 0.99)], ordered[-1])

    def __str__(self) -> str:
        return f"p50 {self.p50:7.1f} ms, p99 {self.p99:7.1f}, worst {self.worst:7.1f}"


async def asking(url: str, seconds: float) -> Latency:
    """
    The latency of one MAD that asks at a constant rate.
    """
    taken: list[float] = []
    async with connect(url, mad="asks", token=token("asks"), timeout=60) as mad:
        session = await mad.create_session("u")
        ends = time.monotonic() + WARM_UP_S + seconds
        counts_from = ends - seconds
        while (begun := time.monotonic()) < ends:
            await mad.update_session(session.id, {"fields": {"at": begun}})
            took = time.monotonic() - begun
            if begun >= counts_from:
                taken.append(took)
            await asyncio.sleep(max(0.0, EVERY_S - took))
    return Latency.of(taken)


async def flooding(url: str, size: int) -> None:
    """
    Publish appends of *size* bytes until ended.
    """
    async with connect(url, mad="floods", token=token("floods"), timeout=60) as mad:
        sessions = [(await mad.create_session("u")).id for _ in range(20)]
        text = "x" * size
        at_once = max(1, 200_000 // size)
        while True:
            for n in range(at_once):
                mad.append(sessions[n % 20], text)
            await mad.flush()


@contextmanager
def flood(url: str, size: int) -> Iterator[None]:
    """
    A process that floods, while the block runs.
    """
    process = multiprocessing.Process(target=_flood, args=(url, size), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _flood(url: str, size: int) -> None:
    asyncio.run(flooding(url, size))


async def measured(size: int, seconds: float, *, beside: bool = False) -> Latency:
    """
    The latency on a fresh bus, next to a flood of appends of *size* bytes (0: none);
    *beside*: that flood is on another bus.
    """
    async with AsyncExitStack() as stack:
        urls = []
        for n in range(2 if beside else 1):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = await stack.enter_async_context(bus(folder))
            stack.enter_context(replica(server.url, f"fair-{n}", partitions=1))
            urls.append(server.url)
        async with connect(urls[0], mad="waits", token=token("waits"), timeout=60) as m:
            await m.create_session("u")
        if size:
            stack.enter_context(flood(urls[-1], size))
        return await asking(urls[0], seconds)


async def main() -> None:
    """
    Print the table.
    """
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seconds", type=float, default=8)
    seconds = asked.parse_args().seconds
    print(f"alone              {await measured(0, seconds)}", flush=True)
    for name, size in FLOODS.items():
        there = await measured(size, seconds, beside=True)
        print(f"{name} flood elsewhere {there}", flush=True)
        here = await measured(size, seconds)
        print(f"{name} flood here      {here}", flush=True)
        print(f"{name}: p99 {here.p99 / there.p99:.1f} times", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
