"""
The two transports of live streams: WebSocket and server-sent events.

Only the form is decided here: frames, or text (WHATWG HTML, section 9.2).
"""

import asyncio
import random
import re
import time
from typing import Any

from fastapi import WebSocket
from msgspec.json import encode
from starlette.types import Message, Receive, Send
from starlette.websockets import WebSocketDisconnect

from everbus.bus.errors import EverbusError, Invalid
from everbus.bus.events import SessionEvent
from everbus.gateway.edge import metrics
from everbus.gateway.edge.handshake import StreamHandshake
from everbus.gateway.edge.json_body import parse_message
from everbus.gateway.edge.limits import Buckets
from everbus.gateway.edge.stream_ends import BAD_MESSAGES, StreamEnd, StreamRefused
from everbus.gateway.edge.streams import StreamClient

# Kind of a stream's first message, which carries the id to resume from.
OPENED = "stream.opened"
# Interval of comments on an idle SSE stream: proxies close idle connections.
KEEP_ALIVE_S = 15.0
# Reconnect delay of browsers; random, since a restart ends all streams at once.
RETRY_MS = (500, 1500)
# A WebSocket has its burst of refused messages again after so long.
REFUSALS_WINDOW_S = 60.0
_REFUSED = "refused"
_BROADCAST = re.compile(r'\s*\{\s*"broadcast"\s*:')
# RFC 6455: a close frame has 125 bytes, 2 of them for the code.
MAX_REASON_BYTES = 123


class WebSocketClient(StreamClient):
    """
    A stream over a WebSocket; its client may broadcast, too.
    """

    transport = "ws"

    def __init__(self, websocket: WebSocket, handshake: StreamHandshake) -> None:
        self._websocket = websocket
        self._handshake = handshake
        allowed = handshake.context.limits.bad_messages
        self._refusals = Buckets(allowed / REFUSALS_WINDOW_S, allowed, time.monotonic)

    @classmethod
    async def open(
        cls, websocket: WebSocket, handshake: StreamHandshake, start_id: str
    ) -> "WebSocketClient":
        """
        Send `stream.opened` and return the client.
        """
        client = cls(websocket, handshake)
        content = {"kind": OPENED, "id": start_id, "session": handshake.session_id}
        await client._write(encode(content))

        return client

    async def send(self, event: SessionEvent) -> None:
        """
        Write *event* as one text message.
        """
        await self._write(encode(event))

    async def close(self, end: StreamEnd, last_id: str) -> None:
        """
        Close with the code of *end* and with the last id in the reason.
        """
        code, reason = close_frame(end, last_id)
        await self._send_asgi(
            {"type": "websocket.close", "code": code, "reason": reason}
        )

    async def wait_closed(self) -> None:
        """
        Serve the client's messages until it disconnects.
        """
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                self._handshake.count_message()
                await self._broadcast(message)
            except EverbusError as error:
                code = getattr(error, "refused_code", error.code)
                content = {"code": code, "message": error.message}
                await self._write(encode({"error": content}))
                self._count_refusal()

    def _count_refusal(self) -> None:
        """
        Count a refused message.

        Raises:
            StreamRefused: there were too many.
        """
        if self._refusals.wait_s(_REFUSED) > 0:
            metrics.LIMITED.labels("bad_messages").inc()
            raise StreamRefused(BAD_MESSAGES)
        self._refusals.take(_REFUSED)

    async def _broadcast(self, message: Message) -> None:
        """
        Broadcast the content of *message*; every other request is refused.
        """
        text = message.get("text") or ""
        # Parsing costs a hundred times more than this.
        command = parse_message(text) if _BROADCAST.match(text) else None
        if not isinstance(command, dict) or set(command) != {"broadcast"}:
            raise Invalid(
                'a message on a live stream is {"broadcast": …} and nothing else; '
                "use the REST routes for all other commands",
                field="message",
            )
        await self._handshake.broadcast(command["broadcast"])

    async def _write(self, text: bytes) -> None:
        await self._send_asgi({"type": "websocket.send", "text": text.decode()})

    async def _send_asgi(self, message: Message) -> None:
        try:
            await self._websocket.send(message)
        except WebSocketDisconnect as error:
            raise ConnectionResetError("the client hung up") from error


class SseClient(StreamClient):
    """
    A stream as server-sent events.
    """

    transport = "sse"

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send_asgi = send

    async def send_opened(self, start_id: str, session_id: str) -> None:
        """
        Write `stream.opened` and the reconnect delay.
        """
        retry_ms = random.randint(*RETRY_MS)  # noqa: S311 - no secret
        content = {"kind": OPENED, "id": start_id, "session": session_id}
        await self._write(
            b"retry: %d\n" % retry_ms + _sse_event(OPENED, start_id, content)
        )

    async def send(self, event: SessionEvent) -> None:
        """
        Write *event* as one server-sent event.
        """
        await self._write(_sse_event(event.kind, event.id, event))

    async def close(self, end: StreamEnd, last_id: str) -> None:
        """
        Write `cut` for a resumable end, else `end`.
        """
        content = {"code": end.code, "message": end.message, "id": last_id}
        await self._write(
            _sse_event("cut" if end.resumable else "end", last_id, content)
        )

    async def wait_closed(self) -> None:
        """
        Keep the connection alive until the client disconnects.
        """
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    message = await self._receive()
            except TimeoutError:
                await self._write(b":\n\n")
                continue
            if message["type"] == "http.disconnect":
                return

    async def _write(self, text: bytes) -> None:
        await self._send_asgi(
            {"type": "http.response.body", "body": text, "more_body": True}
        )


def close_frame(end: StreamEnd, last_id: str = "") -> tuple[int, str]:
    """
    Close code and reason: `<code> <id>`, or `<code>` without an id.
    """
    return end.close_code, f"{end.code} {last_id}".strip()[:MAX_REASON_BYTES]


def _sse_event(kind: str, identifier: str, content: Any) -> bytes:  # JSON values
    # JSON has no line break outside of strings, and none unescaped within.
    head = f"id: {identifier}\nevent: {kind}\ndata: ".encode()

    return head + encode(content) + b"\n\n"
