"""
Calls that survive outages: bounded in time, each write applied at most once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from everbus.bus import Mad
from everbus.bus.errors import Expired, Overloaded, ReplyTimeout, Unavailable, error_of

T = TypeVar("T")

GIVE_UP_AFTER_S = 60.0
RETRY_S = 0.1
# Refusals without any effect that may pass with time.
_TRANSIENT = (Expired, Overloaded, Unavailable)


async def write_once(mad: Mad, write: Callable[[], Awaitable[object]]) -> None:
    """
    Apply *write*, a waiting call of *mad*, exactly once within GIVE_UP_AFTER_S.

    After a ReplyTimeout this asks for the command's outcome. It sends the command
    again only if the first one is known to have had no effect.

    Raises:
        EverbusError: the command is refused for good, or the time is over.
    """
    until = time.monotonic() + GIVE_UP_AFTER_S
    while True:
        try:
            await write()
        except ReplyTimeout as error:
            if await _took_effect(mad, error.command_id, until):
                return
        except _TRANSIENT:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(RETRY_S)
        else:
            return


async def read_retrying(read: Callable[[], Awaitable[T]]) -> T:
    """
    The result of *read*, a call without effect, repeated for GIVE_UP_AFTER_S.

    Raises:
        EverbusError: the call is refused for good, or the time is over.
    """
    until = time.monotonic() + GIVE_UP_AFTER_S
    while True:
        try:
            return await read()
        except _TRANSIENT:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(RETRY_S)


async def _took_effect(mad: Mad, command_id: str, until: float) -> bool:
    """
    Whether a command took effect; False if it certainly never will.
    """
    while time.monotonic() < until:
        with suppress(Unavailable):
            outcome = await mad.outcome(command_id)
            if outcome.state == "applied":
                return True
            if outcome.state == "rejected":
                refused = error_of(outcome.code, outcome.message, {})
                if isinstance(refused, _TRANSIENT):
                    return False
                raise refused
        await asyncio.sleep(RETRY_S)
    raise ReplyTimeout(
        f"the outcome of {command_id} was unknown after {GIVE_UP_AFTER_S:g} s",
        command_id=command_id,
    )
