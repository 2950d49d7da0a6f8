"""
Which processes are parts of ours, and how they are ended.

A part outlives a supervisor that was killed, so whoever starts next must find
it. Two things see to that: a record of pid and start time, written after each
start, and the lock that the part holds for life, which covers the instant
between start and record. Nothing else is ever signalled: pids are recycled.
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

from compose.folder import StackError, try_lock, write_whole

POLL_S = 0.02
STOP_WITHIN_S = 10.0
# Start times shift a little when the system's clock is set.
CLOCK_STEP_S = 2.0

Say = Callable[[str], None]


class Record(msgspec.Struct, frozen=True):
    """
    Which process a part is, as kept in `run/<name>.json`.

    Attributes:
        created: when the process started, as psutil tells, seconds since 1970.
        incarnation: counts the starts of this part on this folder, from 1.
        rank: place in the order of starts; the highest is ended first.
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
    End what a killed supervisor left running on *data*, last started first.

    Raises:
        StackError: a part cannot be ended.
    """
    run = data / "run"
    records = [_read(path) for path in run.glob("*.json")]
    recorded = [record for record in records if record and living(record)]
    for record in sorted(recorded, key=lambda record: record.rank, reverse=True):
        await _end_orphan(record, say)
    for lock in run.glob("*.lock"):
        for pid in holders(lock):
            await _end_orphan(_unrecorded(lock.stem, pid), say)


def write_record(path: Path, record: Record) -> None:
    """
    Remember in *path* which process a part is.
    """
    write_whole(path, msgspec.json.encode(record).decode())


def incarnations(path: Path) -> int:
    """
    How often the part of the record in *path* was started so far.
    """
    record = _read(path)

    return record.incarnation if record else 0


def started_at(pid: int) -> float:
    """
    When process *pid* started, in seconds since 1970; 0 if there is none.
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


def living(record: Record) -> psutil.Process | None:
    """
    The process that *record* names, unless it ended and its pid is another's.
    """
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.created) < CLOCK_STEP_S
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return None

    return process if same and not ended else None


def send(record: Record, number: int) -> None:
    """
    Send a signal to the process that *record* names, if it still lives.
    """
    process = living(record)
    with suppress(psutil.NoSuchProcess):
        if process:
            process.send_signal(number)


async def end(record: Record, within_s: float) -> None:
    """
    End the process that *record* names; a second call does nothing.

    Raises:
        StackError: it lives on even after SIGKILL.
    """
    # SIGCONT lets one that was stopped see its SIGTERM.
    await _signal(record, (signal.SIGTERM, signal.SIGCONT), within_s)
    await _signal(record, (signal.SIGKILL,), within_s)
    if living(record) is not None:
        raise StackError(
            f"{record.name} (pid {record.pid}) cannot be ended, not even by SIGKILL; "
            "see what holds it: ps -o stat,wchan,cmd -p " + str(record.pid)
        )


async def _signal(record: Record, numbers: tuple[int, ...], within_s: float) -> None:
    """
    Send signals to a process that lives, then wait for its end so long.
    """
    for number in numbers:
        send(record, number)
    deadline = time.monotonic() + within_s
    # The process may be no child of ours, so nothing tells of its end.
    while living(record) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


async def _end_orphan(record: Record, say: Say) -> None:
    say(f"ending {record.name} (pid {record.pid}), left by an earlier run")
    await end(record, STOP_WITHIN_S)


def _is_unlocked(lock: Path) -> bool:
    with lock.open() as file:
        return try_lock(file.fileno())


def _unrecorded(name: str, pid: int) -> Record:
    return Record(name, pid, started_at(pid), "", 0, 0, 0)


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        # Records are written whole; one of another version is found by its lock.
        return None
