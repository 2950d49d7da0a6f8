"""
One pass of one queue: filled beforehand, then handled by one worker on a new server.

The rate is from the first message handled to the last, on the worker's own clock. CPU
is counted between the same two moments, of the worker with its children and of the
server. A pass counts only if every message was handled and nothing is left unhandled
or unacknowledged.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import redis.asyncio as redis

from tests.bench import rig
from tests.bench.peers.children import Failed, child, cpu_s, tree_of
from tests.bench.peers.competitors import Found
from tests.bench.peers.table import ENQUEUE, P50, P99, RATE, SERVER, WORKER
from tests.servers import RealServer

START_S = 30.0
FILL_S = 60.0
WORK_S = 120.0
ACKED_S = 10.0
POLL_S = 0.02

Figures = dict[str, float]


@asynccontextmanager
async def new_bus(folder: Path) -> AsyncIterator[RealServer]:
    """
    A server that nobody used before, without AOF.
    """
    with tempfile.TemporaryDirectory(dir=folder) as own:
        async with rig.bus(Path(own)) as server:
            yield server


async def a_pass(found: Found, folder: Path, count: int, asks: int) -> Figures:
    """
    What one pass of one queue came to.

    Raises:
        Failed: it did not handle all of it, or not in time.
    """
    async with new_bus(folder) as server:
        figures = await _consumed(found, folder, server.url, server.pid, count)
    if asks := int(asks * found.peer.asks):
        async with new_bus(folder) as server:
            figures |= await _asked(found, folder, server.url, asks)
    return figures


async def _consumed(
    found: Found, folder: Path, url: str, server: int, count: int
) -> Figures:
    async with child(found, folder, "fill", url, str(count)) as filler:
        filled = await filler.told(FILL_S)
    async with child(found, folder, "work", url, str(count)) as worker:
        first = await worker.told(START_S)
        pids = tree_of(worker.pid)
        before = cpu_s(pids), rig.cpu_s(server)
        last = await worker.told(WORK_S)
        used = cpu_s(pids) - before[0], rig.cpu_s(server) - before[1]
        if last["handled"] != count:
            raise Failed(f"{last['handled']} messages of {count} handled")
        await _acknowledged(url, found.peer.leftovers)
    return {
        ENQUEUE: count / filled["took_s"],
        RATE: (count - 1) / (last["at"] - first["at"]),
        WORKER: used[0] / count * 1e6,
        SERVER: used[1] / count * 1e6,
        "repeated": last["repeated"],
    }


async def _asked(found: Found, folder: Path, url: str, asks: int) -> Figures:
    async with (
        child(found, folder, "answer", url, str(asks)),
        child(found, folder, "ask", url, str(asks)) as asker,
    ):
        told = await asker.told(WORK_S)
    return round_trips(told["asked_s"])


def round_trips(took_s: list[float]) -> Figures:
    """
    Percentiles of the time from a question to its answer.
    """
    took = sorted(took_s)
    return {
        P50: rig.median(took) * 1e3,
        P99: took[min(len(took) - 1, int(0.99 * len(took)))] * 1e3,
    }


async def _acknowledged(url: str, leftovers: tuple[str, ...]) -> None:
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + ACKED_S
    try:
        while left := await _left(client, leftovers):
            if time.monotonic() > deadline:
                raise Failed(f"left after {ACKED_S} s: {', '.join(left)}")
            await asyncio.sleep(POLL_S)
    finally:
        await client.aclose()


async def _left(client: redis.Redis, leftovers: tuple[str, ...]) -> list[str]:
    left = []
    async for key in client.scan_iter(count=10_000):
        name = key.decode()
        if any(fnmatchcase(name, pattern) for pattern in leftovers):
            left.append(name)
    async for key in client.scan_iter(count=10_000, _type="stream"):
        for group in await client.xinfo_groups(key):
            # The lag of a group is unknown (None) where entries were deleted.
            unread = group["lag"] or 0
            if group["pending"] or unread:
                left.append(f"{group['pending']}+{unread} of {key.decode()}")
    return left
