"""
The fault proxy: each fault bites, its counters prove it, healing ends it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.proxy import Proxy

SOON_S = 5.0
# How long silence must last to count as such; no test waits for it to pass.
SILENCE_S = 0.05


class Echo:
    """
    A server that answers every byte with itself and notes how clients leave.
    """

    def __init__(self) -> None:
        self.heard = b""
        self.endings: asyncio.Queue[str] = asyncio.Queue()
        self._server: asyncio.Server

    async def __aenter__(self) -> "Echo":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ending = "end"
        try:
            while chunk := await reader.read(4096):
                self.heard += chunk
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            ending = "reset"
        finally:
            self.endings.put_nowait(ending)
            writer.close()


class Client:
    """
    A connection through the proxy whose every wait has an end.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, words: bytes) -> None:
        self.writer.write(words)
        await self.writer.drain()

    async def hears(self, count: int) -> bytes:
        async with asyncio.timeout(SOON_S):
            return await self.reader.readexactly(count)

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await self.reader.read(1) == b"never"
        except TimeoutError:
            return True

    async def round_trip(self, words: bytes) -> bytes:
        await self.say(words)
        return await self.hears(len(words))


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Echo() as server:
        yield server


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", echo.port) as between:
        yield between


@asynccontextmanager
async def a_client(proxy: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    async with a_client(proxy) as opened:
        assert await opened.round_trip(b"hello") == b"hello"
        yield opened


async def eventually(claim) -> None:
    async with asyncio.timeout(SOON_S):
        # Counters have no event to wait for; this only yields, it never sleeps.
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_without_a_fault_every_byte_arrives_in_order(proxy, client, echo):
    sent = bytes(range(256)) * 4096

    saying = asyncio.ensure_future(client.say(sent))
    heard = await client.hears(len(sent))
    await saying

    assert sent == heard
    assert b"hello" + sent == echo.heard
    assert 0 == proxy.dropped_bytes == proxy.connections_cut
    assert len(sent) + 5 == proxy.requests.passed_bytes == proxy.replies.passed_bytes


async def test_its_url_leads_to_the_proxy(proxy):
    assert f"redis://127.0.0.1:{proxy.port}" == proxy.url()
    assert f"mongodb://127.0.0.1:{proxy.port}" == proxy.url("mongodb")


async def test_an_end_of_stream_is_passed_on(client, echo):
    client.writer.write_eof()

    assert await asyncio.wait_for(echo.endings.get(), SOON_S) == "end"
    assert await asyncio.wait_for(client.reader.read(), SOON_S) == b""


async def test_a_delay_holds_bytes_for_its_time_each_way(proxy, client):
    proxy.delay(0.1)
    begun = time.monotonic()

    heard = await client.round_trip(b"late")

    assert heard == b"late"
    assert time.monotonic() - begun >= 0.2


async def test_delayed_bytes_are_under_way_together(proxy, client):
    """
    A delay is a latency, not a rate: ten parts take hardly longer than one.
    """
    proxy.requests.delay(0.2)
    begun = time.monotonic()

    for n in range(10):
        await client.say(b"%d" % n)
        await eventually(lambda n=n: proxy.requests.held_bytes == n + 1)
    heard = await client.hears(10)

    assert heard == b"0123456789"
    assert 0.2 <= time.monotonic() - begun < 1.0


async def test_healing_a_delay_delivers_at_once(proxy, client):
    proxy.delay(600)
    await client.say(b"late")
    await eventually(lambda: proxy.requests.held_bytes == 4)

    proxy.heal()

    assert await client.hears(4) == b"late"


async def test_a_black_hole_swallows_while_the_connection_stays_up(proxy, client, echo):
    proxy.black_hole()
    await client.say(b"lost")

    assert await client.hears_nothing()
    assert 4 == proxy.requests.dropped_bytes == proxy.dropped_bytes
    assert (echo.heard, proxy.connections) == (b"hello", 1)


async def test_a_healed_black_hole_passes_what_comes_later_only(proxy, client, echo):
    proxy.black_hole()
    await client.say(b"lost")
    await eventually(lambda: proxy.dropped_bytes)

    proxy.heal()

    assert await client.round_trip(b"found") == b"found"
    assert echo.heard == b"hellofound"


async def test_a_black_hole_swallows_the_news_that_a_client_left(proxy, client, echo):
    proxy.black_hole()

    client.writer.write_eof()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(echo.endings.get(), SILENCE_S)


async def test_dropped_requests_have_no_effect_and_a_cut_tells(proxy, client, echo):
    proxy.drop_requests()
    await client.say(b"lost")
    await eventually(lambda: proxy.requests.dropped_bytes)

    proxy.cut()

    with pytest.raises(ConnectionResetError):
        await client.hears(1)
    assert (echo.heard, proxy.replies.dropped_bytes) == (b"hello", 0)


async def test_dropped_replies_have_their_effect_and_a_cut_tells(proxy, client, echo):
    proxy.drop_replies()
    await client.say(b"done")
    await eventually(lambda: proxy.replies.dropped_bytes)

    proxy.cut()

    with pytest.raises(ConnectionResetError):
        await client.hears(1)
    assert (echo.heard, proxy.requests.dropped_bytes) == (b"hellodone", 0)


async def test_a_cut_resets_both_ends_of_every_connection(proxy, client, echo):
    async with a_client(proxy) as other:
        await other.round_trip(b"hi")

        proxy.cut()

        for either in (client, other):
            with pytest.raises(ConnectionResetError):
                await either.hears(1)
    assert await asyncio.wait_for(echo.endings.get(), SOON_S) == "reset"
    assert (proxy.connections_cut, proxy.connections) == (2, 0)


async def test_a_cut_leaves_the_way_open_for_a_new_connection(proxy, client):
    proxy.cut()

    async with a_client(proxy) as again:
        heard = await again.round_trip(b"again")

    assert (heard, proxy.accepted) == (b"again", 2)


async def test_cut_after_some_bytes_of_a_request_delivers_just_those(
    proxy, client, echo
):
    proxy.requests.cut_after(3)

    await client.say(b"abcdef")

    with pytest.raises(ConnectionResetError):
        await client.hears(6)
    assert await asyncio.wait_for(echo.endings.get(), SOON_S) == "reset"
    assert echo.heard == b"helloabc"
    assert (proxy.requests.dropped_bytes, proxy.connections_cut) == (3, 1)


async def test_cut_after_some_bytes_of_a_reply_delivers_just_those(proxy, client):
    proxy.replies.cut_after(3)

    await client.say(b"abcdef")

    assert await client.hears(3) == b"abc"
    with pytest.raises(ConnectionResetError):
        await client.hears(1)
    assert (proxy.replies.dropped_bytes, proxy.connections_cut) == (3, 1)


async def test_cut_after_nothing_of_a_reply_still_applies_the_request(
    proxy, client, echo
):
    """
    The fault of a reset after the request and before its reply.
    """
    proxy.replies.cut_after(0)

    await client.say(b"done")

    with pytest.raises(ConnectionResetError):
        await client.hears(1)
    assert echo.heard == b"hellodone"
    assert proxy.replies.passed_bytes == 5


async def test_cut_after_bites_once(proxy, client):
    proxy.replies.cut_after(0)
    await client.say(b"x")
    with pytest.raises(ConnectionResetError):
        await client.hears(1)

    async with a_client(proxy) as again:
        heard = await again.round_trip(b"again")

    assert (heard, proxy.connections_cut) == (b"again", 1)


async def test_a_throttle_limits_the_rate(proxy, client):
    proxy.requests.throttle(10_000)
    begun = time.monotonic()

    heard = await client.round_trip(b"x" * 2_000)

    assert heard == b"x" * 2_000
    assert time.monotonic() - begun >= 0.19


async def test_healing_a_throttle_delivers_the_rest_at_once(proxy, client):
    proxy.requests.throttle(1)
    await client.say(b"x" * 10_000)
    await eventually(lambda: proxy.requests.held_bytes)

    proxy.heal()

    assert await client.hears(10_000) == b"x" * 10_000


async def test_a_stall_holds_every_byte_and_healing_delivers_them(proxy, client, echo):
    proxy.stall()
    for _ in range(3):
        await client.say(b"held")
    await eventually(lambda: proxy.requests.held_bytes == 12)
    assert echo.heard == b"hello"

    proxy.heal()

    assert await client.hears(12) == b"heldheldheld"
    assert 0 == proxy.dropped_bytes == proxy.requests.held_bytes


async def test_a_stall_holds_an_end_of_stream_as_well(proxy, client, echo):
    proxy.stall()
    client.writer.write_eof()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(echo.endings.get(), SILENCE_S)

    proxy.heal()

    assert await asyncio.wait_for(echo.endings.get(), SOON_S) == "end"


async def test_bytes_that_a_stall_held_are_counted_as_dropped_by_a_cut(proxy, client):
    proxy.stall()
    await client.say(b"held")
    await eventually(lambda: proxy.requests.held_bytes == 4)

    proxy.cut()

    await eventually(lambda: proxy.requests.dropped_bytes == 4)
    assert proxy.requests.held_bytes == 0


async def test_a_target_that_is_away_resets_the_client(echo):
    await echo.__aexit__()

    async with Proxy("127.0.0.1", echo.port) as proxy, a_client(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await client.hears(1)


async def test_leaving_the_proxy_ends_stalled_connections(echo):
    async with Proxy("127.0.0.1", echo.port) as proxy, a_client(proxy) as client:
        await client.round_trip(b"hello")
        proxy.stall()
        await client.say(b"held")

    assert proxy.connections == 0
