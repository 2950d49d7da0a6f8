"""
A progress bar for people, and a pace that limits the load on the bus.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

# Called with the number of newly finished items.
Advance = Callable[[int], None]


@contextmanager
def counting_bar(what: str, total: int) -> Iterator[Advance]:
    """
    A progress bar on stderr, if that is a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # Imported late: only a terminal needs it.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


class Pace:
    """
    At most *rate* turns a second, evenly spaced; a late turn is not made up for.
    """

    def __init__(
        self,
        rate: float,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._step_s = 1 / rate
        self._now = now
        self._sleep = sleep
        self._next = now()

    async def turn(self) -> None:
        """
        Wait for the next turn.
        """
        now = self._now()
        if self._next > now:
            await self._sleep(self._next - now)
        self._next = max(self._next, now) + self._step_s
