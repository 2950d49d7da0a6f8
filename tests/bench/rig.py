"""
What every benchmark needs: a quiet server, replicas, CPU accounting.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from everbus.bus import Mad, connect
from everbus.bus.cluster_wire import wire_to
from everbus.bus.wire import Wire
from everbus.gateway.identity.tokens import mint
from everbus.gateway.store import key_names
from tests.cluster import cluster
from tests.servers import RealServer, valkey

SECRET = "bench-secret-that-is-long-enough-for-hs256"
# Names another program than the wheel's Valkey, for example `redis-server`.
SERVER = "EVERBUS_BENCH_SERVER"
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
PARTITIONS = 16
# Lanes are shared out anew within a second of a replica's coming.
SETTLED_S = 1.5
SHARED_WITHIN_S = 30.0


def token(mad: str) -> str:
    """
    A MAD's token for an hour.
    """
    return mint(
        SECRET,
        name=mad,
        role="mad",
        issuer="everbus",
        audience="everbus",
        ttl_s=3600,
        now=time.time(),
    )


@asynccontextmanager
async def bus(folder: Path, *, aof: bool = False) -> AsyncIterator[RealServer]:
    """
    Valkey, without AOF unless asked for; or the program that SERVER names.
    """
    program = os.environ.get(SERVER, "")
    async with valkey(folder, aof=aof, program=program) as server:
        yield server


@contextmanager
def replica(
    url: str,
    name: str = "bench-1",
    *,
    partitions: int = PARTITIONS,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Iterator[subprocess.Popen[bytes]]:
    """
    One manager process, with more *settings*; ended in order, by pid.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "EVERBUS_REDIS_URL": url,
        "EVERBUS_JWT_SECRET": SECRET,
        "EVERBUS_REPLICA": name,
        "EVERBUS_PARTITIONS": str(partitions),
        "EVERBUS_LOG_LEVEL": "warning",
        # Most benches run without AOF.
        "EVERBUS_REDIS_UNSAFE": "true",
        # The archiver is not part of what is measured, so its limit is far away.
        "EVERBUS_OUTBOX_MAX_RECORDS": "100000000",
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "everbus", "manager"], env=environment
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


class Station(NamedTuple):
    """
    A bus, the replicas that serve it, and one MAD.

    Attributes:
        url: the bus's.
        servers: its server, or the primaries of its cluster.
    """

    url: str
    servers: tuple[RealServer, ...]
    replicas: tuple[subprocess.Popen[bytes], ...]
    mad: Mad
    partitions: int

    @property
    def server(self) -> RealServer:
        """
        The server, or the first primary.
        """
        return self.servers[0]

    @property
    def server_s(self) -> float:
        """
        CPU seconds of all servers.
        """
        return sum(cpu_s(server.pid) for server in self.servers)

    @property
    def worker_s(self) -> float:
        """
        CPU seconds of all replicas.
        """
        return sum(cpu_s(process.pid) for process in self.replicas)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """
        The replicas stand still, for less than the life of a lane's lock.
        """
        try:
            for process in self.replicas:
                process.send_signal(signal.SIGSTOP)
            yield
        finally:
            for process in self.replicas:
                process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def station(
    *,
    aof: bool = False,
    replicas: int = 1,
    partitions: int = PARTITIONS,
    primaries: int = 0,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> AsyncIterator[Station]:
    """
    A bus, its replicas and a MAD that is served in every lane; all ended in order.

    With *primaries* the bus is a Redis Cluster of so many, without AOF.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if primaries:
            nodes = await stack.enter_async_context(
                cluster(folder, primaries=primaries)
            )
            url, servers = nodes.url, tuple(nodes.nodes)
        else:
            server = await stack.enter_async_context(bus(folder, aof=aof))
            url, servers = server.url, (server,)
        processes = tuple(
            stack.enter_context(
                replica(url, name, partitions=partitions, settings=settings)
            )
            for name in (f"bench-{n + 1}" for n in range(replicas))
        )
        mad = await stack.enter_async_context(
            connect(url, mad="bench", token=token("bench"), timeout=60)
        )
        await shared_out(url, replicas, partitions)
        yield Station(url, servers, processes, mad, partitions)


def cpu_s(pid: int) -> float:
    """
    CPU seconds that a process has used, by the kernel's accounting.

    By the scheduler's nanoseconds where there are such, else by clock ticks, which are
    too coarse for short runs. Threads that have ended do not count with the former.
    """
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    used = [int(thread.read_text().split()[0]) for thread in threads]
    if any(used):
        return sum(used) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """
    CPU seconds that this machine's processes have used together, and what its host
    took away; 0 where the kernel does not tell.
    """
    counters = Path("/proc/stat")
    if not counters.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(
        int, counters.read_text().split(None, 9)[1:9]
    )
    ticks = user + nice + system + irq + softirq + steal

    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """
    The memory that a process has in use now.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmRSS"))

    return int(line.split()[1]) / 1024


async def empty(wire: Wire, partitions: int = PARTITIONS) -> None:
    """
    Forget the outboxes between passes, so that every pass has the same memory.
    """
    every = [(key_names.outbox(p), key_names.backlog(p)) for p in range(partitions)]
    await wire.exchange([("DEL", *both) for both in every])


async def shared_out(url: str, replicas: int, partitions: int = PARTITIONS) -> None:
    """
    Return when every lane has an owner, each replica some, and none moved for a while.
    """
    wire, since, before = wire_to(url), time.monotonic(), None
    owners = [key_names.owner(p) for p in range(partitions)]
    try:
        async with asyncio.timeout(SHARED_WITHIN_S):
            while time.monotonic() - since < SETTLED_S or before is None:
                found = await wire.exchange([("GET", owner) for owner in owners])
                if found != before:
                    since = time.monotonic()
                holders = {owner.partition(b":")[2] for owner in found if owner}
                whole = None not in found and len(holders) == replicas
                before = found if whole else None
                await asyncio.sleep(0.02)
    finally:
        await wire.close()


def median(values: list[float]) -> float:
    """
    The middle value; the mean of the two middle ones if there is no middle.
    """
    ordered, half = sorted(values), len(values) // 2
    return (ordered[half] + ordered[~half]) / 2


def spread(values: list[float], digits: int = 0) -> str:
    """
    `median [min-max]`.
    """
    shown = [f"{v:,.{digits}f}" for v in (median(values), min(values), max(values))]
    return f"{shown[0]} [{shown[1]}-{shown[2]}]"
