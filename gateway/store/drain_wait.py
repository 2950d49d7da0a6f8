"""
Waits for the archiver: a commit reaches the warm tier a little later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from everbus.bus.backoff import Backoff

FIRST_WAIT_S = 0.05

T = TypeVar("T")


class DrainWait:
    """
    The time that one answer may wait in all.
    """

    def __init__(self, most_s: float) -> None:
        self._until = time.monotonic() + most_s
        self._backoff = Backoff(FIRST_WAIT_S)

    async def first(self, attempt: Callable[[], Awaitable[T | None]]) -> T | None:
        """
        The first result of *attempt* that is not None; None when the time is up.

        It runs at least once, and then at growing intervals: frequent reads would slow
        the archiver.
        """
        while True:
            found = await attempt()
            left_s = self._until - time.monotonic()
            if found is not None or left_s <= 0:
                return found
            await asyncio.sleep(min(self._backoff.next_s(), left_s))
