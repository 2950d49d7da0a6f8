"""
One child process of the embedded stack: its start, its readiness, its end.

Each process holds a kernel lock of its own for life, inherited at its start. So two
servers on one folder are impossible, even without a record of the first.
"""

import asyncio
import os
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everbus.compose.process_records import (
    POLL_S,
    STOP_WITHIN_S,
    ProcessRecord,
    end,
    holders,
    incarnations,
    send,
    started_at,
    write_record,
)
from everbus.compose.stack_folder import StackError, try_lock

LOG_LINES = 12
MAX_OUTPUT_BYTES = 2**16
MAX_LOG_BYTES = 16 * 2**20


class ProcessFailed(StackError):
    """
    A process of the stack ended or never became ready; its last log lines follow.
    """


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """
    How to run one process of the stack in the folder *data*.

    Attributes:
        env: the whole environment; the process inherits nothing.
        ready: asks the process whether it serves; called until the answer is yes.
        rank: place in the order of starts, from 0.
    """

    name: str
    data: Path
    argv: tuple[str, ...]
    ready: "Ready"
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    port: int = 0
    rank: int = 0
    ready_within_s: float = 30.0
    stop_within_s: float = STOP_WITHIN_S

    @property
    def log(self) -> Path:
        """
        The log file of the process's output.
        """
        return self.data / "log" / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """
        The file of its process record.
        """
        return self.data / "run" / f"{self.name}.json"


class RunningProcess:
    """
    One incarnation of a process, from its start to its end.
    """

    def __init__(self, server: ProcessSpec, process: Process, log_from: int) -> None:
        """
        Watch *process*; its output begins at byte *log_from* of the log.
        """
        self.server = server
        self.record = ProcessRecord(
            name=server.name,
            pid=process.pid,
            created=started_at(process.pid),
            executable=server.argv[0],
            port=server.port,
            incarnation=incarnations(server.record) + 1,
            rank=server.rank,
        )
        self._process = process
        self._log_from = log_from

    @property
    def pid(self) -> int:
        """
        The process's id.
        """
        return self._process.pid

    @property
    def alive(self) -> bool:
        """
        Whether the process has not ended yet.
        """
        return self._process.returncode is None

    async def wait(self) -> int:
        """
        Wait for the process's end; returns its exit code, negative for a signal.
        """
        return await self._process.wait()

    async def stop(self) -> None:
        """
        End the process: SIGTERM, and SIGKILL after stop_within_s.
        """
        await end(self.record, self.server.stop_within_s)
        await self.wait()

    def signal(self, number: int) -> None:
        """
        Send a signal, if the process still lives.
        """
        send(self.record, number)

    def output(self) -> str:
        """
        The output of this incarnation, its last MAX_OUTPUT_BYTES at most.
        """
        with self.server.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_from, size - MAX_OUTPUT_BYTES))

            return log.read().decode(errors="replace")

    async def until_ready(self) -> None:
        """
        Wait until the process serves.

        Raises:
            ProcessFailed: it ended, or was not ready within ready_within_s.
        """
        within_s = self.server.ready_within_s
        try:
            async with asyncio.timeout(within_s):
                while not await self.server.ready(self):
                    self._check_alive()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise self.failure(f"was not ready within {within_s:g} s") from None
        # The answer may come from another program on the same port.
        self._check_alive()

    def failure(self, what: str) -> ProcessFailed:
        """
        The error for *what* happened, with the last log lines.
        """
        lines = self.output().strip().splitlines()[-LOG_LINES:]
        quoted = "\n".join(f"  | {line}" for line in lines) or "  | (no output)"
        return ProcessFailed(
            f"{self.server.name} {what}; the end of {self.server.log}:\n{quoted}"
        )

    def _check_alive(self) -> None:
        if not self.alive:
            raise self.failure(f"ended ({self._process.returncode}) before it served")


Ready = Callable[[RunningProcess], Awaitable[bool]]


async def start(server: ProcessSpec) -> RunningProcess:
    """
    Start a process and wait until it serves; on failure the process is ended.

    Raises:
        ProcessFailed: it cannot run, ended, or was not ready in time.
    """
    for folder in (server.log.parent, server.record.parent):
        folder.mkdir(parents=True, exist_ok=True)
    running = await _spawn(server)
    try:
        write_record(server.record, running.record)
        await running.until_ready()
    except BaseException:  # cancelled or failed: leave no orphan
        await running.stop()
        raise

    return running


async def _spawn(server: ProcessSpec) -> RunningProcess:
    lock = await _take_lock(server)
    log = _open_log(server.log)
    log_from = os.fstat(log).st_size
    try:
        process = await asyncio.create_subprocess_exec(
            *server.argv,
            stdin=DEVNULL,
            stdout=log,
            stderr=STDOUT,
            env=server.env,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches the supervisor alone
        )
    except OSError as error:
        raise ProcessFailed(
            f"{server.name}: cannot run {server.argv[0]}: {error}"
        ) from error
    finally:
        # From here on only the process holds its lock.
        os.close(lock)
        os.close(log)

    return RunningProcess(server, process, log_from)


async def _take_lock(server: ProcessSpec) -> int:
    """
    Take the lock of this process on its folder; returns a file descriptor.

    A helper process of a predecessor may hold the lock a little longer.
    """
    path = server.record.with_suffix(".lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + server.stop_within_s
    while not try_lock(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise ProcessFailed(
                f"{server.name} already runs on {server.data} (pid {holders(path)}); "
                "two servers would destroy the folder: end that one first"
            )
        await asyncio.sleep(POLL_S)

    return lock


def _open_log(path: Path) -> int:
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
