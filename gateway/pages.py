"""
Older pages of timelines, fetched aside: neither session nor lane waits for them.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from bus.errors import EverbusError, Unavailable
from bus.messages import TimelinePage
from gateway.delivery import Work
from handlers.commands import WarmPage

log = structlog.get_logger()


class WarmTier(Protocol):
    """
    Where the older part of a timeline is read from.
    """

    async def page(self, session_id: str, wanted: WarmPage) -> TimelinePage:
        """
        Entries of *wanted*, all of them; raises Unavailable if it cannot.
        """
        ...


class Pages:
    """
    The pages that are being fetched for one lane.
    """

    def __init__(self, warm: WarmTier, fetched: Callable[[Work], None]) -> None:
        self._warm = warm
        self._fetched = fetched
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def fetch(self, work: Work) -> None:
        """
        Begin to fetch the page that *work* asks for; it comes back with it, or
        with the reason why it cannot be had.
        """
        task = asyncio.create_task(self._fetch(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """
        Fetch nothing more; what was asked for is still pending on its stream.
        """
        for task in self._tasks:
            task.cancel()

    async def _fetch(self, work: Work) -> None:
        if work.envelope is None or not isinstance(work.page, WarmPage):
            raise AssertionError("only a page of the warm tier is fetched")
        try:
            work.page = await self._warm.page(work.envelope.session, work.page)
        except EverbusError as error:
            work.page = error
        except Exception as error:
            # A defect of the tier: the caller must hear of it all the same.
            log.exception("page.failed", session=work.envelope.session)
            work.page = Unavailable(f"the warm tier failed: {type(error).__name__}")
        self._fetched(work)
