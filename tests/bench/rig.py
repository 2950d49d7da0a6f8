"""
What every benchmark needs: a quiet server, one replica, CPU accounting.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bus.wire import Wire
from gateway.identity.tokens import mint
from tests.servers import RealServer, valkey

SECRET = "bench-secret-that-is-long-enough-for-hs256"
PARTITIONS = 16


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
    Valkey, without AOF unless asked for.
    """
    async with valkey(folder, aof=aof) as server:
        yield server


@contextmanager
def replica(url: str, name: str = "bench-1") -> Iterator[subprocess.Popen[bytes]]:
    """
    One manager process; ended in order, by pid.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "EVERBUS_REDIS_URL": url,
        "EVERBUS_JWT_SECRET": SECRET,
        "EVERBUS_REPLICA": name,
        "EVERBUS_LOG_LEVEL": "warning",
        # Most benches run without AOF.
        "EVERBUS_REDIS_UNSAFE": "true",
        # The archiver is not part of what is measured, so its limit is far away.
        "EVERBUS_OUTBOX_MAX_RECORDS": "100000000",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "compose.cli", "manager"], env=environment
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def cpu_s(pid: int) -> float:
    """
    CPU seconds that a process has used, by the kernel's accounting.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def empty(wire: Wire) -> None:
    """
    Forget the outboxes between passes, so that every pass has the same memory.
    """
    await wire.exchange(
        [
            ("DEL", f"eb:{{{p}}}:outbox", f"eb:{{{p}}}:backlog")
            for p in range(PARTITIONS)
        ]
    )


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
