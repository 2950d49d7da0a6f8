"""
The events of a session as they happen: `WS /sessions/{id}/live`, SSE `…/events`.

Both tell the same events, and both resume behind any of them, at any edge: all that
decides what comes next is the id of the last event that the client has.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, WebSocket
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bus.errors import EverbusError
from gateway.edge.clients import Listener, Socket, farewell
from gateway.edge.opening import Opening, asked, follow, streams_in
from gateway.edge.parts import EdgeParts
from gateway.edge.streams import Client, Streams, end_of

# What browsers name when they open a WebSocket: ours, and beside it the token, since
# they can send no header of their own, and what is in a URL gets into logs.
SUBPROTOCOL = "everbus.live"
BEARER = "everbus.bearer."

_SSE = (
    "Events in their order, each with its `id`, its kind as `event` and JSON as "
    "`data`. First comes `stream.opened` with the id to resume from. In the end comes "
    "`cut`: connect again and resume behind its id, or `end`: that would be in vain."
)
After = Annotated[
    str | None,
    Query(
        max_length=128,
        description="The id of the last event that you have; `0`: from the very "
        "beginning; without it: from now on.",
    ),
]
LastEventId = Annotated[
    str | None,
    Header(max_length=128, description="The same, as browsers send it; counts first."),
]


def live_router(parts: EdgeParts) -> APIRouter:
    """
    The routes of live streams.
    """
    router = APIRouter(tags=["live"])

    @router.get(
        "/sessions/{session_id}/events",
        response_class=EventStream,
        responses={200: {"description": _SSE, "content": {"text/event-stream": {}}}},
        summary="Follow a session by server-sent events",
    )
    async def events(
        request: Request,
        session_id: str,
        after: After = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        opening = await asked(request, parts, session_id, last_event_id or after)

        return EventStream(opening, streams_in(request.app, parts))

    @router.websocket("/sessions/{session_id}/live")
    async def live(
        websocket: WebSocket, session_id: str, after: str | None = None
    ) -> None:
        offered = websocket.scope.get("subprotocols", [])
        # Accepted before anything is judged: of a handshake that was refused, a
        # browser tells its page nothing, of a close code it does.
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            shown = _with_bearer(websocket)
            opening = await asked(shown, parts, session_id, after)
            await follow(
                opening,
                streams_in(websocket.app, parts),
                lambda begin: Socket.opened(websocket, opening, begin),
            )
        except EverbusError as error:
            await websocket.close(*farewell(end_of(error)))

    return router


class EventStream(Response):
    """
    A stream as a response of server-sent events.
    """

    media_type = "text/event-stream"

    def __init__(self, opening: Opening, streams: Streams) -> None:
        """
        Prepare a response; everything is done when it is sent.
        """
        headers = {
            "Cache-Control": "no-store",
            # Without a charset, which this type does not have: it is UTF-8.
            "Content-Type": self.media_type,
            # Else nginx would collect events until they fill a page.
            "X-Accel-Buffering": "no",
        }
        super().__init__(headers=headers)
        # It has no length.
        del self.headers["content-length"]
        self._opening = opening
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Send it; what cannot be opened is raised before anything is sent.
        """

        async def answer(begin: str) -> Client:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            client = Listener(receive, send)
            await client.greet(begin, self._opening.session_id)

            return client

        await follow(self._opening, self._streams, answer)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _with_bearer(websocket: WebSocket) -> HTTPConnection:
    """
    The handshake, a token among its subprotocols put where all others are.
    """
    scope = dict(websocket.scope)
    tokens = [
        one.removeprefix(BEARER)
        for one in scope.get("subprotocols", [])
        if one.startswith(BEARER)
    ]
    if tokens and "authorization" not in websocket.headers:
        sent = (b"authorization", f"Bearer {tokens[0]}".encode("latin-1"))
        scope["headers"] = [*scope["headers"], sent]

    return HTTPConnection(scope)
