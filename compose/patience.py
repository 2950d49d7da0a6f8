"""
Writing and reading through outages: bounded, and each write at most once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from bus import Mad
from bus.errors import Expired, Overloaded, ReplyTimeout, Unavailable, error_of

T = TypeVar("T")

PATIENCE_S = 60.0
RETRY_S = 0.1
# Refusals that tell of no effect, and that time may cure.
_PASSING = (Expired, Overloaded, Unavailable)


async def settled(mad: Mad, write: Callable[[], Awaitable[object]]) -> None:
    """
    Carry out *write*, a call of *mad* that waits, once, within PATIENCE_S.

    After a ReplyTimeout its fate is asked for, and it is only made anew where it
    is known to have had no effect.

    Raises:
        EverbusError: it was refused for good, or the time is over.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            await write()
        except ReplyTimeout as error:
            if await _applied(mad, error.command_id, until):
                return
        except _PASSING:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(RETRY_S)
        else:
            return


async def told(read: Callable[[], Awaitable[T]]) -> T:
    """
    The result of *read*, a call without effect, tried again for PATIENCE_S.

    Raises:
        EverbusError: it was refused for good, or the time is over.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await read()
        except _PASSING:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(RETRY_S)


async def _applied(mad: Mad, command_id: str, until: float) -> bool:
    """
    Whether a command took effect; False if it is known never to do so.
    """
    while time.monotonic() < until:
        with suppress(Unavailable):
            outcome = await mad.outcome(command_id)
            if outcome.state == "applied":
                return True
            if outcome.state == "rejected":
                refused = error_of(outcome.code, outcome.message, {})
                if isinstance(refused, _PASSING):
                    return False
                raise refused
        await asyncio.sleep(RETRY_S)
    raise ReplyTimeout(
        f"what became of {command_id} was not told within {PATIENCE_S:g} s",
        command_id=command_id,
    )
