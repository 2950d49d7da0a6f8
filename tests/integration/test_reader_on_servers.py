"""
Returning and paging on SecantusDB and nanio, also when nanio dies in the middle.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from everbus.bus.errors import Unavailable
from everbus.bus.messages import TimelineEntry
from everbus.compose.processes import start
from everbus.compose.servers import BUCKET, nanio_server
from everbus.compose.stack_folder import free_port
from everbus.gateway.store.breaker import TierBreaker, guarded
from everbus.gateway.store.cold import format
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.s3 import S3Cold
from everbus.gateway.store.mongo.warm import MongoWarm
from everbus.handlers.fetch_requests import StateAt, WarmPage
from tests.lineages import loaded
from tests.servers import RealServer, secantus
from tests.unit.below import World, at, entries

ENTRIES = 3000
KEY, SECRET = "everbus", "a-secret-for-tests"
DEADLINE_S = 10.0


@asynccontextmanager
async def nanio(folder: Path) -> AsyncIterator[RealServer]:
    """
    nanio with the bucket that everbus uses.
    """
    server = nanio_server(folder, free_port(), KEY, SECRET)
    real = RealServer(await start(server), f"http://127.0.0.1:{server.port}")
    try:
        yield real
    finally:
        await real.stop()


@pytest.fixture
async def mongo(tmp_path) -> AsyncIterator[RealServer]:
    async with secantus(tmp_path) as real:
        yield real


@pytest.fixture
async def s3(tmp_path) -> AsyncIterator[RealServer]:
    async with nanio(tmp_path) as real:
        yield real


class Clock:
    """
    A breaker's clock that a test moves.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def world(mongo, s3, clock, monkeypatch) -> AsyncIterator[World]:
    monkeypatch.setattr(format, "CHUNK_ENTRIES", 400)
    warm = MongoWarm(mongo.url, "everbus")
    cold = S3Cold(s3.url, BUCKET, KEY, SECRET, timeout_s=DEADLINE_S)
    made = World(
        guarded(warm, TierBreaker("warm", clock=clock), DEADLINE_S),
        guarded(cold, TierBreaker("cold", clock=clock), DEADLINE_S),
    )
    await made.warm.prepare()
    yield made
    warm.close()
    cold.close()


async def a_stub(world: World) -> None:
    for version in range(5):
        await world.change(
            work_in_progress={"step": version}, full_context={"notes": version}
        )
    for _ in range(ENTRIES // 1000):
        await world.append(1000)
    await world.archive(purged=ENTRIES)


async def every_page(reader, session, *, newest_first=False, limit=700):
    """
    The whole timeline, page by page.
    """
    first, last, found = 1, session.last_seq, []
    while True:
        page = await reader.answer(
            session,
            WarmPage(
                first=first,
                last=last,
                limit=limit,
                end=session.last_seq,
                newest_first=newest_first,
                tail=session.recent_timeline,
            ),
        )
        found += map(bytes, page.entries)
        if page.next is None:
            return found
        first, last = (first, page.next - 1) if newest_first else (page.next + 1, last)


async def test_an_archived_session_returns_and_can_be_paged_everywhere(world):
    await a_stub(world)
    reader = world.reader()

    session = (await loaded(reader, [world.id]))[world.id]

    assert session == msgspec.structs.replace(
        world.session, recent_timeline=tuple(entries(ENTRIES - 19, ENTRIES))
    )
    whole = entries(1, ENTRIES)
    assert await every_page(reader, session) == whole
    assert await every_page(reader, session, newest_first=True) == whole[::-1]
    for version in range(1, 6):
        asked = StateAt(version=version, current=5)
        found = await reader.answer(session, asked)
        assert found.work_in_progress == {"step": version - 1}
    held = await world.held()
    assert held.full_context == {"notes": 4}
    assert held.unrestored


async def test_pages_span_what_was_archived_what_came_since_and_the_tail(world):
    await a_stub(world)
    reader = world.reader()
    await loaded(reader, [world.id])
    await world.append(50)
    world.appended(15)
    tail = tuple(entries(ENTRIES + 46, ENTRIES + 65))
    session = msgspec.structs.replace(world.session, recent_timeline=tail)

    assert await every_page(reader, session) == entries(1, ENTRIES + 65)
    for since, until in [(at(100), at(160)), (at(2990), at(3055)), (at(3010), None)]:
        page = await reader.answer(
            session,
            WarmPage(
                first=1,
                last=session.last_seq,
                limit=1000,
                end=session.last_seq,
                since=since,
                until=until,
                tail=tail,
            ),
        )
        wanted = [
            seq
            for seq in range(1, session.last_seq + 1)
            if since <= at(seq) and (until is None or at(seq) < until)
        ]
        found = [msgspec.msgpack.decode(e, type=TimelineEntry) for e in page.entries]
        assert [entry.seq for entry in found] == wanted


async def test_a_killed_cold_tier_is_told_of_and_reading_goes_on_when_it_is_back(
    world, s3, clock
):
    await a_stub(world)
    reader = world.reader()
    await s3.kill()

    for _ in range(8):
        error = (await loaded(reader, [world.id]))[world.id]
        assert isinstance(error, Unavailable)
    assert error.details["retry_after_s"] == 2.0
    assert (await world.held()).archival_status == "S3"

    await s3.restart()
    clock.now += 2.0
    session = (await loaded(reader, [world.id]))[world.id]
    assert session.last_seq == ENTRIES
    # Another process, which has nothing of the archive at hand.
    reader = world.reader(vault=Archives(world.cold))
    await s3.kill()
    with pytest.raises(Unavailable):
        await every_page(reader, session)

    await s3.restart()
    assert await every_page(reader, session) == entries(1, ENTRIES)
