"""
Real servers for tests: each on a free loopback port, in a folder of the test.

They are ended by pid at the end of their `async with`; a test may kill, pause
and restart them before, and finds port and data unchanged.
"""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from everbus.compose.processes import ProcessSpec, RunningProcess, start
from everbus.compose.servers import nanio_server, secantus_server, valkey_server
from everbus.compose.stack_folder import free_port

S3_KEYS = ("of-tests-only", "of-tests-only-0123456789")
DEBIAN_REDIS = shutil.which("redis-server") or ""


def inherited() -> dict[str, str]:
    """
    The environment for a process of ours: without the settings of this shell.
    """
    return {n: v for n, v in os.environ.items() if not n.startswith("EVERBUS_")}


class RealServer:
    """
    A server that runs now; `url` and `port` outlive its restarts.
    """

    def __init__(self, running: RunningProcess, url: str) -> None:
        self.url = url
        self.port = running.server.port
        self._running = running

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def alive(self) -> bool:
        return self._running.alive

    async def kill(self) -> None:
        """
        End it by SIGKILL; returns when it is dead.
        """
        self._running.signal(signal.SIGKILL)
        await self._running.wait()

    async def restart(self) -> None:
        """
        End it in order, if it lives, and wait until its successor serves.
        """
        await self.stop()
        self._running = await start(self._running.server)

    async def stop(self) -> None:
        """
        End it in order, if it lives.
        """
        if self._running.alive:
            await self._running.stop()

    def pause(self) -> None:
        """
        Stop it by SIGSTOP: it accepts connections and answers nothing.
        """
        self._running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """
        Let it go on after pause().
        """
        self._running.signal(signal.SIGCONT)


@asynccontextmanager
async def valkey(
    folder: Path, *, aof: bool = True, program: str = "", name: str = "valkey"
) -> AsyncIterator[RealServer]:
    """
    Valkey from its wheel, or another *program* of its kind.
    """
    server = valkey_server(folder, free_port(), aof=aof, program=program, name=name)
    async with _serving(server, f"redis://127.0.0.1:{server.port}/0") as real:
        yield real


@asynccontextmanager
async def debian_redis(folder: Path, *, aof: bool = True) -> AsyncIterator[RealServer]:
    """
    The `redis-server` on the PATH; skip the test unless DEBIAN_REDIS.
    """
    async with valkey(folder, aof=aof, program=DEBIAN_REDIS, name="redis") as real:
        yield real


@asynccontextmanager
async def secantus(folder: Path) -> AsyncIterator[RealServer]:
    """
    SecantusDB, which speaks MongoDB's protocol.
    """
    server = secantus_server(folder, free_port())
    url = f"mongodb://127.0.0.1:{server.port}/?directConnection=true"
    async with _serving(server, url) as real:
        yield real


@asynccontextmanager
async def nanio(folder: Path) -> AsyncIterator[RealServer]:
    """
    nanio, which speaks S3; S3_KEYS are its keys, `everbus` is its bucket.
    """
    server = nanio_server(folder, free_port(), *S3_KEYS)
    async with _serving(server, f"http://127.0.0.1:{server.port}") as real:
        yield real


@asynccontextmanager
async def _serving(server: ProcessSpec, url: str) -> AsyncIterator[RealServer]:
    real = RealServer(await start(server), url)
    try:
        yield real
    finally:
        # What it holds ends with the test: an orderly end takes SecantusDB 2.5 s.
        if real.alive:
            await real.kill()
