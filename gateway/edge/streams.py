"""
Live streams: events of one session for one client, for WebSocket and SSE alike.

A stream takes the next event when the last one is written, so only the connection's
buffer holds events for a client: a client that does not read is disconnected, never
waited for. At its end a stream writes the reason and the id to resume after, if the
connection still takes it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import ClassVar, NamedTuple, Protocol

import structlog

from everbus.bus.errors import EverbusError, Overloaded, Unavailable
from everbus.bus.events import SessionEvent
from everbus.gateway.edge import metrics
from everbus.gateway.edge.stream_ends import (
    DELETED,
    EXPIRED,
    INTERNAL_ERROR_CLOSE,
    RESTART,
    REVOKED,
    SLOW_CONSUMER,
    StreamEnd,
    StreamRefused,
    end_of,
)
from everbus.gateway.identity.principal import Principal
from everbus.gateway.identity.token_revocations import TokenRevocations
from everbus.gateway.telemetry.metrics import REVOKED_REFUSALS

log = structlog.get_logger()

# Deadlines for writing one event into a client's connection, and for the close of the
# stream, which waits behind all that the client did not read.
WRITE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 10.0


class StreamClient(Protocol):
    """
    The client of a stream: a WebSocket or an SSE response.

    A write waits for room in the connection, and is complete or does not happen.

    Attributes:
        transport: label of the metrics.
    """

    transport: ClassVar[str]

    async def send(self, event: SessionEvent) -> None:
        """
        Write *event*.
        """

    async def close(self, end: StreamEnd, last_id: str) -> None:
        """
        Write the end: its reason and the id to resume after.
        """

    async def wait_closed(self) -> None:
        """
        Serve the client's messages; return when it has disconnected.

        Raises:
            EverbusError, StreamRefused: a message ends the stream.
        """


class StreamTimeouts(NamedTuple):
    """
    How long a stream waits for one write and for its close, in seconds.
    """

    write_s: float = WRITE_TIMEOUT_S
    close_s: float = CLOSE_TIMEOUT_S


STREAM_TIMEOUTS = StreamTimeouts()


class Stream:
    """
    One stream, from its first event to its close.

    Attributes:
        last_id: id of the last written event, at first the id it starts after.
        sent: number of written events.
        principal: the caller, by its token.
        outcome: code of its end; `gone` after a disconnect by the client.
    """

    def __init__(
        self,
        client: StreamClient,
        last_id: str,
        timeouts: StreamTimeouts = STREAM_TIMEOUTS,
        principal: Principal | None = None,
    ) -> None:
        self.last_id = last_id
        self.principal = principal
        self.sent = 0
        self.outcome = "broken"
        self._client = client
        self._timeouts = timeouts
        self._end: StreamEnd | None = None
        self._finished = asyncio.Event()

    def finish(self, end: StreamEnd) -> None:
        """
        End the stream from outside; the first call counts.
        """
        self._end = self._end or end
        self._finished.set()

    async def run(
        self, events: AsyncGenerator[SessionEvent, None], expires_in_s: float
    ) -> None:
        """
        Forward *events* until they end, the token expires, the client is too slow, or
        it disconnects.

        Leaves no task behind, also when cancelled.
        """
        timer = asyncio.get_running_loop().call_later(
            max(0.0, expires_in_s), self.finish, EXPIRED
        )
        tasks = (
            asyncio.create_task(self._forward(events)),
            asyncio.create_task(self._client.wait_closed()),
            asyncio.create_task(self._finished.wait()),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()
            forwarded, closed, _ = await asyncio.gather(*tasks, return_exceptions=True)
        end = self._end or _end_of_task(forwarded) or _end_of_task(closed)
        self.outcome = end.code if end else "gone"
        if end is not None:
            await self._close_client(end)

    async def _close_client(self, end: StreamEnd) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._timeouts.close_s):
                await self._client.close(end, self.last_id)

    async def _forward(self, events: AsyncGenerator[SessionEvent, None]) -> None:
        # Closed here: an abandoned generator would live until it is collected.
        async with aclosing(events):
            async for event in events:
                try:
                    async with asyncio.timeout(self._timeouts.write_s):
                        await self._client.send(event)
                except TimeoutError:
                    return self.finish(SLOW_CONSUMER)
                self.last_id = event.id
                self.sent += 1
        # The events of a session end without an error only when it is deleted.
        return self.finish(DELETED)


def _end_of_task(outcome: object) -> StreamEnd | None:
    """
    The end of the stream that one of its tasks caused; None for a disconnect.
    """
    if isinstance(outcome, EverbusError):
        return end_of(outcome)
    if isinstance(outcome, StreamRefused):
        return outcome.end
    if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
        log.error("stream.broken", exc_info=outcome)
        return StreamEnd(
            "defect", INTERNAL_ERROR_CLOSE, True, "a fault of ours; connect again"
        )
    return None


def end_if_revoked(stream: Stream, revocations: TokenRevocations) -> None:
    """
    End *stream* if its token is revoked, or if nobody can tell and that refuses all.
    """
    if stream.principal is None or not revocations:
        return
    try:
        if not revocations.refuses(stream.principal):
            return
    except Unavailable as error:
        stream.finish(end_of(error))
        return
    REVOKED_REFUSALS.inc()
    stream.finish(REVOKED)


class Streams:
    """
    The open streams of one edge, counted per principal.
    """

    def __init__(self, limit: int, timeouts: StreamTimeouts = STREAM_TIMEOUTS) -> None:
        """
        Allow every principal *limit* streams.
        """
        self.timeouts = timeouts
        self._limit = limit
        self._open: set[Stream] = set()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._draining = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._open))

    @property
    def draining(self) -> bool:
        """
        Whether the edge is stopping.
        """
        return self._draining

    def drain(self) -> None:
        """
        End all streams, later ones as they open.
        """
        self._draining = True
        for stream in self:
            stream.finish(RESTART)

    def end_revoked(self, revocations: TokenRevocations) -> None:
        """
        End the streams whose token is revoked.
        """
        for stream in self:
            end_if_revoked(stream, revocations)

    @contextmanager
    def reserve(self, principal: Principal) -> Iterator[None]:
        """
        Take one of the places of *principal* for the time of the block.

        Raises:
            Overloaded: all its places are taken.
        """
        holder = (principal.tenant, principal.name)
        if self._counts[holder] >= self._limit:
            metrics.LIMITED.labels("streams").inc()
            raise Overloaded(
                f"{principal.name} has {self._limit} live streams open at this edge, "
                "which is the limit; close some, or share one among its readers",
                limit=self._limit,
            )
        self._counts[holder] += 1
        try:
            yield
        finally:
            self._counts[holder] -= 1
            if not self._counts[holder]:
                del self._counts[holder]

    @contextmanager
    def track(self, stream: Stream, transport: str, **fields: str) -> Iterator[None]:
        """
        Track *stream* for the time of the block; log its start and its end.
        """
        self._open.add(stream)
        if self._draining:
            stream.finish(RESTART)
        began = time.monotonic()
        log.info("stream.opened", transport=transport, **fields)
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
                **fields,
            )
