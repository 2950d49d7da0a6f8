"""
The two kinds of clients that live streams have: WebSockets, and readers of SSE.

Only how things are said is told here: as frames, or as text (WHATWG HTML, section 9.2).
"""

import asyncio
import random
from typing import Any

from fastapi import WebSocket
from msgspec.json import encode
from starlette.types import Message, Receive, Send
from starlette.websockets import WebSocketDisconnect

from bus.errors import EverbusError, Invalid
from bus.events import SessionEvent
from gateway.edge.opening import Opening
from gateway.edge.streams import Client, End
from gateway.edge.strict_json import parsed

# The first message of a stream, with the id to resume from before anything happens.
OPENED = "stream.opened"
# How often a silent SSE stream is written to, for what closes silent connections.
BEAT_S = 15.0
# After how many ms a browser comes back; spread, since a restart ends all at once.
RETRY_MS = (500, 1500)
# RFC 6455: a close frame has 125 bytes, two of them for the code.
MAX_REASON_BYTES = 123


class Socket(Client):
    """
    A stream's client over a WebSocket; it may broadcast, too.
    """

    transport = "ws"

    def __init__(self, websocket: WebSocket, opening: Opening) -> None:
        self._websocket = websocket
        self._opening = opening

    @classmethod
    async def opened(
        cls, websocket: WebSocket, opening: Opening, begin: str
    ) -> "Socket":
        """
        The client, told from where on it is told everything.
        """
        client = cls(websocket, opening)
        told = {"kind": OPENED, "id": begin, "session": opening.session_id}
        await client._write(encode(told))

        return client

    async def tell(self, event: SessionEvent) -> None:
        """
        Write *event* as one text message.
        """
        await self._write(encode(event))

    async def part(self, end: End, last_id: str) -> None:
        """
        Close with the code of *end*, and the id in the reason.
        """
        code, reason = farewell(end, last_id)
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def gone(self) -> None:
        """
        Serve what the client sends until it hangs up.
        """
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                await self._hear(message)
            except EverbusError as error:
                code = getattr(error, "refused_code", error.code)
                told = {"code": code, "message": error.message}
                await self._write(encode({"error": told}))

    async def _hear(self, message: Message) -> None:
        """
        Do what a message asks for: broadcast, and nothing else.
        """
        said = parsed((message.get("text") or "").encode())
        if not isinstance(said, dict) or set(said) != {"broadcast"}:
            raise Invalid(
                'a message on a live stream is {"broadcast": …} and nothing else; '
                "for all other commands there are the REST routes",
                field="message",
            )
        await self._opening.broadcast(said["broadcast"])

    async def _write(self, text: bytes) -> None:
        await self._send({"type": "websocket.send", "text": text.decode()})

    async def _send(self, message: Message) -> None:
        try:
            await self._websocket.send(message)
        except WebSocketDisconnect as error:
            raise ConnectionResetError("the client hung up") from error


class Listener(Client):
    """
    A stream's client that reads server-sent events.
    """

    transport = "sse"

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def greet(self, begin: str, session_id: str) -> None:
        """
        Say from where on everything is told, and when to come back.
        """
        retry_ms = random.randint(*RETRY_MS)  # noqa: S311 - no secret
        told = {"kind": OPENED, "id": begin, "session": session_id}
        await self._write(b"retry: %d\n" % retry_ms + _framed(OPENED, begin, told))

    async def tell(self, event: SessionEvent) -> None:
        """
        Write *event* as one event.
        """
        await self._write(_framed(event.kind, event.id, event))

    async def part(self, end: End, last_id: str) -> None:
        """
        Write `cut` or `end`.
        """
        told = {"code": end.code, "message": end.message, "id": last_id}
        await self._write(_framed("cut" if end.resumable else "end", last_id, told))

    async def gone(self) -> None:
        """
        Beat until the client hangs up.
        """
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    message = await self._receive()
            except TimeoutError:
                await self._write(b":\n\n")
                continue
            if message["type"] == "http.disconnect":
                return

    async def _write(self, text: bytes) -> None:
        await self._send(
            {"type": "http.response.body", "body": text, "more_body": True}
        )


def farewell(end: End, last_id: str = "") -> tuple[int, str]:
    """
    Close code and reason: `<code> <id>`, the id only where there is one.
    """
    return end.close, f"{end.code} {last_id}".strip()[:MAX_REASON_BYTES]


def _framed(kind: str, identifier: str, told: Any) -> bytes:  # JSON values
    # JSON has no line break outside of strings, and none unescaped within.
    head = f"id: {identifier}\nevent: {kind}\ndata: ".encode()

    return head + encode(told) + b"\n\n"
