"""
What the benchmarks of the tiers need: servers, our processes, sessions and figures.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from everbus.bus import Mad, connect, keys
from everbus.bus.wire import Wire
from everbus.compose.processes import start as start_server
from everbus.compose.servers import BUCKET, nanio_server, secantus_server
from everbus.compose.stack_folder import free_port
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import key_names
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.s3 import S3Cold
from everbus.gateway.store.mongo.warm import MongoWarm
from tests.bench.rig import median, spread
from tests.replicas import Part, a_token, settings_of, start, until
from tests.servers import RealServer, valkey

PARTITIONS = 16
DATABASE = "everbus"
KEY, SECRET = "bench", "a-secret-of-the-bench"
TIMEOUT_S = 60.0


class Stack:
    """
    The three servers, and this process's own way into each.
    """

    def __init__(
        self, folder: Path, bus: RealServer, mongo: RealServer, s3: RealServer
    ) -> None:
        self.folder = folder
        self.bus = bus
        self.mongo = mongo
        self.s3 = s3
        self.wire = Wire(bus.url, name="bench")
        self.warm = MongoWarm(mongo.url, DATABASE)
        self.cold = S3Cold(s3.url, BUCKET, KEY, SECRET, timeout_s=10.0)
        self.vault = Archives(self.cold)

    @asynccontextmanager
    async def manager(
        self, name: str = "bench-1", **settings: Any
    ) -> AsyncIterator[Part]:
        """
        One replica, ended in order; the archiver's lag is no limit unless set.
        """
        known: dict[str, Any] = {"replica": name, "outbox_max_records": 10**8}
        known["redis_unsafe"] = True  # there is no AOF
        async with self._part("manager", name, **known | settings) as part:
            yield part

    @asynccontextmanager
    async def archiver(self, **settings: Any) -> AsyncIterator[Part]:
        """
        One archiver, ended in order.
        """
        async with self._part("archiver", "archiver", **settings) as part:
            yield part

    @asynccontextmanager
    async def mad(self) -> AsyncIterator[Mad]:
        """
        A MAD that is served in all partitions.
        """
        async with connect(
            self.bus.url, mad="bench", token=a_token(), timeout=TIMEOUT_S
        ) as mad:
            made = [mad.create_session("first", timeout=60) for _ in range(64)]
            await asyncio.gather(*made)
            yield mad

    async def cool(self, session_id: str, partitions: int = PARTITIONS) -> None:
        """
        Remove the hot copy.
        """
        p = keys.partition_of(session_id, partitions)
        hot = (key_names.session(p, session_id), key_names.recent(p, session_id))
        await self.wire.call("UNLINK", *hot)

    async def backlog(self) -> int:
        """
        How many records the archiver has not confirmed.
        """
        told = await self.wire.exchange(
            [("GET", key_names.backlog(p)) for p in range(PARTITIONS)]
        )
        return sum(int(count or 0) for count in told)

    async def settled(self) -> int:
        """
        How many numbered commands were settled.
        """
        told = await self.wire.exchange(
            [("HVALS", key_names.publishers(p)) for p in range(PARTITIONS)]
        )
        return sum(
            ProducerWindow.parse(v).high_water for values in told for v in values
        )

    async def until_settled(self, count: int) -> None:
        """
        Wait until so many numbered commands are settled.
        """

        async def enough() -> bool:
            return await self.settled() >= count

        await until(enough, TIMEOUT_S)

    async def close(self) -> None:
        """
        Give the connections back.
        """
        self.warm.close()
        self.cold.close()
        await self.wire.close()

    @asynccontextmanager
    async def _part(self, role: str, name: str, **settings: Any) -> AsyncIterator[Part]:
        known = {
            "partitions": PARTITIONS,
            "lane_ttl_ms": 5000,
            "log_level": "warning",
            "mongo_url": self.mongo.url,
            "mongo_database": DATABASE,
            "s3_endpoint": self.s3.url,
            "s3_access_key": KEY,
            "s3_secret_key": SECRET,
        }
        env = settings_of(self.bus.url, **known | settings)
        part = await start(self.folder, role, name, env)
        try:
            yield part
        finally:
            alive = part.alive
            code = await part.end()
            if not alive or code:
                print(f"{name} ended with {code}:\n{part.output()}", file=sys.stderr)


@asynccontextmanager
async def stack(folder: Path, cache: str = "256M") -> AsyncIterator[Stack]:
    """
    Valkey without AOF, SecantusDB that syncs each commit, nanio: all empty.

    *cache* is SecantusDB's; 256M is what the embedded stack gives it.
    """
    server = nanio_server(folder, free_port(), KEY, SECRET)
    s3 = RealServer(await start_server(server), f"http://127.0.0.1:{server.port}")
    try:
        async with valkey(folder, aof=False) as bus, _mongo(folder, cache) as mongo:
            made = Stack(folder, bus, mongo, s3)
            try:
                await made.warm.prepare()
                yield made
            finally:
                await made.close()
    finally:
        await s3.stop()


@asynccontextmanager
async def _mongo(folder: Path, cache: str) -> AsyncIterator[RealServer]:
    server = secantus_server(folder, free_port())
    chosen = [cache if part == "256M" else part for part in server.argv]
    running = await start_server(replace(server, argv=tuple(chosen)))
    url = f"mongodb://127.0.0.1:{server.port}/?directConnection=true"
    real = RealServer(running, url)
    try:
        yield real
    finally:
        await real.stop()


PERCENTS = (50, 95, 99)


class Goal(NamedTuple):
    """
    A figure's bound: at most so much.
    """

    most: float
    said: str


class Figures:
    """
    What was measured: name → a value a pass, and over how many samples each.

    Attributes:
        notes: what is to be said beside the table.
    """

    def __init__(self, goals: dict[str, Goal]) -> None:
        self.values: dict[str, list[float]] = {}
        self.notes: dict[str, Any] = {}
        self._samples: dict[str, int] = {}
        self._goals = goals

    def note(self, name: str, value: float, samples: int = 1) -> None:
        """
        Keep one figure of one pass.
        """
        self.values.setdefault(name, []).append(value)
        self._samples[name] = samples
        print(f"  {name}: {value:,.3f}", file=sys.stderr)

    def times(
        self, name: str, seconds: Sequence[float], percents: Sequence[float] = PERCENTS
    ) -> None:
        """
        Keep the percentiles *percents* of what took so many *seconds*.
        """
        for q in percents:
            value = quantile(seconds, q / 100) * 1000
            self.note(f"{name}, p{q:g} ms", value, len(seconds))

    def table(self) -> str:
        """
        A Markdown table, median [min-max].
        """
        lines = ["| figure | median [min-max] | passes x samples | wanted | met |"]
        lines.append("|---|---|---|---|---|")
        for name, values in self.values.items():
            goal = self._goals.get(name)
            wanted, met = (goal.said, _met(values, goal)) if goal else ("", "")
            counts = f"{len(values)} x {self._samples[name]:,}"
            lines.append(f"| {name} | {_shown(values)} | {counts} | {wanted} | {met} |")
        return "\n".join(lines)


def quantile(values: Sequence[float], q: float) -> float:
    """
    The value below which the part *q* of *values* lies.
    """
    ordered = sorted(values)

    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """
    Append how many seconds the block took.
    """
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)


def peak_mb(part: Part) -> float:
    """
    The most memory that a process had at a time, by the kernel's VmHWM.
    """
    status = Path(f"/proc/{part._process.pid}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmHWM"))

    return int(line.split()[1]) / 1024


def _shown(values: list[float]) -> str:
    most = max(values)
    digits = 0 if most >= 100 else 1 if most >= 10 else 2

    return spread(values, digits) if len(values) > 1 else f"{values[0]:,.{digits}f}"


def _met(values: list[float], goal: Goal) -> str:
    if max(values) <= goal.most:
        return "yes"
    return "not in every pass" if median(values) <= goal.most else "**no**"


class Run(NamedTuple):
    """
    One pass of one measure; *scale* is the part of the work that is done.
    """

    stack: Stack
    figures: Figures
    scale: float

    def count(self, whole: int, least: int = 20) -> int:
        """
        How many of *whole* things to do.
        """
        return max(least, int(whole * self.scale))


async def in_flight(most: int, calls: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """
    Make all *calls*, so many at a time.
    """
    waiting = iter(calls)

    async def caller() -> None:
        for call in waiting:
            await call()

    await asyncio.gather(*(caller() for _ in range(most)))
