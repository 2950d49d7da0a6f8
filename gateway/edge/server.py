"""
The edge's HTTP and WebSocket server, and its shutdown.

uvicorn runs in the loop of the process, with every limit stated here or in
`gateway.health.connections`. On a stop the
edge takes no new connection, ends all streams with a code and the id to resume from,
and lets requests in flight finish within a bound.
"""

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import structlog
from starlette.types import ASGIApp
from uvicorn import Config

from everbus.gateway.edge.streams import Streams
from everbus.gateway.health.connections import Connections
from everbus.gateway.health.embedded_server import EmbeddedServer

log = structlog.get_logger()

BACKLOG = 2048
# The whole head of a request; a token has at most 8 KiB of it.
MAX_HEAD_BYTES = 32 * 1024
KEEP_ALIVE_S = 15
# One WebSocket message of a client; a broadcast has 64 KiB as MessagePack.
MAX_MESSAGE_BYTES = 256 * 1024
PING_S = 20.0
# Send buffer of the kernel, which doubles it. By default it grows to 4 MB, and a
# stream would count as slow only behind all of that.
SEND_BUFFER_BYTES = 128 * 1024
# The kernel gives a connection up after so long without an acknowledgement. Longer
# than a stream's timeouts, so that the stream can still write its close code.
UNREAD_MS = 30_000
# uvicorn's message about a client that did not read the close of its stream.
_UNREAD = "ASGI callable returned without completing response."


class EdgeServer(NamedTuple):
    """
    The server of one edge.

    Attributes:
        app: the application.
        streams: its live streams.
        connections: its connections, with their bounds.
        drain_s: time for requests in flight once the edge stops.
        on_ready: callback with the URL once the edge accepts connections.
    """

    app: ASGIApp
    streams: Streams
    connections: Connections
    drain_s: float
    on_ready: Callable[[str], None] = lambda _: None

    async def run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """
        Serve connections of *listener* until *stop* is set, then shut down in order.

        Closes *listener*. Returns at the latest drain_s after *stop* was set.
        """
        _limit_unread(listener)
        server = _NotifyingServer(
            self._config(), partial(self.on_ready, self._url(listener))
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            log.info("edge.draining", streams=len(self.streams))
            # Before uvicorn closes them: its close frame carries no reason.
            self.streams.drain()
            await asyncio.sleep(0)
            server.should_exit = True
            await serving
        finally:
            stopping.cancel()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    def _url(self, listener: socket.socket) -> str:
        url = url_of(listener)
        secure = self.connections.limits.tls is not None

        return url.replace("http:", "https:", 1) if secure else url

    def _config(self) -> Config:
        return Config(
            self.app,
            loop="none",
            # On h11, which bounds a request's head; httptools does not.
            **self.connections.protocols(),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            # A compressor costs 100 KB per stream, and leaks the length of secrets.
            ws_per_message_deflate=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(self.drain_s),
            log_config=None,
            # uvicorn would log queries; our middleware logs each request.
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )


class _NotifyingServer(EmbeddedServer):
    """
    A server with a callback for its start.
    """

    def __init__(self, config: Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """
        Start, then call back.
        """
        await super().startup(sockets)
        self._on_ready()


def url_of(listener: socket.socket) -> str:
    """
    The URL of *listener* on this machine.
    """
    host, port = listener.getsockname()[:2]

    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _limit_unread(listener: socket.socket) -> None:
    """
    Bound the kernel's buffer and patience for clients that do not read; silence
    uvicorn's error about them.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    logger = logging.getLogger("uvicorn.error")
    if _is_relevant not in logger.filters:
        logger.addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return record.msg != _UNREAD
