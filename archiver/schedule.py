"""
The archiver's periodic jobs, beside the drain.

Every job has a loop of its own, so that none overlaps itself, and runs only while this
archiver has the lease. The next run, here or elsewhere, finishes an interrupted one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from everbus.bus.backoff import jittered
from everbus.bus.errors import EverbusError
from everbus.bus.waits import set_within

log = structlog.get_logger()

# So that archivers started together do not run in step for ever.
JITTER = (0.9, 1.1)


class ScheduledJob(NamedTuple):
    """
    A periodic job.

    Attributes:
        every_s: from the end of one run to the start of the next, plus or minus a
            tenth.
        run: one run; an EverbusError is logged, any other exception ends the process.
    """

    name: str
    every_s: float
    run: Callable[[], Awaitable[object]]


async def run_schedule(
    stop: asyncio.Event, has_lease: Callable[[], bool], works: Sequence[ScheduledJob]
) -> None:
    """
    Run *works* until *stop* is set; a job that runs then is cancelled, not awaited.

    Args:
        has_lease: whether this archiver has the lease.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_repeat(stop, has_lease, work)) for work in works]
        await stop.wait()
        for task in running:
            task.cancel()


async def _repeat(
    stop: asyncio.Event, has_lease: Callable[[], bool], work: ScheduledJob
) -> None:
    while not await set_within(stop, jittered(work.every_s, JITTER)):
        if has_lease():
            await _once(work)


async def _once(work: ScheduledJob) -> None:
    try:
        await work.run()
    except EverbusError as error:
        log.warning("work.failed", work=work.name, code=error.code, error=error.message)
