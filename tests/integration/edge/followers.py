"""
Clients of live streams, as they are written outside: they know URLs and ids only.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from everbus.bus.events import position_in

WITHIN_S = 20.0
PAUSE_S = 0.02


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """
    The place of each event among those of its session.
    """
    return [position_in(event["id"]).number for event in events]


def a_socket(
    url: str, session: str, token: str, after: str | None = None, **options: Any
) -> connect:
    """
    A WebSocket on one session.
    """
    query = f"?after={after}" if after else ""
    return connect(
        f"{url.replace('http', 'ws', 1)}/sessions/{session}/live{query}",
        additional_headers={"Authorization": f"Bearer {token}"} if token else {},
        **options,
    )


async def received(socket: ClientConnection) -> dict[str, Any]:
    """
    The next message.
    """
    async with asyncio.timeout(WITHIN_S):
        message: dict[str, Any] = json.loads(await socket.recv())
    return message


def a_small_socket(url: str) -> socket.socket:
    """
    A connection that takes little before somebody reads from it.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    host, port = url.removeprefix("http://").split(":")
    made.connect((host, int(port)))
    made.setblocking(False)
    return made


async def remaining(socket: ClientConnection) -> list[dict[str, Any]]:
    """
    All messages up to the close.
    """
    found = []
    with suppress(ConnectionClosed):
        while True:
            found.append(await received(socket))
    return found


async def closed(socket: ClientConnection) -> tuple[int | None, str | None]:
    """
    Code and reason of the close, whatever comes before it.
    """
    await remaining(socket)

    return socket.close_code, socket.close_reason


class Follower:
    """
    Follows one session over WebSockets, resuming behind the last event that it has.

    Attributes:
        events: those it was told, in order.
        closes: the codes its connections ended with; None for those that broke.
    """

    def __init__(self, url: str, session: str, token: str, after: str = "0") -> None:
        self.events: list[dict[str, Any]] = []
        self.closes: list[int | None] = []
        self.connected = asyncio.Event()
        self._where = (url, session, token)
        self._last_id = after
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """
        Follow until cancelled.
        """
        while True:
            try:
                async with a_socket(*self._where, self._last_id) as socket:
                    await self._follow(socket)
            except ConnectionClosed as error:
                self.closes.append(error.rcvd.code if error.rcvd else None)
            except (OSError, InvalidHandshake, EOFError):
                await asyncio.sleep(PAUSE_S)
            self.connected.clear()

    async def until(self, count: int) -> None:
        """
        Return when it has so many events.
        """
        async with asyncio.timeout(WITHIN_S), self._news:
            await self._news.wait_for(lambda: len(self.events) >= count)

    async def _follow(self, socket: ClientConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            if message["kind"] == "stream.opened":
                self.connected.set()
                continue
            async with self._news:
                self.events.append(message)
                self._last_id = message["id"]
                self._news.notify_all()
        self.closes.append(socket.close_code)


class Sent(NamedTuple):
    """
    One server-sent event.
    """

    kind: str
    id: str
    data: dict[str, Any]


class Source:
    """
    Reads the events of one response.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Sent | None:
        """
        The next event; None when the stream has ended.
        """
        fields: dict[str, str] = {}
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if line and name:
                    fields[name] = value
                elif "data" in fields:
                    data = json.loads(fields["data"])
                    return Sent(fields["event"], fields["id"], data)
        return None

    async def take(self, count: int) -> list[dict[str, Any]]:
        """
        The next events.
        """
        taken = []
        for _ in range(count):
            sent = await self.next()
            assert sent is not None, f"ended after {len(taken)} events"
            assert sent.id == sent.data["id"]
            assert sent.kind == sent.data["kind"]
            taken.append(sent.data)
        return taken


@asynccontextmanager
async def a_source(
    url: str, session: str, token: str, after: str | None = None, last_id: str = ""
) -> AsyncIterator[Source]:
    """
    Server-sent events of one session.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if last_id:
        headers["Last-Event-ID"] = last_id
    async with (
        httpx.AsyncClient(timeout=WITHIN_S) as client,
        client.stream(
            "GET",
            f"{url}/sessions/{session}/events",
            params={"after": after} if after else {},
            headers=headers,
        ) as response,
    ):
        yield Source(response)
