"""
Ports of a server in memory, and the connections that come through them.

fakeredis has a TCP server of its own; it gives each connection a thread and looks for
a message to push every 10 ms, so each reply to a MAD would wait that long. Here a
connection is an asyncio protocol: hiredis parses, fakeredis runs the command, the
reply is written at once. INFO, CONFIG GET and WAIT, which fakeredis lacks, are
answered here.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from fakeredis._clients._tcp_server import encode_reply
from fakeredis._helpers import SimpleError

from everbus.compose.testing.bus.fake_redis import FakeRedisServer, FakeRedisSocket

HOST = "127.0.0.1"
ACCEPT_TURNS = 2

_INFO = (
    b"# Server\r\nredis_version:8.0.0\r\nrun_id:everbus-in-memory\r\n"
    b"# Memory\r\nused_memory:1048576\r\n"
    b"# Replication\r\nrole:master\r\nmaster_replid:everbus-in-memory\r\n"
    b"master_replid2:0000000000000000000000000000000000000000\r\n"
    b"second_repl_offset:-1\r\nmaster_repl_offset:0\r\n"
)
_SETTINGS = {
    b"appendonly": b"yes",
    b"maxmemory-policy": b"noeviction",
    b"notify-keyspace-events": b"xKE",
}

# May answer a command itself; None leaves it to the server.
Intercept = Callable[["FakeConnection", list[bytes]], Any]


class FakeConnection(asyncio.Protocol):
    """
    One connection that came through a door.

    Attributes:
        beat: the newest heartbeat that came on it: stream and packed envelope.
    """

    def __init__(self, door: "ServerDoor") -> None:
        self.door = door
        self.beat: tuple[str, bytes] | None = None
        self._server = door.server
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._socket: FakeRedisSocket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Begin to serve; a closed door lets nobody in.
        """
        if not isinstance(transport, asyncio.Transport) or self.door.closed:
            transport.close()
            return
        self._transport = transport
        self._socket = FakeRedisSocket(self._server, self._answer, self._serve)
        self.door.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """
        Take what the client wrote.
        """
        self._reader.feed(data)
        self._serve()

    def connection_lost(self, _: Exception | None) -> None:
        """
        Forget the client.
        """
        self.door.connections.discard(self)
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.leave()

    def cut(self) -> None:
        """
        End the connection without a word.
        """
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def _serve(self) -> None:
        while self._socket is not None and not self._socket.waits:
            words: Any = self._reader.gets()
            if words is False:
                return
            answer = self.door.intercept(self, words)
            if answer is not None or (answer := _own_answer(words)) is not None:
                self._answer(answer)
            else:
                self._socket.run(words)
                self._server.settle()

    def _answer(self, reply: Any) -> None:
        if isinstance(reply, SimpleError):
            # A server has one code in front of an error, and this one is it.
            reply = SimpleError(reply.value.replace("ERR BUSYGROUP", "BUSYGROUP"))
        if self._socket is not None and self._transport is not None:
            self._transport.write(encode_reply(reply, self._socket.protocol, True))


class ServerDoor:
    """
    A port of a server in memory; its clients can be cut off together.

    Args:
        intercept: sees every command from this port before it runs.
    """

    def __init__(
        self, server: FakeRedisServer, intercept: Intercept = lambda *_: None
    ) -> None:
        self.server = server
        self.intercept = intercept
        self.closed = False
        self.connections: set[FakeConnection] = set()
        self.url = ""
        self._listening: asyncio.Server | None = None

    async def open(self) -> None:
        """
        Listen on a free port of the loopback interface.
        """
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: FakeConnection(self), HOST, 0
        )
        port = self._listening.sockets[0].getsockname()[1]
        self.url = f"redis://{HOST}:{port}/0"

    def cut(self) -> None:
        """
        End all connections, and take no new one until `mend`.
        """
        self.closed = True
        for connection in list(self.connections):
            connection.cut()

    def mend(self) -> None:
        """
        Take connections again.
        """
        self.closed = False

    async def close(self) -> None:
        """
        Listen no more.
        """
        self.cut()
        if self._listening is None:
            return
        loop = asyncio.get_running_loop()
        for listening in self._listening.sockets:
            loop.remove_reader(listening.fileno())
        # asyncio fails on a connection that it accepted just before the end, and
        # leaves its socket open: it gets the turns that it needs to accept it.
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        self._listening.close()


def _own_answer(words: list[bytes]) -> Any:
    """
    The answer to a command that fakeredis does not have; None for all others.
    """
    verb = words[0].upper()
    if verb == b"INFO":
        return _INFO
    if verb == b"WAIT":
        return 0
    if verb == b"CONFIG" and words[1].upper() == b"GET":
        name = words[2].lower()
        return [name, _SETTINGS[name]] if name in _SETTINGS else []
    return None
