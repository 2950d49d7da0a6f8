"""
Waiting for the archiver: what was just committed reaches the warm tier a little later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

FIRST_WAIT_S = 0.05

T = TypeVar("T")


class CatchUp:
    """
    The time that one answer may wait, whatever it waits for.
    """

    def __init__(self, most_s: float) -> None:
        self._until = time.monotonic() + most_s
        self._wait_s = FIRST_WAIT_S

    async def first(self, attempt: Callable[[], Awaitable[T | None]]) -> T | None:
        """
        What *attempt* returns when it is not None any more; None if time is up.

        It is tried once at least, and ever less often: who asks often keeps the
        archiver from what is asked for.
        """
        while True:
            found = await attempt()
            left_s = self._until - time.monotonic()
            if found is not None or left_s <= 0:
                return found
            await asyncio.sleep(min(self._wait_s, left_s))
            self._wait_s *= 2
