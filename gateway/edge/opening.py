"""
How a live stream begins: who asks for which session, and behind which event.

It is judged before the client is told anything, by what a manager says of the session
to whoever asks; from then on the managers judge, each time that the stream asks them.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from bus.client import Mad
from bus.errors import Invalid
from bus.events import BEGINNING, SessionEvent, position_in, position_of
from bus.messages import Session
from gateway.edge.caller import Caller, caller_of, limiter_of
from gateway.edge.limits import Limiter
from gateway.edge.parts import EdgeParts
from gateway.edge.streams import Client, Stream, Streams

OPEN_S = 5.0
# Less than the deadline of a pong: none is read while a message is served.
BROADCAST_S = 5.0


class Opening(NamedTuple):
    """
    What a client asks for when it opens a stream.
    """

    parts: EdgeParts
    caller: Caller
    limiter: Limiter
    session_id: str
    after: str | None

    @property
    def mad(self) -> Mad:
        """
        The edge's instance, in the caller's name.
        """
        return self.caller.mad()

    @property
    def expires_in_s(self) -> float:
        """
        How long the caller's token lasts from now on.
        """
        return self.caller.token_expires_at - self.parts.now()

    async def begin(self) -> str:
        """
        The id behind which the stream begins; judged before the client is answered.

        Raises:
            EverbusError: there is no such session for the caller, or no such id.
        """
        known = None
        if self.after not in (None, BEGINNING):
            known = position_in(self.after or "")
        session = await self._session()
        now = position_of(session)
        if known is not None and (known.life != now.life or known.number > now.number):
            raise Invalid(
                f"after is {known.id}, which is no event of session {session.id}; "
                f"{BEGINNING} gives all its events",
                field="after",
            )
        return self.after or now.id

    async def broadcast(self, message: Any) -> None:  # a JSON value
        """
        Tell all who follow the session, within the limits of whoever asks.

        Raises:
            EverbusError: as `Mad.broadcast`, and Overloaded.
        """
        self.limiter.check_rate(self.caller.principal)
        with self.limiter.at_work(self.caller.principal):
            await self.parts.desk.write(
                lambda: self.mad.broadcast(
                    self.session_id, message, timeout=BROADCAST_S
                )
            )

    async def _session(self) -> Session:
        # By the desk, which knows at once that the bus is away.
        found = await self.parts.desk.read(
            lambda: self.mad.get_session(self.session_id, timeout=OPEN_S),
        )
        return found.value

    def events(self, begin: str) -> AsyncGenerator[SessionEvent, None]:
        """
        What happens behind *begin*.
        """
        return self.mad.watch(self.session_id, after=begin)


async def asked(
    connection: HTTPConnection, parts: EdgeParts, session_id: str, after: str | None
) -> Opening:
    """
    Who asks for which stream, within the rate that they may ask at.

    Raises:
        Unauthenticated, Overloaded, Unavailable: as in `caller_of`.
    """
    caller = await caller_of(connection, parts)
    limiter = limiter_of(connection)
    limiter.check_rate(caller.principal)

    return Opening(parts, caller, limiter, session_id, after)


async def follow(
    opening: Opening,
    streams: Streams,
    answer: Callable[[str], Awaitable[Client]],
) -> None:
    """
    One stream from its opening to its end.

    Raises:
        EverbusError: it cannot be opened; the client was not answered yet.
    """
    principal = opening.caller.principal
    with streams.place(principal):
        begin = await opening.begin()
        client = await answer(begin)
        stream = Stream(client, begin, streams.patience)
        told = {"session": opening.session_id, "by": principal.name}
        with streams.known(stream, client.transport, **told):
            await stream.run(opening.events(begin), opening.expires_in_s)


def streams_in(app: FastAPI, parts: EdgeParts) -> Streams:
    """
    The streams that are open in *app*.
    """
    if not hasattr(app.state, "streams"):
        app.state.streams = Streams(parts.limits.streams)
    streams: Streams = app.state.streams

    return streams
