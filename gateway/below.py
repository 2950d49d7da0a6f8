"""
What is read from the tiers below the hot one, aside: the lane never waits for it.

A session that is not hot is loaded once, however many commands wait for it; what a
command wants beside its session is read for it alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from bus.errors import EverbusError, Unavailable
from bus.messages import Session
from gateway import metrics
from gateway.delivery import Work
from handlers.wanted import Wanted

log = structlog.get_logger()

# Sessions of one load, and loads at once: a slow one holds up nobody else's.
LOADED_AT_ONCE = 256
LOADS_AT_ONCE = 16
ANSWERED_AT_ONCE = 32

Loaded = Session | EverbusError | None


class Tiers(Protocol):
    """
    The tiers below, as `gateway.store.reader` has them.
    """

    async def load_each(
        self, session_ids: Sequence[str], found: Callable[[str, Loaded], None]
    ) -> None:
        """
        Tell *found* of each session, as soon as it is there, how it is to become
        hot; None if no tier holds it, an error if it cannot be had.
        """
        ...

    async def answer(self, session: Session | None, wanted: Wanted) -> Any:
        """
        What *wanted* names; raises EverbusError if it cannot be had.
        """
        ...


class Below:
    """
    The reads that are under way for one lane.

    Attributes:
        loaded: session id → what a load brought; the lane takes it out of here.
    """

    def __init__(
        self,
        tiers: Tiers,
        answered: Callable[[Work], None],
        arrived: Callable[[], None],
    ) -> None:
        self.loaded: dict[str, Loaded] = {}
        self._tiers = tiers
        self._answered = answered
        self._arrived = arrived
        self._wanted: dict[str, None] = {}
        self._loading: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(ANSWERED_AT_ONCE)

    def __len__(self) -> int:
        return len(self._answering)

    def load(self, session_id: str) -> None:
        """
        Begin to load a session; it appears in `loaded`.
        """
        self._wanted[session_id] = None
        if len(self._loading) < LOADS_AT_ONCE:
            task = asyncio.create_task(self._load())
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)

    def answer(self, work: Work, session: Session | None) -> None:
        """
        Begin to read what *work* wants; it comes back with it, or with the reason
        why it cannot be had.
        """
        task = asyncio.create_task(self._answer(work, session))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def cancel(self) -> None:
        """
        Read nothing more; what was asked for is still pending on its stream.
        """
        for task in (*self._answering, *self._loading):
            task.cancel()
        self._wanted.clear()
        self.loaded.clear()

    async def _load(self) -> None:
        """
        Load what is wanted, many at once, until nothing is.
        """
        while self._wanted:
            some = list(self._wanted)[:LOADED_AT_ONCE]
            for session_id in some:
                del self._wanted[session_id]
            await self._load_some(some)

    async def _load_some(self, session_ids: Sequence[str]) -> None:
        left = set(session_ids)

        def found(session_id: str, loaded: Loaded) -> None:
            left.discard(session_id)
            metrics.WARM_LOADS.labels(_told(loaded)).inc()
            self.loaded[session_id] = loaded
            self._arrived()

        error: EverbusError = Unavailable("the tiers below told nothing of it")
        try:
            await self._tiers.load_each(session_ids, found)
        except EverbusError as failed:
            error = failed
        except Exception as failed:
            # A defect of the tier: the callers must hear of it all the same.
            log.exception("load.failed", sessions=len(session_ids))
            error = _broken(failed)
        for session_id in tuple(left):
            found(session_id, error)

    async def _answer(self, work: Work, session: Session | None) -> None:
        if work.wants is None:
            raise AssertionError("only what is wanted is read")
        try:
            async with self._turns:
                work.given = await self._tiers.answer(session, work.wants)
        except EverbusError as error:
            work.given = error
        except Exception as error:
            log.exception("answer.failed", session=work.session)
            work.given = _broken(error)
        self._answered(work)


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"the tiers below failed: {type(error).__name__}")


def _told(found: Loaded) -> str:
    if found is None:
        return "nowhere"
    return found.code if isinstance(found, EverbusError) else "found"
