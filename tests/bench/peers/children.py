"""
The scripts of the peers as processes: what they tell, their CPU, their end.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.bench import rig
from tests.bench.peers.competitors import HOUSE, Found

STOP_S = 5.0
LOG_BYTES = 2_000
LOOKS = 5
# A line with the latencies of all asks is long.
LINE_BYTES = 2**24


class Failed(Exception):
    """
    A peer did not do what was asked of it; the end of what it wrote follows.
    """


class Child:
    """
    One script that runs.
    """

    def __init__(self, process: Process, log: Path, name: str) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log
        self._name = name

    async def told(self, within_s: float) -> dict[str, Any]:
        """
        The next line of what it tells.

        Raises:
            Failed: it ended, or told nothing in time.
        """
        try:
            line = await asyncio.wait_for(self._line(), within_s)
        except TimeoutError:
            raise Failed(
                f"{self._name} told nothing in {within_s} s{self._end()}"
            ) from None
        if not line:
            raise Failed(f"{self._name} ended early{self._end()}")
        told: dict[str, Any] = json.loads(line)
        return told

    async def _line(self) -> bytes:
        """
        The next line that is not a log's, which libraries write there as well.
        """
        assert self._process.stdout
        async for line in self._process.stdout:
            if line.startswith(b"{"):
                return line
            print(f"{self._name}: {line.decode(errors='replace')}", file=sys.stderr)
        return b""

    def _end(self) -> str:
        written = self._log.read_text(errors="replace")[-LOG_BYTES:].strip()
        return f": {written.splitlines()[-1]}" if written else ""


@asynccontextmanager
async def child(
    found: Found, folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> AsyncIterator[Child]:
    """
    A peer's script, ended with all its own children, by pid.
    """
    log = folder / "peer.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *found.command,
            *arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=errors,
            cwd=HOUSE,
            env=found.env | (env or {}),
            limit=LINE_BYTES,
        )
    try:
        yield Child(process, log, found.peer.name)
    finally:
        # One that ended was waited for, and its id may be another's by now.
        living = process.returncode is None
        for pid in tree_of(process.pid) if living else []:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        await asyncio.wait_for(process.wait(), STOP_S)


def tree_of(pid: int) -> list[int]:
    """
    A process that lives and all that it started; empty if it ended.
    """
    try:
        process = psutil.Process(pid)
        return [pid, *(one.pid for one in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pids: Sequence[int]) -> float:
    """
    CPU seconds of processes.

    Raises:
        Failed: one of them has ended.
    """
    for _ in range(LOOKS):
        # A thread may end between being listed and being read.
        with suppress(FileNotFoundError, ProcessLookupError):
            return sum(rig.cpu_s(pid) for pid in pids)
    raise Failed(f"one of the processes {pids} has ended")
