"""
Records of the stack's processes, and how to end a recorded process.

A process outlives its killed supervisor, so the next supervisor must find it. It has
two ways: a record of pid and start time, written after each start, and the lock that
the process holds for life, which covers the instant between start and record. No
other process is ever signalled: pids are recycled.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil  # type: ignore[import-untyped]

from everbus.compose.stack_folder import StackError, try_lock, write_whole

POLL_S = 0.02
STOP_WITHIN_S = 10.0
# Start times shift a little when the system's clock is adjusted.
CLOCK_STEP_S = 2.0

Say = Callable[[str], None]


class ProcessRecord(msgspec.Struct, frozen=True):
    """
    The record of a process in `run/<name>.json`.

    Attributes:
        created: start time of the process by psutil, in seconds since 1970.
        incarnation: number of starts of this process on this folder, from 1.
        rank: place in the order of starts; the highest ends first.
    """

    name: str
    pid: int
    created: float
    executable: str
    port: int
    incarnation: int
    rank: int


async def end_orphans(data: Path, say: Say) -> None:
    """
    End the processes that a killed supervisor left on *data*, last started first.

    Raises:
        StackError: a process cannot be ended.
    """
    run = data / "run"
    records = [_read(path) for path in run.glob("*.json")]
    recorded = [record for record in records if record and live_process(record)]
    for record in sorted(recorded, key=lambda record: record.rank, reverse=True):
        await _end_orphan(record, say)
    for lock in run.glob("*.lock"):
        for pid in holders(lock):
            await _end_orphan(_unrecorded(lock.stem, pid), say)


def write_record(path: Path, record: ProcessRecord) -> None:
    """
    Write the record of a process to *path*.
    """
    write_whole(path, msgspec.json.encode(record).decode())


def incarnations(path: Path) -> int:
    """
    The number of starts so far, by the record in *path*.
    """
    record = _read(path)

    return record.incarnation if record else 0


def started_at(pid: int) -> float:
    """
    Start time of process *pid* in seconds since 1970; 0 without such a process.
    """
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def holders(lock: Path) -> list[int]:
    """
    The processes of this user that hold the file *lock*; none if it is free.
    """
    if _is_unlocked(lock):
        return []
    wanted = str(lock.resolve())
    found = []
    for process in psutil.process_iter():
        try:
            open_paths = [file.path for file in process.open_files()]
        except psutil.Error:  # another user's, or ended meanwhile
            continue
        if wanted in open_paths and process.pid != os.getpid():
            found.append(process.pid)

    return found


def live_process(record: ProcessRecord) -> psutil.Process | None:
    """
    The process in *record*; None if it ended, even if its pid is in use again.
    """
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.created) < CLOCK_STEP_S
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return None

    return process if same and not ended else None


def send(record: ProcessRecord, number: int) -> None:
    """
    Send a signal to the process in *record*, if it still lives.
    """
    process = live_process(record)
    with suppress(psutil.NoSuchProcess):
        if process:
            process.send_signal(number)


async def end(record: ProcessRecord, within_s: float) -> None:
    """
    End the process in *record*; a second call does nothing.

    Raises:
        StackError: the process survives SIGKILL.
    """
    # SIGCONT lets a stopped process receive its SIGTERM.
    await _signal(record, (signal.SIGTERM, signal.SIGCONT), within_s)
    await _signal(record, (signal.SIGKILL,), within_s)
    if live_process(record) is not None:
        raise StackError(
            f"{record.name} (pid {record.pid}) cannot be ended, not even by SIGKILL; "
            "see what holds it: ps -o stat,wchan,cmd -p " + str(record.pid)
        )


async def _signal(
    record: ProcessRecord, numbers: tuple[int, ...], within_s: float
) -> None:
    """
    Send signals to a live process, then wait *within_s* for its end.
    """
    for number in numbers:
        send(record, number)
    deadline = time.monotonic() + within_s
    # Polled: the process may be no child of this one, so no event reports its end.
    while live_process(record) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


async def _end_orphan(record: ProcessRecord, say: Say) -> None:
    say(f"ending {record.name} (pid {record.pid}), left by an earlier run")
    await end(record, STOP_WITHIN_S)


def _is_unlocked(lock: Path) -> bool:
    with lock.open() as file:
        return try_lock(file.fileno())


def _unrecorded(name: str, pid: int) -> ProcessRecord:
    return ProcessRecord(name, pid, started_at(pid), "", 0, 0, 0)


def _read(path: Path) -> ProcessRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
    except (OSError, msgspec.MsgspecError):
        # Records are written whole; the lock finds a process of another version.
        return None
