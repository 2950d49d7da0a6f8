"""
Serving the edge's application over HTTP and WebSocket, and ceasing to in order.

uvicorn in the loop of the process, with every limit stated here. When it is told to
stop, the edge takes no new connection, ends all streams with a code that says where to
resume, and lets requests under way finish, within a bound.
"""

import asyncio
import logging
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import structlog
from starlette.types import ASGIApp
from uvicorn import Config, Server

from gateway.edge.streams import Streams

log = structlog.get_logger()

BACKLOG = 2048
# Open connections, streams among them; the next one is answered 503.
MAX_CONNECTIONS = 10_000
# All of a request's head; tokens have 8 KiB at most.
MAX_HEAD_BYTES = 32 * 1024
KEEP_ALIVE_S = 15
# What a client may say on a WebSocket; a broadcast has 64 KiB as MessagePack.
MAX_MESSAGE_BYTES = 256 * 1024
PING_S = 20.0
# What the kernel keeps of what a client does not read, doubled; by itself it would
# keep up to 4 MB, and a stream would count as slow only behind all that.
SEND_BUFFER_BYTES = 128 * 1024
# When the kernel gives a connection up whose other end takes nothing any more. More
# than a stream's patience, which has something to say first.
UNREAD_MS = 30_000
# What uvicorn says of a client that did not even read its last words.
_UNREAD = "ASGI callable returned without completing response."


class Serving(NamedTuple):
    """
    How to serve.

    Attributes:
        app: the application.
        streams: its live streams.
        drain_s: how long requests under way may take once it stops.
        on_ready: told the URL when it is served.
    """

    app: ASGIApp
    streams: Streams
    drain_s: float
    on_ready: Callable[[str], None] = lambda _: None

    async def run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """
        Serve what comes to *listener* until *stop* is set, then end in order.

        Closes *listener*. Returns at the latest drain_s after *stop* was set.
        """
        _bound_unread(listener)
        server = _Server(self._config(), partial(self.on_ready, url_of(listener)))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            log.info("edge.draining", streams=len(self.streams))
            # Before uvicorn's own farewell, which has no reason to tell.
            self.streams.drain()
            await asyncio.sleep(0)
            server.should_exit = True
            await serving
        finally:
            stopping.cancel()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    def _config(self) -> Config:
        return Config(
            self.app,
            loop="none",
            # h11, which bounds a request's head; httptools does not.
            http="h11",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            # A compressor is 100 KB a stream, and says how long secrets are.
            ws_per_message_deflate=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(self.drain_s),
            log_config=None,
            # Else it would log queries; the doorman has a line for each request.
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )


class Guest(Server):
    """
    uvicorn's server in a process of ours, which keeps its signals.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """
        Capture none.
        """
        yield


class _Server(Guest):
    """
    One that tells when it serves.
    """

    def __init__(self, config: Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Begin, and tell.
        """
        await super().startup(sockets)
        self._on_ready()


def url_of(listener: socket.socket) -> str:
    """
    How *listener* is reached from this machine.
    """
    host, port = listener.getsockname()[:2]

    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound_unread(listener: socket.socket) -> None:
    """
    Have the kernel keep little for connections that nobody reads from, and end them
    in time; and uvicorn not cry over it.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    words = logging.getLogger("uvicorn.error")
    if _unalarming not in words.filters:
        words.addFilter(_unalarming)


def _unalarming(record: logging.LogRecord) -> bool:
    return record.msg != _UNREAD
