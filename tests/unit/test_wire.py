"""
The one private name of redis-py that we read replies from.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.exceptions import ResponseError

from everbus.bus.errors import Forbidden, Overloaded, Unauthenticated, Unavailable
from everbus.bus.server_errors import CommandRefused, error_word, refusal
from everbus.bus.wire import Wire, WireFailed


class Scripted:
    """
    A server that answers each write with what it was told to.
    """

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.asked = asyncio.Event()
        self.port = 0
        self.accepted = 0
        self.handlers: set[asyncio.Task[None]] = set()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.accepted += 1
        handler = asyncio.current_task()
        assert handler is not None
        self.handlers.add(handler)
        self.writers.append(writer)
        while data := await reader.read(65536):
            if b"CLIENT" in data:
                writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
                continue
            self.asked.set()
            for piece in self.answers.pop(0).split(b"|") if self.answers else ():
                writer.write(piece)
                # In a packet of its own, so that the reader sees it cut.
                await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()


@pytest_asyncio.fixture
async def scripted() -> AsyncIterator[Scripted]:
    server = Scripted()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    await asyncio.wait(server.handlers, timeout=5) if server.handlers else None


@pytest_asyncio.fixture
async def wire(scripted: Scripted) -> AsyncIterator[Wire]:
    wire = Wire(f"redis://127.0.0.1:{scripted.port}")
    yield wire
    await wire.close()


async def test_replies_come_in_order_and_an_error_among_them_is_a_value(
    scripted: Scripted, wire: Wire
):
    scripted.answers.append(b"$1\r\na\r\n-ERR no\r\n*2\r\n:1\r\n$-1\r\n")

    replies = await wire.exchange([("GET", "a"), ("BAD",), ("MGET", "b", "c")])

    assert replies[0] == b"a"
    assert isinstance(replies[1], ResponseError)
    assert replies[2] == [1, None]


async def test_a_reply_cut_in_pieces_is_read_whole(scripted: Scripted, wire: Wire):
    scripted.answers.append(b"$5\r\nhel|lo\r|\n")

    assert await wire.exchange([("GET", "a")]) == [b"hello"]


async def test_silence_fails_the_exchange_and_closes_the_connection(
    scripted: Scripted, wire: Wire
):
    """
    A late reply would answer the wrong command, so the connection has to go.
    """
    with pytest.raises(WireFailed, match=r"did not answer within 0\.05 s"):
        await wire.exchange([("GET", "a")], timeout_s=0.05)

    scripted.answers.append(b"+PONG\r\n")
    assert not wire.connected
    assert await wire.call("PING") == b"PONG"
    assert scripted.accepted == 2


async def test_a_connection_that_the_server_closed_while_idle_counts_as_lost(
    scripted: Scripted, wire: Wire
):
    """
    A publisher has to send something again, and a lane to take a new epoch, before
    anything goes to what may be another server.
    """
    scripted.answers.append(b"+PONG\r\n")
    await wire.call("PING")
    connected = wire.connected

    for writer in scripted.writers:
        writer.close()
    async with asyncio.timeout(5):
        while wire.connected:  # noqa: ASYNC110 - a socket has no event for that
            await asyncio.sleep(0)

    assert connected
    scripted.answers.append(b"+PONG\r\n")
    assert await wire.call("PING") == b"PONG"


async def test_a_cancelled_exchange_closes_the_connection(
    scripted: Scripted, wire: Wire
):
    waiting = asyncio.create_task(wire.exchange([("GET", "a")]))
    await scripted.asked.wait()

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not wire.connected


async def test_no_server_is_told_with_its_address():
    wire = Wire("redis://127.0.0.1:1")

    with pytest.raises(WireFailed, match=r"no connection to the bus at 127\.0\.0\.1:1"):
        await wire.call("PING")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-OOM command not allowed\r\n", Overloaded),
        ("-NOPERM no\r\n", Forbidden),
        ("-MISCONF disk\r\n", Unavailable),
        ("-READONLY replica\r\n", Unavailable),
        ("-ERR max number of clients reached\r\n", Unavailable),
        ("-ERR max number of clients + cluster connections reached\r\n", Unavailable),
    ],
)
async def test_an_error_reply_has_a_meaning(
    scripted: Scripted, wire: Wire, text: str, kind: type[Exception]
):
    scripted.answers.append(text.encode())

    with pytest.raises(kind):
        await wire.call("XADD", "a", "*", "b", "c")


async def test_refused_credentials_are_unauthenticated(scripted: Scripted):
    wire = Wire(f"redis://ada:wrong@127.0.0.1:{scripted.port}")
    scripted.answers.append(b"-WRONGPASS no\r\n")

    with pytest.raises(Unauthenticated):
        await wire.call("PING")


def test_an_unknown_error_reply_is_one_of_ours_and_the_clients():
    """
    So no loop that survives our errors dies of one that nobody has listed.
    """
    error = ResponseError("ODD something")

    assert isinstance(refusal(error), CommandRefused)
    assert isinstance(refusal(error), ResponseError)
    assert error_word(error) == "ODD"
