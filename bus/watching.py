"""
Watching sessions: what the managers push, put in order, and what is missing asked for.

A push comes over the wake-up channel and may be lost; the number of each event tells
whether one was. `session.watch` is the truth: it is asked at the beginning, wherever
a number is missing, and every few seconds, which also renews the pushes and the right
to them.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog

from bus.errors import (
    EverbusError,
    Expired,
    Overloaded,
    Superseded,
    Unauthenticated,
    Unavailable,
)
from bus.events import BEGINNING, DELETED, EventPage, SessionEvent, position_in

log = structlog.get_logger()

# The managers push for 15 s after each question.
ASK_EVERY_S = 5.0
# And how often is asked where they push to too many already.
POLL_EVERY_S = 1.0
# What waits for a slow consumer; the rest is asked for when that has been taken.
MAX_BUFFERED = 1_000
MAX_BUFFERED_BYTES = 4 * 1024 * 1024
FIRST_WAIT_S = 0.1
MAX_WAIT_S = 2.0

# Whatever else is refused is refused for good.
_PASSING = (Unavailable, Overloaded, Expired, Superseded)

# Asks for the page behind an event id, pushing from then on or not.
Ask = Callable[[str | None, bool], Awaitable[EventPage]]


class Pushed(NamedTuple):
    """
    What one commit made of a session; without events: more than can be pushed.
    """

    events: Sequence[SessionEvent]
    bytes: int


class Watching:
    """
    The watches of one instance, and the pushes that they share.
    """

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """
        Whether nothing can be heard any more.
        """
        return self._closed

    async def watch(
        self, session_id: str, ask: Ask, after: str | None
    ) -> AsyncGenerator[SessionEvent, None]:
        """
        What happens in a session behind the event *after*, in order, each once.

        Raises:
            EverbusError: what *ask* is refused with, but for what passes.
            Unavailable: the connection was closed.
        """
        watch = Watch(ask, after)
        self._watches.setdefault(session_id, set()).add(watch)
        try:
            async for event in watch.events(self):
                yield event
                if event.kind == DELETED:
                    return
        finally:
            await watch.end()
            self._leave(session_id, watch)

    def hear(self, told: dict[str, Any], size_bytes: int) -> None:
        """
        Take what came over the channel, if it is a push.
        """
        watches = self._watches.get(told.get("session", ""))
        if not watches:
            return
        try:
            events = msgspec.convert(told.get("events"), list[SessionEvent])
        except msgspec.ValidationError as error:
            # Of a newer manager: asking is a way that both understand.
            log.warning("push.garbled", error=str(error))
            events = []
        for watch in tuple(watches):
            watch.take(Pushed(events, size_bytes))

    def missed(self) -> None:
        """
        Have every watch ask: what was pushed while nobody listened is lost.
        """
        for watches in self._watches.values():
            for watch in watches:
                watch.doubt()

    def close(self) -> None:
        """
        End every watch, those to come as well.
        """
        self._closed = True
        self.missed()

    def _leave(self, session_id: str, watch: "Watch") -> None:
        watches = self._watches.get(session_id, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(session_id, None)


class Watch:
    """
    One iteration over what happens in one session.
    """

    def __init__(self, ask: Ask, after: str | None) -> None:
        self._ask = ask
        self._after = after
        self._tip = None if after in (None, BEGINNING) else position_in(after or "")
        # Nothing that is pushed counts before the managers have let it ask.
        self._admitted = False
        self._buffer: deque[SessionEvent] = deque()
        self._bytes = 0
        self._behind = True
        self._pushed = True
        self._refused = False
        self._renew_at = self._retry_at = 0.0
        self._wait_s = FIRST_WAIT_S
        self._asking: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._news = asyncio.Event()

    async def events(self, watching: Watching) -> AsyncGenerator[SessionEvent, None]:
        """
        The events, until asking is refused or *watching* is closed.
        """
        while True:
            self._look_after()
            if self._buffer:
                yield self._buffer.popleft()
            elif self._failure is not None:
                raise self._failure
            elif watching.closed:
                raise Unavailable("this connection is closed; connect() anew")
            else:
                await self._wait()

    async def end(self) -> None:
        """
        Ask no more.
        """
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def take(self, pushed: Pushed) -> None:
        """
        Take what was pushed, if it is what comes next.
        """
        if not self._admitted:
            # The page on its way may have been made before this happened.
            self._behind = True
            return
        if not pushed.events:
            self._behind = True
        before = len(self._buffer)
        for event in pushed.events:
            # Whoever shares a session decides who may watch it: that is asked.
            shares = event.patch is not None and "acl" in event.patch
            if (shares and self._is_new(event)) or not self._accept(event):
                self._behind = True
                break
        if len(self._buffer) > before:
            self._bytes = pushed.bytes + (self._bytes if before else 0)
        self._news.set()

    def doubt(self) -> None:
        """
        Ask as soon as what is there has been taken.
        """
        self._behind = True
        self._news.set()

    def _look_after(self) -> None:
        """
        Begin to ask when it is time, and see what came of it.
        """
        if self._asking is not None and self._asking.done():
            asked, self._asking = self._asking, None
            self._failure = asked.exception()
        if self._asking is None and self._failure is None and self._due_in_s() <= 0:
            self._asking = asyncio.create_task(self._catch_up())
            self._asking.add_done_callback(lambda _: self._news.set())

    def _due_in_s(self) -> float:
        behind = self._behind and not self._buffer
        due_at = self._retry_at if behind else max(self._retry_at, self._renew_at)

        return due_at - time.monotonic()

    async def _wait(self) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(
                None if self._asking is not None else max(0.0, self._due_in_s())
            ):
                await self._news.wait()

    async def _catch_up(self) -> None:
        """
        Ask for the next page, or note when to try again.
        """
        self._behind = False
        try:
            self._turn(await self._ask(self._after, self._pushed))
        except _PASSING as error:
            self._put_off(error)
        except Unauthenticated as error:
            # A grant may count no longer where the token still does: it is shown
            # anew after the first refusal, and the second one is about the token.
            if self._refused:
                raise
            self._put_off(error)
            self._refused = True
        else:
            self._refused = False
            self._wait_s = FIRST_WAIT_S
            # Jitter, else all that begin at once ask at once for ever.
            every_s = ASK_EVERY_S if self._pushed else POLL_EVERY_S
            self._renew_at = time.monotonic() + every_s * random.uniform(0.8, 1)  # noqa: S311
            self._pushed = True

    def _turn(self, page: EventPage) -> None:
        """
        Take a page; what of it does not fit is asked for again.

        Raises:
            Unavailable: it does not begin where it should.
        """
        self._admitted = True
        if self._after is None:
            self._tip, self._after = position_in(page.next), page.next
        taken = all(map(self._accept, page.events))
        if not taken and not self._full():
            raise Unavailable(f"there is a gap behind event {self._after}")
        if not page.events and not page.done:
            raise Unavailable(f"nothing behind event {self._after} can be had yet")
        self._behind = self._behind or not taken or not page.done

    def _put_off(self, error: EverbusError) -> None:
        """
        Try again a little later; where too many watch already, without pushes.
        """
        if self._wait_s == FIRST_WAIT_S:
            log.warning("watch.delayed", code=error.code, error=error.message)
        self._behind = True
        self._pushed = not isinstance(error, Overloaded)
        self._retry_at = time.monotonic() + self._wait_s * random.uniform(0.5, 1.5)  # noqa: S311
        self._wait_s = min(2 * self._wait_s, MAX_WAIT_S)

    @property
    def _number(self) -> int:
        return 0 if self._tip is None else self._tip.number

    def _full(self) -> bool:
        if not self._buffer:
            return False
        return len(self._buffer) >= MAX_BUFFERED or self._bytes > MAX_BUFFERED_BYTES

    def _is_new(self, event: SessionEvent) -> bool:
        return event.position.number > self._number

    def _accept(self, event: SessionEvent) -> bool:
        """
        Whether it is had now, be it since earlier.
        """
        place = event.position
        if self._tip is not None and place.life != self._tip.life:
            return False
        if place.number <= self._number:
            return True
        if place.number != self._number + 1 or self._full():
            return False
        self._buffer.append(event)
        self._tip, self._after = place, event.id
        return True
