"""
Connections of an HTTP server: how many there are, and how long a head may take.

uvicorn bounds neither. Here a connection beyond the bounds gets its answer before the
server knows it, and a request's head has a deadline that no trickle of bytes extends.
"""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from everbus.gateway.telemetry import metrics

RETRY_AFTER_S = 1
# The bounds' names: settings, and labels of the metric.
TOTAL = "edge_connections"
PER_ADDRESS = "edge_connections_per_address"
HEAD = "edge_head_timeout_s"
_REFUSALS = {
    TOTAL: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "connect again later"),
    PER_ADDRESS: (HTTPStatus.TOO_MANY_REQUESTS, "overloaded", "close a connection"),
    HEAD: (HTTPStatus.REQUEST_TIMEOUT, "expired", "send the whole head at once"),
}


class ConnectionLimits(NamedTuple):
    """
    Bounds on the open connections of one server.

    Attributes:
        total: open connections, live streams included.
        per_address: open connections of one address.
        head_timeout_s: time for a TLS handshake and for the head of a request.
        counted: the name to count an address by; empty for an address that speaks for
            many, which has no bound of its own.
        tls: the server's certificate; None for plain HTTP.
    """

    total: int
    per_address: int
    head_timeout_s: float = 10.0
    counted: Callable[[str], str] = str
    tls: ssl.SSLContext | None = None


class Connections:
    """
    The open connections of one server, by address.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[asyncio.BaseTransport, str] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def protocols(self) -> Mapping[str, Any]:
        """
        Options of `uvicorn.Config` that make its server keep these bounds.
        """
        return {
            "http": partial(_accepted_protocol, self),
            "ws": partial(BoundedWebSocket, self),
        }

    def admit(self, transport: asyncio.Transport) -> bool:
        """
        Whether a new connection is within the bounds; else it is answered and closed.
        """
        address = self._address_of(transport)
        bound = self._exceeded(address)
        if not bound:
            self._add(transport, address)
            return True
        if self.limits.tls is None:
            refuse(transport, bound)
        else:
            # An answer in plain text would be no TLS.
            metrics.BOUND_REACHED.labels(bound).inc()
            transport.abort()

        return False

    def remove(self, transport: asyncio.BaseTransport) -> None:
        """
        Count *transport* no more.
        """
        address = self._open.pop(transport, None)
        if address is None:
            return
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]

    def replace(
        self, plain: asyncio.BaseTransport, secure: asyncio.BaseTransport
    ) -> None:
        """
        Count *secure* in the place of the *plain* connection below it.
        """
        address = self._open.get(plain, "")
        self.remove(plain)
        self._add(secure, address)

    def _add(self, transport: asyncio.BaseTransport, address: str) -> None:
        self._open[transport] = address
        self._counts[address] += 1

    def _exceeded(self, address: str) -> str:
        if address and self._counts[address] >= self.limits.per_address:
            return PER_ADDRESS
        return TOTAL if len(self._open) >= self.limits.total else ""

    def _address_of(self, transport: asyncio.Transport) -> str:
        peer = get_remote_addr(transport)

        return self.limits.counted(peer[0]) if peer else ""


class BoundedHttp(H11Protocol):
    """
    One HTTP connection whose heads have a deadline.
    """

    def __init__(self, connections: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._connections = connections
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """
        Begin; the first head is due.
        """
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """
        Parse *data*; a head that began is due.
        """
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """
        End.
        """
        self._forget_head()
        self._connections.remove(self.transport)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """
        Go on as a WebSocket, which then ends the connection.
        """
        self._forget_head()
        super().handle_websocket_upgrade(event)

    def _watch_head(self) -> None:
        # A body that goes on behind its answer counts as part of the next head.
        due = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if not due or self.transport.is_closing():
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self._connections.limits.head_timeout_s, self._head_overdue
            )

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        if not self.transport.is_closing():
            refuse(self.transport, HEAD)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """
    One WebSocket; its connection is counted already.
    """

    def __init__(self, connections: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._connections = connections

    def connection_lost(self, exc: Exception | None) -> None:
        """
        End.
        """
        self._connections.remove(self.transport)
        super().connection_lost(exc)


class _Doorway(asyncio.Protocol):
    """
    A new connection: counted first, then its TLS handshake, then HTTP.

    The handshake is here and not in the loop's listener, whose connections nobody
    sees before they have one: nothing would count them.
    """

    def __init__(
        self, connections: Connections, serve: Callable[[], asyncio.Protocol]
    ) -> None:
        self._connections = connections
        self._serve = serve
        self._early = bytearray()
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """
        Admit the connection, and let HTTP have it.
        """
        if not self._connections.admit(transport):
            return
        tls = self._connections.limits.tls
        if tls is None:
            self._hand_over(transport)
            return
        self._handshake = asyncio.ensure_future(self._secure(transport, tls))

    def data_received(self, data: bytes) -> None:
        """
        Keep what came right before or behind the handshake.
        """
        self._early += data

    def _hand_over(self, transport: asyncio.Transport) -> None:
        protocol = self._serve()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._early:
            protocol.data_received(bytes(self._early))

    async def _secure(self, plain: asyncio.Transport, tls: ssl.SSLContext) -> None:
        secure: asyncio.Transport | None = None
        upgrading = asyncio.ensure_future(self._upgrade(plain, tls))
        # A busy loop reads the client's first bytes before it has begun, and uvloop
        # does so even from a transport that is paused when its connection is made.
        await asyncio.sleep(0)
        early, self._early = self._early, bytearray()
        asyncio.get_running_loop().call_soon(_feed, plain, early)
        with suppress(OSError):  # ssl.SSLError is one, too
            secure = await upgrading
        if secure is None or secure.is_closing():
            self._connections.remove(plain)
            plain.abort()
            return
        self._connections.replace(plain, secure)
        self._hand_over(secure)

    async def _upgrade(
        self, plain: asyncio.Transport, tls: ssl.SSLContext
    ) -> asyncio.Transport | None:
        if plain.is_closing():
            # Nobody would tell the handshake of the end, and it would wait for ever.
            return None
        timeout_s = self._connections.limits.head_timeout_s
        return await asyncio.get_running_loop().start_tls(
            plain, self, tls, server_side=True, ssl_handshake_timeout=timeout_s
        )


def _feed(transport: asyncio.Transport, data: bytearray) -> None:
    """
    Give *data* to the transport's TLS protocol, as if it had just been read.
    """
    # Of asyncio.BufferedProtocol in form; uvloop's is none by name.
    protocol: Any = transport.get_protocol()
    while data and not transport.is_closing():
        buffer = protocol.get_buffer(len(data))
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        del data[:size]


def _accepted_protocol(connections: Connections, **uvicorns: Any) -> asyncio.Protocol:
    """
    The protocol of a new connection, for uvicorn.
    """
    return _Doorway(connections, partial(BoundedHttp, connections, **uvicorns))


def refuse(transport: asyncio.Transport, bound: str) -> None:
    """
    Answer a connection beyond *bound*, and close it.

    The whole answer is text: there is no request yet that an application could take.
    """
    metrics.BOUND_REACHED.labels(bound).inc()
    status, code, remedy = _REFUSALS[bound]
    document = {
        "type": f"urn:everbus:error:{code}",
        "title": status.phrase,
        "status": int(status),
        "code": code,
        "detail": f"the bound {bound} of this server is met; {remedy}",
    }
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\n"
        "Content-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
    )
    transport.write(head.encode() + body)
    transport.close()
