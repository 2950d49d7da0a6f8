"""
Live streams: the events of one session on their way to one client.

What holds for WebSockets and SSE alike. A stream asks for the next event when the
last one is written, so all that waits for a client is what its connection buffers: a
client that does not read is cut, never waited for. However a stream ends, its client
is told why and after which event to resume, if it can still be told anything.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import ClassVar, NamedTuple, Protocol

import structlog

from bus.errors import (
    EverbusError,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from bus.events import SessionEvent
from gateway.edge import metrics
from gateway.identity.principal import Principal

log = structlog.get_logger()

# How long one event may take to get into a client's connection, and then the last
# words of a stream, which wait behind all that the client did not read.
STALL_S = 10.0
LAST_WORDS_S = 10.0


class End(NamedTuple):
    """
    Why a stream ends.

    Attributes:
        code: stable, snake_case: one of `bus.errors`, or `slow_consumer`, `restart`.
        close: the close code of a WebSocket.
        resumable: whether to connect again is of use at once.
    """

    code: str
    close: int
    resumable: bool
    message: str


RESTART = End("restart", 1012, True, "this edge stops; connect again and resume")
SLOW = End("slow_consumer", 4008, True, "events were not read in time; resume")
DELETED = End("not_found", 4004, False, "the session was deleted")
EXPIRED = End("unauthenticated", 4001, False, "the token has expired; get a new one")
# As the HTTP statuses they stand beside, 4000 and some; 1011 and 1013 are RFC 6455's.
CLOSE_CODES: dict[str, int] = {
    Unauthenticated.code: 4001,
    Forbidden.code: 4003,
    NotFound.code: 4004,
    Expired.code: 4008,
    Invalid.code: 4022,
    Overloaded.code: 4029,
    Unavailable.code: 1013,
}
DEFECT_CLOSE = 1011


def end_of(error: EverbusError) -> End:
    """
    The end that *error* is for a stream.
    """
    resumable = isinstance(error, Unavailable)
    close = 1013 if resumable else CLOSE_CODES.get(error.code, DEFECT_CLOSE)

    return End(error.code, close, resumable, error.message)


class Client(Protocol):
    """
    The far end of a stream: a WebSocket or an SSE response.

    What is written waits for the room it needs, and is whole or not written at all.

    Attributes:
        transport: for the metrics.
    """

    transport: ClassVar[str]

    async def tell(self, event: SessionEvent) -> None:
        """
        Write *event*.
        """

    async def part(self, end: End, last_id: str) -> None:
        """
        Write the last words: why, and after which event to resume.
        """

    async def gone(self) -> None:
        """
        Return when the client has hung up; meanwhile, serve what it sends.

        Raises:
            EverbusError: it sent what ends the stream.
        """


class Patience(NamedTuple):
    """
    How long a stream waits for its client, in seconds.
    """

    stall_s: float = STALL_S
    last_words_s: float = LAST_WORDS_S


PATIENCE = Patience()


class Stream:
    """
    One stream, from its first event to its last words.

    Attributes:
        last_id: of the last event that was written, or where the stream began.
        sent: how many events were written.
        outcome: the code of its end; `gone` if the client hung up.
    """

    def __init__(
        self, client: Client, last_id: str, patience: Patience = PATIENCE
    ) -> None:
        self.last_id = last_id
        self.sent = 0
        self.outcome = "broken"
        self._client = client
        self._patience = patience
        self._end: End | None = None
        self._over = asyncio.Event()

    def finish(self, end: End) -> None:
        """
        End it, for a reason that does not lie in its events; the first one counts.
        """
        self._end = self._end or end
        self._over.set()

    async def run(
        self, events: AsyncGenerator[SessionEvent, None], expires_in_s: float
    ) -> None:
        """
        Carry *events* until they, the token or our patience end, or the client goes.

        Leaves no task behind, however it is left.
        """
        timer = asyncio.get_running_loop().call_later(
            max(0.0, expires_in_s), self.finish, EXPIRED
        )
        parts = (
            asyncio.create_task(self._carry(events)),
            asyncio.create_task(self._client.gone()),
            asyncio.create_task(self._over.wait()),
        )
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            for part in parts:
                part.cancel()
            carried, gone, _ = await asyncio.gather(*parts, return_exceptions=True)
        end = self._end or _end_in(carried) or _end_in(gone)
        self.outcome = end.code if end else "gone"
        if end is not None:
            await self._part(end)

    async def _part(self, end: End) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._patience.last_words_s):
                await self._client.part(end, self.last_id)

    async def _carry(self, events: AsyncGenerator[SessionEvent, None]) -> None:
        # Closed here: one that is left half-way would linger until it is collected.
        async with aclosing(events):
            async for event in events:
                try:
                    async with asyncio.timeout(self._patience.stall_s):
                        await self._client.tell(event)
                except TimeoutError:
                    return self.finish(SLOW)
                self.last_id = event.id
                self.sent += 1
        # What watching ends with where nothing is refused.
        return self.finish(DELETED)


def _end_in(outcome: object) -> End | None:
    """
    The end in how a part of a stream ended; none if the client hung up.
    """
    if isinstance(outcome, EverbusError):
        return end_of(outcome)
    if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
        log.error("stream.broken", exc_info=outcome)
        return End("defect", DEFECT_CLOSE, True, "a fault of ours; connect again")
    return None


class Streams:
    """
    All streams that are open at one edge, counted by their principals.
    """

    def __init__(self, most: int, patience: Patience = PATIENCE) -> None:
        """
        Allow every principal *most* streams.
        """
        self.patience = patience
        self._most = most
        self._open: set[Stream] = set()
        self._held: Counter[tuple[str, str]] = Counter()
        self._draining = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._open))

    @property
    def draining(self) -> bool:
        """
        Whether the edge stops.
        """
        return self._draining

    def drain(self) -> None:
        """
        End all streams, and every one that is opened from now on.
        """
        self._draining = True
        for stream in self:
            stream.finish(RESTART)

    @contextmanager
    def place(self, principal: Principal) -> Iterator[None]:
        """
        One of the places that *principal* has, for the time of the block.

        Raises:
            Overloaded: all of them are taken.
        """
        holder = (principal.tenant, principal.name)
        if self._held[holder] >= self._most:
            metrics.LIMITED.labels("streams").inc()
            raise Overloaded(
                f"{principal.name} has {self._most} live streams open at this edge, "
                "and may have no more; close some, or share one among its readers",
                limit=self._most,
            )
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]

    @contextmanager
    def known(self, stream: Stream, transport: str, **told: str) -> Iterator[None]:
        """
        Know of *stream* for the time of the block, and log its two ends.
        """
        self._open.add(stream)
        if self._draining:
            stream.finish(RESTART)
        began = time.monotonic()
        log.info("stream.opened", transport=transport, **told)
        try:
            with metrics.STREAMS.labels(transport).track_inprogress():
                yield
        finally:
            self._open.discard(stream)
            log.info(
                "stream.ended",
                transport=transport,
                code=stream.outcome,
                sent=stream.sent,
                duration_ms=round((time.monotonic() - began) * 1000),
                **told,
            )
