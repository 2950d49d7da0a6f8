"""
Watching sessions: pushes of the managers in order, and gaps filled by requests.

A push comes over the wake-up channel and may be lost; a gap in the event numbers shows
that. `session.watch` is the truth: it is requested at the beginning, at a gap, and
every few seconds, which also renews the pushes and checks the right to watch.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from everbus.bus.backoff import HALF_JITTER, Backoff, jittered
from everbus.bus.errors import (
    EverbusError,
    Expired,
    Overloaded,
    Superseded,
    Unauthenticated,
    Unavailable,
)
from everbus.bus.events import BEGINNING, DELETED, EventPage, SessionEvent, position_in
from everbus.bus.waits import set_within

log = structlog.get_logger()

# The managers push for 15 s after each request.
ASK_EVERY_S = 5.0
# Interval without pushes, when the managers push to too many instances already.
POLL_EVERY_S = 1.0
# Events buffered for a slow consumer; the rest is requested when these are taken.
MAX_BUFFERED = 1_000
MAX_BUFFERED_BYTES = 4 * 1024 * 1024
FIRST_WAIT_S = 0.1
MAX_WAIT_S = 2.0
# Else all watches that begin at once ask at once for ever.
RENEWAL_JITTER = (0.8, 1.0)

# Any other refusal is final.
_PASSING = (Unavailable, Overloaded, Expired, Superseded)

# Requests the page behind an event id, with or without pushes from then on.
Ask = Callable[[str | None, bool], Awaitable[EventPage]]


class Push(NamedTuple):
    """
    Events of one commit; empty if they are too large for a push.
    """

    events: Sequence[SessionEvent]
    bytes: int


class Watches:
    """
    The watches of one instance; they share one channel of pushes.
    """

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """
        Whether the connection is closed.
        """
        return self._closed

    async def watch(
        self,
        session_id: str,
        ask: Ask,
        after: str | None,
        check: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[SessionEvent, None]:
        """
        Events of a session behind the event *after*, in order, each once.

        Raises:
            EverbusError: of *check*, which is called before each wait.
            EverbusError: the final refusal of *ask*.
            Unavailable: the connection was closed.
        """
        watch = Watch(ask, after)
        self._watches.setdefault(session_id, set()).add(watch)
        try:
            async for event in watch.events(self, check):
                yield event
                if event.kind == DELETED:
                    return
        finally:
            await watch.end()
            self._remove(session_id, watch)

    def receive(self, message: dict[str, Any], size_bytes: int) -> None:
        """
        Process a message of the channel, if it is a push.
        """
        watches = self._watches.get(message.get("session", ""))
        if not watches:
            return
        try:
            events = msgspec.convert(message.get("events"), list[SessionEvent])
        except msgspec.ValidationError as error:
            # From a newer manager: both versions understand a request.
            log.warning("push.garbled", error=str(error))
            events = []
        for watch in tuple(watches):
            watch.push_received(Push(events, size_bytes))

    def invalidate_all(self) -> None:
        """
        Have every watch request its events: pushes during an interruption are lost.
        """
        for watches in self._watches.values():
            for watch in watches:
                watch.invalidate()

    def close(self) -> None:
        """
        End every watch, also future ones.
        """
        self._closed = True
        self.invalidate_all()

    def _remove(self, session_id: str, watch: "Watch") -> None:
        watches = self._watches.get(session_id, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(session_id, None)


class Watch:
    """
    One iteration over the events of one session.
    """

    def __init__(self, ask: Ask, after: str | None) -> None:
        self._ask = ask
        self._after = after
        self._last = None if after in (None, BEGINNING) else position_in(after or "")
        # No push counts before the managers have accepted the first request.
        self._admitted = False
        self._buffer: deque[SessionEvent] = deque()
        self._bytes = 0
        self._behind = True
        self._pushed = True
        self._refused = False
        self._renew_at = self._retry_at = 0.0
        self._backoff = Backoff(FIRST_WAIT_S, MAX_WAIT_S, jitter=HALF_JITTER)
        self._asking: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    async def events(
        self, watching: Watches, check: Callable[[], None]
    ) -> AsyncGenerator[SessionEvent, None]:
        """
        The events, until a final refusal or until *watching* is closed.
        """
        while True:
            self._ask_if_due()
            if self._buffer:
                yield self._buffer.popleft()
            elif self._failure is not None:
                raise self._failure
            elif watching.closed:
                raise Unavailable("this connection is closed; connect() anew")
            else:
                check()
                await self._wait()

    async def end(self) -> None:
        """
        Cancel the request in flight.
        """
        asking = self._asking
        if asking is None:
            return
        if asking.get_loop() is asyncio.get_running_loop():
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        else:
            asking.get_loop().call_soon_threadsafe(asking.cancel)

    def push_received(self, push: Push) -> None:
        """
        Buffer the events of a push, if they continue the stream.
        """
        if not self._admitted:
            # The requested page may be older than this push.
            self._behind = True
            return
        if not push.events:
            self._behind = True
        before = len(self._buffer)
        for event in push.events:
            # A changed ACL may end the right to watch: a request checks that.
            shares_acl = event.patch is not None and "acl" in event.patch
            if (shares_acl and self._is_new(event)) or not self._accept(event):
                self._behind = True
                break
        if len(self._buffer) > before:
            self._bytes = push.bytes + (self._bytes if before else 0)
        self._changed.set()

    def invalidate(self) -> None:
        """
        Request the next page when the buffer is empty.
        """
        self._behind = True
        self._changed.set()

    def _ask_if_due(self) -> None:
        """
        Start a request when it is due, and collect its result.
        """
        if self._asking is not None and self._asking.done():
            asked, self._asking = self._asking, None
            self._failure = asked.exception()
        if self._asking is None and self._failure is None and self._due_in_s() <= 0:
            self._asking = asyncio.create_task(self._catch_up())
            self._asking.add_done_callback(lambda _: self._changed.set())

    def _due_in_s(self) -> float:
        behind = self._behind and not self._buffer
        due_at = self._retry_at if behind else max(self._retry_at, self._renew_at)

        return due_at - time.monotonic()

    async def _wait(self) -> None:
        self._changed.clear()
        asking = self._asking is not None
        await set_within(self._changed, None if asking else max(0.0, self._due_in_s()))

    async def _catch_up(self) -> None:
        """
        Request the next page, or schedule the next try.
        """
        self._behind = False
        try:
            self._take_page(await self._ask(self._after, self._pushed))
        except _PASSING as error:
            self._retry_later(error)
        except Unauthenticated as error:
            # The grant may be invalid while the token is valid: the first refusal
            # renews the grant, so the second refusal is about the token.
            if self._refused:
                raise
            self._retry_later(error)
            self._refused = True
        else:
            self._refused = False
            self._backoff.reset()
            every_s = ASK_EVERY_S if self._pushed else POLL_EVERY_S
            self._renew_at = time.monotonic() + jittered(every_s, RENEWAL_JITTER)
            self._pushed = True

    def _take_page(self, page: EventPage) -> None:
        """
        Buffer a page; events that do not fit are requested again.

        Raises:
            Unavailable: the page does not continue the stream.
        """
        self._admitted = True
        if self._after is None:
            self._last, self._after = position_in(page.next), page.next
        taken = all(map(self._accept, page.events))
        if not taken and not self._full():
            raise Unavailable(f"there is a gap behind event {self._after}")
        if not page.events and not page.done:
            raise Unavailable(f"nothing behind event {self._after} can be had yet")
        self._behind = self._behind or not taken or not page.done

    def _retry_later(self, error: EverbusError) -> None:
        """
        Schedule a retry; without pushes if the managers are overloaded.
        """
        if not self._backoff.failures:
            log.warning("watch.delayed", code=error.code, error=error.message)
        self._behind = True
        self._pushed = not isinstance(error, Overloaded)
        self._retry_at = time.monotonic() + self._backoff.next_s()

    @property
    def _number(self) -> int:
        return 0 if self._last is None else self._last.number

    def _full(self) -> bool:
        if not self._buffer:
            return False
        return len(self._buffer) >= MAX_BUFFERED or self._bytes > MAX_BUFFERED_BYTES

    def _is_new(self, event: SessionEvent) -> bool:
        return event.position.number > self._number

    def _accept(self, event: SessionEvent) -> bool:
        """
        Buffer the next event; return whether it is, or was, delivered.
        """
        position = event.position
        if self._last is not None and position.generation != self._last.generation:
            return False
        if position.number <= self._number:
            return True
        if position.number != self._number + 1 or self._full():
            return False
        self._buffer.append(event)
        self._last, self._after = position, event.id
        return True
