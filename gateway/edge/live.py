"""
Routes of live events: `WS /sessions/{id}/live` and SSE `/sessions/{id}/events`.

Both send the same events and resume after any of them, at any edge: the id of the
client's last event alone decides what comes next.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, WebSocket
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from everbus.bus.errors import EverbusError
from everbus.gateway.edge import openapi
from everbus.gateway.edge.context import EdgeContext
from everbus.gateway.edge.handshake import (
    StreamHandshake,
    handshake_of,
    serve_stream,
    streams_in,
)
from everbus.gateway.edge.route import refuse_unknown_query
from everbus.gateway.edge.stream_ends import end_of
from everbus.gateway.edge.streams import StreamClient, Streams
from everbus.gateway.edge.transports import SseClient, WebSocketClient, close_frame

# Subprotocols that a browser offers on a WebSocket: ours and one with the token, since
# a browser can set no header here, and a URL gets into logs.
SUBPROTOCOL = "everbus.live"
BEARER = "everbus.bearer."
PARAMETERS = ("after",)

_SSE = (
    "Events in order, each with its `id`, its kind as `event` and JSON as `data`. The "
    "first is `stream.opened` with the id to resume from. The last is `cut` (connect "
    "again and resume after its id) or `end` (a new connection would end likewise)."
)
After = Annotated[
    str | None,
    Query(
        max_length=128,
        description="The id of your last event; `0`: from the first event on; without "
        "it: from now on.",
    ),
]
LastEventId = Annotated[
    str | None,
    Header(max_length=128, description="As `after`, from a browser; takes precedence."),
]


class LiveRoutes:
    """
    Handlers of the two live routes of one edge.
    """

    def __init__(self, context: EdgeContext) -> None:
        self._context = context

    async def events(
        self,
        request: Request,
        session_id: str,
        after: After = None,
        last_event_id: LastEventId = None,
    ) -> Response:
        """
        Follow a session by server-sent events.
        """
        refuse_unknown_query(request.query_params, PARAMETERS)
        start = last_event_id or after
        handshake = await handshake_of(request, self._context, session_id, start)

        return EventStream(handshake, streams_in(request.app, self._context))

    async def live(
        self, websocket: WebSocket, session_id: str, after: str | None = None
    ) -> None:
        """
        Follow a session by WebSocket.
        """
        offered = websocket.scope.get("subprotocols", [])
        # Accept first: a browser shows its page the close code of a connection, and
        # nothing of a refused handshake.
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            refuse_unknown_query(websocket.query_params, PARAMETERS)
            connection = _with_bearer(websocket)
            handshake = await handshake_of(connection, self._context, session_id, after)
            await serve_stream(
                handshake,
                streams_in(websocket.app, self._context),
                lambda start_id: WebSocketClient.open(websocket, handshake, start_id),
            )
        except EverbusError as error:
            await websocket.close(*close_frame(end_of(error)))


def live_router(context: EdgeContext) -> APIRouter:
    """
    The routes of live streams.
    """
    router = APIRouter(tags=["live"])
    routes = LiveRoutes(context)
    router.add_api_route(
        "/sessions/{session_id}/events",
        routes.events,
        response_class=EventStream,
        responses=openapi.stream(_SSE),
        summary="Follow a session by server-sent events",
        description="",
        methods=["GET"],
    )
    router.add_api_websocket_route("/sessions/{session_id}/live", routes.live)

    return router


class EventStream(Response):
    """
    A stream as a response with server-sent events.
    """

    media_type = "text/event-stream"

    def __init__(self, handshake: StreamHandshake, streams: Streams) -> None:
        """
        Prepare the response; the stream starts when it is sent.
        """
        headers = {
            "Cache-Control": "no-store",
            # Without a charset parameter: this type is always UTF-8.
            "Content-Type": self.media_type,
            # Without it nginx buffers events until they fill a page.
            "X-Accel-Buffering": "no",
        }
        super().__init__(headers=headers)
        # A stream has no length.
        del self.headers["content-length"]
        self._handshake = handshake
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Send the stream; a failed handshake raises before anything is sent.
        """

        async def accept(start_id: str) -> StreamClient:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            client = SseClient(receive, send)
            await client.send_opened(start_id, self._handshake.session_id)

            return client

        await serve_stream(self._handshake, self._streams, accept)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _with_bearer(websocket: WebSocket) -> HTTPConnection:
    """
    The connection with its token moved from the subprotocols to the header.
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
