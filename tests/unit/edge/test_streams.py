"""
What a live stream does for its client, whatever the client is connected by.
"""

import asyncio
import math
from datetime import UTC, datetime

import pytest

from everbus.bus.errors import Forbidden, Overloaded, Unavailable
from everbus.bus.events import SessionEvent
from everbus.gateway.edge.stream_ends import (
    DELETED,
    EXPIRED,
    RESTART,
    SLOW_CONSUMER,
    end_of,
)
from everbus.gateway.edge.streams import Stream, Streams, StreamTimeouts
from everbus.gateway.identity.principal import Principal

SHORT = StreamTimeouts(write_s=0.01, close_s=0.01)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def an_event(n: int) -> SessionEvent:
    return SessionEvent(
        id=f"e-{n}",
        session="s",
        kind="timeline.appended",
        at=NOW,
        version=1,
        seq=n,
        mad="fiedler",
        principal="fiedler",
        command_id=f"c{n}",
    )


class Feed:
    """
    Events by hand; `closed` once its generator has been closed.
    """

    def __init__(self):
        self.queue = asyncio.Queue()
        self.closed = False

    async def events(self):
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


class StreamClient:
    """
    A client that takes everything, until it is told to hang.
    """

    transport = "ws"

    def __init__(self):
        self.told = []
        self.parted = []
        self.hung_up = asyncio.Event()
        self.taken = asyncio.Event()
        self.parting = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, event):
        await self.reads.wait()
        self.told.append(event.id)
        self.taken.set()

    async def close(self, end, last_id):
        self.parting.set()
        await self.reads.wait()
        self.parted.append((end, last_id))

    async def wait_closed(self):
        await self.hung_up.wait()


@pytest.fixture
def client():
    return StreamClient()


@pytest.fixture
def feed():
    return Feed()


def running(stream, feed, expires_in_s=math.inf):
    expires_in_s = min(expires_in_s, 1e6)
    return asyncio.create_task(stream.run(feed.events(), expires_in_s))


async def ended(task):
    async with asyncio.timeout(5):
        await task


async def test_events_are_told_in_order_until_the_client_hangs_up(client, feed):
    stream = Stream(client, "e-0")
    task = running(stream, feed)
    for n in (1, 2, 3):
        feed.queue.put_nowait(an_event(n))
    while len(client.told) < 3:
        await client.taken.wait()
        client.taken.clear()

    client.hung_up.set()
    await ended(task)

    assert client.told == ["e-1", "e-2", "e-3"]
    assert (stream.last_id, stream.sent, stream.outcome) == ("e-3", 3, "gone")
    assert client.parted == []


async def test_a_client_that_does_not_read_is_cut_and_told_where(client, feed):
    """
    It gets its last words as soon as it reads again: nothing is skipped by them.
    """
    stream = Stream(client, "e-0", StreamTimeouts(write_s=0.01, close_s=5))
    feed.queue.put_nowait(an_event(1))
    task = running(stream, feed)
    await client.taken.wait()
    client.reads.clear()
    feed.queue.put_nowait(an_event(2))
    await client.parting.wait()

    client.reads.set()
    await ended(task)

    assert client.told == ["e-1"]
    assert client.parted == [(SLOW_CONSUMER, "e-1")]


async def test_a_client_that_never_reads_again_is_not_waited_for(client, feed):
    stream = Stream(client, "e-0", SHORT)
    client.reads.clear()
    feed.queue.put_nowait(an_event(1))

    await ended(running(stream, feed))

    assert stream.outcome == SLOW_CONSUMER.code
    assert client.parted == []


async def test_no_event_is_asked_for_before_the_last_one_was_taken(client, feed):
    """
    So all that waits for a client is in its connection's own buffer.
    """
    stream = Stream(client, "e-0", StreamTimeouts(write_s=5))
    client.reads.clear()
    for n in (1, 2, 3):
        feed.queue.put_nowait(an_event(n))
    task = running(stream, feed)
    for _ in range(10):
        await asyncio.sleep(0)

    assert feed.queue.qsize() == 2

    client.hung_up.set()
    await ended(task)


@pytest.mark.parametrize(
    ("error", "code", "close", "resumable"),
    [
        (Forbidden("no"), "forbidden", 4003, False),
        (Unavailable("away"), "unavailable", 1013, True),
        (ZeroDivisionError(), "defect", 1011, True),
    ],
)
async def test_what_ends_the_events_is_told(
    client, feed, error, code, close, resumable
):
    feed.queue.put_nowait(an_event(1))
    feed.queue.put_nowait(error)

    await ended(running(Stream(client, "e-0"), feed))

    [(end, last_id)] = client.parted
    assert (end.code, end.close_code, end.resumable) == (code, close, resumable)
    assert last_id == "e-1"
    assert "Zero" not in end.message


async def test_events_that_end_by_themselves_are_those_of_a_deleted_session(
    client, feed
):
    feed.queue.put_nowait(None)

    await ended(running(Stream(client, "e-0"), feed))

    assert client.parted == [(DELETED, "e-0")]


async def test_a_token_that_expires_ends_the_stream(client, feed):
    await ended(running(Stream(client, "e-0"), feed, expires_in_s=0.01))

    assert client.parted == [(EXPIRED, "e-0")]


async def test_the_feed_is_closed_and_no_task_is_left(client, feed):
    """
    Even where it is left between two events, in the middle of writing.
    """
    before = asyncio.all_tasks()
    client.reads.clear()
    feed.queue.put_nowait(an_event(1))
    task = running(Stream(client, "e-0"), feed)
    for _ in range(5):
        await asyncio.sleep(0)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert feed.closed
    assert asyncio.all_tasks() == before


async def test_drain_ends_those_that_are_open_and_those_to_come(client, feed):
    streams = Streams(10)
    early, late = Stream(client, "e-0"), Stream(client, "e-7")
    with streams.track(early, "ws"):
        task = running(early, feed)
        await asyncio.sleep(0)
        streams.drain()
        await ended(task)
    with streams.track(late, "ws"):
        await ended(running(late, Feed()))

    assert client.parted == [(RESTART, "e-0"), (RESTART, "e-7")]
    assert len(streams) == 0


async def test_a_principal_has_so_many_places_and_gets_them_back():
    streams = Streams(1)
    ada, other = (Principal("ada", "user", math.inf, tenant=t) for t in ("", "other"))

    with (
        streams.reserve(ada),
        streams.reserve(other),
        pytest.raises(Overloaded, match="1 live streams"),
    ):
        streams.reserve(ada).__enter__()
    with streams.reserve(ada):
        pass


def test_every_refusal_has_a_close_code_that_an_application_may_use():
    """
    RFC 6455 leaves 4000 to 4999 to applications; 1011 to 1013 are its own.
    """
    from everbus.bus.errors import ERRORS

    closes = {end_of(kind("")).close_code for kind in ERRORS.values()}

    assert all(1011 <= close <= 1013 or 4000 <= close <= 4999 for close in closes)
