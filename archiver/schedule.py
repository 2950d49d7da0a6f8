"""
What the archiver does by the clock, beside the drain.

Every piece of work has a loop of its own, so that none overlaps itself, and runs
only while this archiver has the lease. Whatever is cut off in the middle is finished
by the next run, here or elsewhere.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from archiver.pauses import pause
from bus.errors import EverbusError

log = structlog.get_logger()

# So that archivers that were started together do not ask together for ever.
JITTER = 0.1


class Work(NamedTuple):
    """
    Something to be done again and again.

    Attributes:
        every_s: from the end of one run to the begin of the next, give or take a
            tenth.
        run: one run; what it raises of ours is logged, anything else ends the process.
    """

    name: str
    every_s: float
    run: Callable[[], Awaitable[object]]


async def run_schedule(
    stop: asyncio.Event, held: Callable[[], bool], works: Sequence[Work]
) -> None:
    """
    Run *works* until *stop* is set; what runs then is cancelled, not waited for.

    Args:
        held: whether this archiver has the lease.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_repeat(stop, held, work)) for work in works]
        await stop.wait()
        for task in running:
            task.cancel()


async def _repeat(stop: asyncio.Event, held: Callable[[], bool], work: Work) -> None:
    while not await pause(stop, work.every_s * _jitter()):
        if held():
            await _once(work)


async def _once(work: Work) -> None:
    try:
        await work.run()
    except EverbusError as error:
        log.warning("work.failed", work=work.name, code=error.code, error=error.message)


def _jitter() -> float:
    return random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
