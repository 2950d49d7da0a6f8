"""
The handshake of a live stream: its caller, its session and its first event.

It is checked before the client gets an answer, by a read of the session as the caller.
Later the managers check the caller's rights at each of the stream's reads.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from everbus.bus.client import Mad
from everbus.bus.errors import Invalid
from everbus.bus.events import BEGINNING, SessionEvent, position_in, position_of
from everbus.bus.messages import Session
from everbus.gateway.edge.caller import Caller, authenticate, limiter_of
from everbus.gateway.edge.context import EdgeContext
from everbus.gateway.edge.limits import Limiter
from everbus.gateway.edge.streams import Stream, StreamClient, Streams, end_if_revoked

OPEN_S = 5.0
# Less than the deadline of a pong: no pong is read while a message is served.
BROADCAST_S = 5.0


class StreamHandshake(NamedTuple):
    """
    The request of a client for a stream.
    """

    context: EdgeContext
    caller: Caller
    limiter: Limiter
    session_id: str
    after: str | None

    @property
    def mad(self) -> Mad:
        """
        The edge's instance, acting for the caller.
        """
        return self.caller.mad()

    @property
    def expires_in_s(self) -> float:
        """
        Remaining lifetime of the caller's token.
        """
        return self.caller.token_expires_at - self.context.now()

    async def start_id(self) -> str:
        """
        The id of the event before the stream's first; checked before the answer.

        Raises:
            EverbusError: the caller sees no such session, or the id is no event of it.
        """
        track = None
        if self.after not in (None, BEGINNING):
            track = position_in(self.after or "")
        session = await self._session()
        now = position_of(session)
        if track is not None and (
            track.generation != now.generation or track.number > now.number
        ):
            raise Invalid(
                f"after is {track.id}, which is no event of session {session.id}; "
                f"{BEGINNING} gives all its events",
                field="after",
            )
        return self.after or now.id

    def count_message(self) -> None:
        """
        Count one message of the client, whatever it says, against the caller's rate.

        Raises:
            Overloaded: the caller or its tenant exceeds its rate.
        """
        self.limiter.check_rate(self.caller.principal)

    async def broadcast(self, message: Any) -> None:  # a JSON value
        """
        Broadcast to the session's subscribers, within the caller's concurrency.

        Raises:
            EverbusError: as `Mad.broadcast`, and Overloaded.
        """
        with self.limiter.in_flight(self.caller.principal):
            await self.context.fallback.write(
                lambda: self.mad.broadcast(
                    self.session_id, message, timeout=BROADCAST_S
                )
            )

    async def _session(self) -> Session:
        # By the fallback, which knows at once when the bus is away.
        found = await self.context.fallback.read(
            lambda: self.mad.get_session(self.session_id, timeout=OPEN_S),
        )
        return found.value

    def events(self, start_id: str) -> AsyncGenerator[SessionEvent, None]:
        """
        The events after *start_id*.
        """
        return self.mad.watch(self.session_id, after=start_id)


async def handshake_of(
    connection: HTTPConnection, context: EdgeContext, session_id: str, after: str | None
) -> StreamHandshake:
    """
    Authenticate a request for a stream and count it against the caller's rate.

    Raises:
        Unauthenticated, Overloaded, Unavailable: as in `authenticate`.
    """
    caller = await authenticate(connection, context)
    limiter = limiter_of(connection)
    limiter.check_rate(caller.principal)

    return StreamHandshake(context, caller, limiter, session_id, after)


async def serve_stream(
    handshake: StreamHandshake,
    streams: Streams,
    accept: Callable[[str], Awaitable[StreamClient]],
) -> None:
    """
    Serve one stream from its handshake to its end.

    Raises:
        EverbusError: the handshake failed; the client has no answer yet.
    """
    principal = handshake.caller.principal
    with streams.reserve(principal):
        start_id = await handshake.start_id()
        client = await accept(start_id)
        stream = Stream(client, start_id, streams.timeouts, principal)
        fields = {"session": handshake.session_id, "by": principal.name}
        with streams.track(stream, client.transport, **fields):
            # It may have been revoked since the request was let in.
            if handshake.context.revocations is not None:
                end_if_revoked(stream, handshake.context.revocations)
            await stream.run(handshake.events(start_id), handshake.expires_in_s)


def streams_in(app: FastAPI, context: EdgeContext) -> Streams:
    """
    The open streams of *app*.
    """
    if not hasattr(app.state, "streams"):
        app.state.streams = Streams(context.limits.streams)
    streams: Streams = app.state.streams

    return streams
