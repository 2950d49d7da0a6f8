"""
Links that break: a TCP proxy fast enough to carry all traffic of a stack.

Unlike `tests.proxy` it works on transports, without a task a connection. It counts
what it did, so that an episode can prove that its fault bit.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self, cast

HOST = "127.0.0.1"
GREETING_BYTES = 512
# Names in the first bytes of connections that belong to the servers themselves.
SERVERS_OWN = (b"sentinel-", b"REPLCONF")


class Link:
    """
    A proxy on a port of its own.

    Attributes:
        cut_count: connections that were aborted.
        swallowed: bytes that never arrive; delayed: bytes that came late.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.cut_count = self.swallowed = self.delayed = 0
        self.delay_s = 0.0
        # Which directions vanish: requests, replies.
        self.swallows = (False, False)
        self.servers_only = False
        self._target = target
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for pair in tuple(self._pairs):
            pair.abort()

    @property
    def bitten(self) -> int:
        """
        All that the faults of this link did.
        """
        return self.cut_count + self.swallowed + self.delayed

    def heal(self) -> None:
        """
        End every fault; those whose bytes were swallowed are cut, as by a timeout.
        """
        hurt = any(self.swallows)
        self.delay_s, self.swallows = 0.0, (False, False)
        self.servers_only = False
        for pair in tuple(self._pairs):
            if hurt and pair.lost:
                pair.abort()
            else:
                pair.flush()

    def cut(self) -> None:
        """
        Abort all connections.
        """
        for pair in tuple(self._pairs):
            self.cut_count += 1
            pair.abort()

    def connect(self, pair: "_Pair") -> None:
        """
        Open the connection to the target for a new pair.
        """
        self._pairs.add(pair)
        pair.task = asyncio.ensure_future(self._connect(pair))

    async def _connect(self, pair: "_Pair") -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Server(pair), HOST, self._target)
        except OSError:
            pair.abort()

    def forget(self, pair: "_Pair") -> None:
        """
        The pair has ended.
        """
        self._pairs.discard(pair)


class _Pair:
    """
    The two ends of one connection.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self.task: asyncio.Future[None] | None = None
        self.greeting = b""
        self.lost = False
        self.early: list[bytes] = []
        self._late: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())

    def requested(self, data: bytes) -> None:
        if len(self.greeting) < GREETING_BYTES:
            self.greeting += data[:GREETING_BYTES]
        if self.server is None:
            self.early.append(data)
        else:
            self._pass(0, data)

    def replied(self, data: bytes) -> None:
        self._pass(1, data)

    def _pass(self, way: int, data: bytes) -> None:
        link = self.link
        if link.swallows[way] and self._is_hit():
            link.swallowed += len(data)
            self.lost = True
        elif link.delay_s or self._late[way]:
            self._delay(way, data)
        else:
            self._write(way, data)

    def _is_hit(self) -> bool:
        if not self.link.servers_only:
            return True
        return any(name in self.greeting for name in SERVERS_OWN)

    def _delay(self, way: int, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.link.delayed += len(data)
        self._late[way].append((loop.time() + self.link.delay_s, data))
        loop.call_later(self.link.delay_s, self._due, way)

    def _due(self, way: int) -> None:
        late, now = self._late[way], asyncio.get_running_loop().time()
        while late and late[0][0] <= now + 0.001:
            self._write(way, late.popleft()[1])

    def _write(self, way: int, data: bytes) -> None:
        end = self.client if way else self.server
        if end is not None and not end.is_closing():
            end.write(data)

    def flush(self) -> None:
        """
        Deliver what is late.
        """
        for way in (0, 1):
            while self._late[way]:
                self._write(way, self._late[way].popleft()[1])

    def opened(self, server: asyncio.Transport) -> None:
        """
        The target has answered: what came before goes on.
        """
        self.server = server
        early, self.early = self.early, []
        for data in early:
            self._pass(0, data)

    def abort(self) -> None:
        """
        Both ends find the connection reset.
        """
        for end in (self.client, self.server):
            if end is not None:
                end.abort()
        self.link.forget(self)

    def ended(self, close: Callable[[], asyncio.Transport | None]) -> None:
        """
        One end is gone: so is the other, unless the link swallows the news.
        """
        if any(self.link.swallows) and self._is_hit():
            self.lost = True
            return
        other = close()
        if other is not None:
            other.close()
        self.link.forget(self)


class _Client(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._pair = _Pair(link)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pair.client = cast(asyncio.Transport, transport)
        self._pair.link.connect(self._pair)

    def data_received(self, data: bytes) -> None:
        self._pair.requested(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._pair.ended(lambda: self._pair.server)

    def pause_writing(self) -> None:
        if self._pair.server is not None:
            self._pair.server.pause_reading()

    def resume_writing(self) -> None:
        if self._pair.server is not None:
            self._pair.server.resume_reading()


class _Server(asyncio.Protocol):
    def __init__(self, pair: _Pair) -> None:
        self._pair = pair

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = cast(asyncio.Transport, transport)
        client = self._pair.client
        if client is None or client.is_closing():
            server.abort()
            return
        self._pair.opened(server)

    def data_received(self, data: bytes) -> None:
        self._pair.replied(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._pair.ended(lambda: self._pair.client)

    def pause_writing(self) -> None:
        if self._pair.client is not None:
            self._pair.client.pause_reading()

    def resume_writing(self) -> None:
        if self._pair.client is not None:
            self._pair.client.resume_reading()
