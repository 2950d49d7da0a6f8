"""
What a reader answers: pages over three tiers, history, contexts, counts.
"""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Unavailable
from everbus.bus.messages import TimelineEntry
from everbus.gateway.store.cold import format
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.read_bound import PAGE_BYTES
from everbus.gateway.store.reader import NoTiers
from everbus.handlers.commands import ListSessions
from everbus.handlers.fetch_requests import (
    FoundSessions,
    FullContext,
    Statistics,
    WarmPage,
)
from tests.builders import a_session
from tests.lineages import loaded
from tests.unit.below import World, an_entry, at, with_history


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """
    So that short timelines have several.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "CHUNK_ENTRIES", 4)
        yield


def wanted(world, tail_size=0, **fields):
    end = world.session.last_seq
    known = {"first": 1, "last": end, "limit": 100, "end": end}

    return WarmPage(**known | fields, tail=world.tail(tail_size))


def seqs(page):
    return [msgspec.msgpack.decode(e, type=TimelineEntry).seq for e in page.entries]


def by_the_model(page: WarmPage, page_bytes: int = PAGE_BYTES):
    """
    The page over a plain list of all entries.
    """
    fitting = [
        seq
        for seq in range(page.first, page.last + 1)
        if (page.since is None or at(seq) >= page.since)
        and (page.until is None or at(seq) < page.until)
    ]
    if page.newest_first:
        fitting.reverse()
    shown = fitting[: page.limit]
    while len(shown) > 1 and sum(len(an_entry(seq)) for seq in shown) > page_bytes:
        shown.pop()

    return shown, shown[-1] if len(fitting) > len(shown) else None


async def in_three_places(archived, purged, restored, drained, pending, tail):
    """
    A returned session: *archived* entries in the cold tier, of which the warm one
    lacks *purged* but has the first *restored* again; then *drained* in the warm
    tier only, then *pending* in neither. The hot tail has at least those.
    """
    world = World()
    await world.change()
    if archived:
        await world.append(archived)
        await world.archive(purged=min(purged, archived))
        await loaded(world.reader(), [world.id])
        back = [an_entry(seq) for seq in range(1, min(restored, purged, archived) + 1)]
        await world.warm.put_entries(world.id, world.session.created_at, back)
    if drained:
        await world.append(drained)
    if pending:
        world.appended(pending)
    return world, max(tail, pending)


counts = st.integers(0, 12)
seq_bounds = st.integers(-2, 40)
times = st.none() | st.integers(-3, 40).map(at)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(0, 20), st.integers(0, 20), counts, counts, counts, counts),
    seq_bounds,
    seq_bounds,
    st.integers(1, 15),
    times,
    times,
    st.tuples(st.booleans(), st.sampled_from((1, 200, PAGE_BYTES))),
)
def test_a_page_is_that_of_a_plain_list_wherever_its_entries_lie(
    places, first, last, limit, since, until, options
):
    newest_first, page_bytes = options

    async def check():
        world, tail_size = await in_three_places(*places)
        page = wanted(
            world,
            tail_size,
            first=max(1, first),
            last=min(last, world.session.last_seq),
            limit=limit,
            since=since,
            until=until,
            newest_first=newest_first,
        )

        reader = world.reader(page_bytes=page_bytes)
        found = await reader.answer(world.session, page)

        assert (seqs(found), found.next) == by_the_model(page, page_bytes)

    asyncio.run(check())


async def test_an_entry_on_a_page_is_byte_for_byte_what_was_appended():
    world, _ = await in_three_places(9, 6, 3, 4, 2, 2)

    page = await world.reader().answer(world.session, wanted(world, 2))

    assert [bytes(entry) for entry in page.entries] == [
        an_entry(seq) for seq in range(1, 16)
    ]


@pytest.mark.parametrize("bounds", [{}, {"since": at(1)}, {"since": at(11)}])
async def test_what_mongodb_has_is_not_asked_of_s3(bounds):
    world, _ = await in_three_places(9, 9, 9, 4, 0, 0)
    back = await world.held()
    await world.warm.swap(back, msgspec.structs.replace(back, unrestored=False))
    world.cold.failing = Unavailable("S3 is away")
    page = wanted(world, **bounds)

    found = await world.reader(vault=Archives(world.cold)).answer(world.session, page)

    assert (seqs(found), found.next) == by_the_model(page)


async def test_what_is_on_its_way_is_not_looked_for_in_s3():
    """
    It is asked for again and again, and S3 would be asked as often.
    """
    world, _ = await in_three_places(9, 9, 0, 0, 3, 0)
    world.vault = Archives(world.cold)
    before = len(world.cold.gets)

    with pytest.raises(Unavailable, match="archiver is behind"):
        await world.reader().answer(world.session, wanted(world))

    manifest = (await world.held()).pointer
    assert world.cold.gets[before:] == [manifest]


async def test_what_the_tail_has_need_not_have_reached_mongodb_in_order():
    world = World()
    await world.change()
    await world.append(5)
    world.appended(5)
    await world.warm.put_entries(world.id, world.session.created_at, [an_entry(9)])
    page = wanted(world, 5, since=at(6))

    found = await world.reader().answer(world.session, page)

    assert (seqs(found), found.next) == by_the_model(page)


async def test_a_page_waits_for_what_the_archiver_has_not_written_yet():
    """
    A page with a hole would be a lie, and a refusal would come too early.
    """
    world = World()
    await world.change()
    await world.append(5)
    late = world.appended(30)
    asked = asyncio.Event()
    entries = world.warm.entries

    async def noted(*bounds):
        asked.set()
        return await entries(*bounds)

    world.warm.entries = noted
    reader = world.reader(catch_up_s=30.0)
    reading = asyncio.create_task(reader.answer(world.session, wanted(world, 20)))
    await asked.wait()
    assert not reading.done()

    await world.warm.write([late])

    assert seqs(await reading) == list(range(1, 36))


@pytest.mark.parametrize("bounds", [{}, {"since": at(20)}, {"until": at(20)}])
async def test_an_archiver_too_far_behind_is_said_instead_of_a_hole(bounds):
    world = World()
    await world.change()
    await world.append(5)
    world.appended(30)

    with pytest.raises(Unavailable, match="archiver is behind"):
        await world.reader().answer(world.session, wanted(world, 10, **bounds))


async def test_entries_that_were_purged_while_their_time_was_looked_for_are_found():
    """
    An archive that the reader did not know of has them: the lowest that is left in
    the warm tier is not the lowest there is.
    """
    world, _ = await in_three_places(9, 0, 0, 0, 0, 0)
    whole = msgspec.structs.replace(await world.held(), unrestored=False)
    await world.warm.swap(await world.held(), whole)
    await world.append(9)
    sessions = world.warm.sessions

    async def before_the_purge(*ids):
        found = await sessions(*ids)
        world.warm.sessions = sessions
        await world.archive(purged=7)
        return found

    world.warm.sessions = before_the_purge
    page = wanted(world, since=at(4))

    found = await world.reader(catch_up_s=1.0).answer(world.session, page)

    assert (seqs(found), found.next) == by_the_model(page)


async def test_pages_of_an_earlier_life_are_never_shown():
    world, _ = await in_three_places(9, 9, 0, 0, 0, 0)
    later = msgspec.structs.replace(world.session, created_at=at(300))

    with pytest.raises(Unavailable, match="archiver is behind"):
        await world.reader().answer(later, wanted(world))


async def test_archived_entries_without_a_cold_tier_name_the_setting():
    world, _ = await in_three_places(9, 9, 0, 0, 0, 0)

    with pytest.raises(Unavailable, match="EVERBUS_S3_ENDPOINT"):
        await world.reader(vault=None).answer(world.session, wanted(world))


async def test_sessions_are_found_without_naming_one():
    world = await with_history(1)
    found = FoundSessions(query=ListSessions(owner="ada"), visible_to="")

    page = await world.reader().answer(None, found)

    assert [session.id for session in page.sessions] == ["s1"]


async def test_statistics_count_all_tiers_and_what_they_cost():
    async def hot_counts():
        return 7, 2**30

    world = await with_history(3)
    stubs = []
    for name in ("s2", "s3"):
        other = World(world.warm, world.cold.cold, name)
        await other.change()
        await other.append(3)
        stubs.append(await other.archive())
    await loaded(world.reader(), ["s3"])
    stored = sum(stub.bytes for stub in stubs)
    reader = world.reader(
        prices=Prices(hot=60.0, warm=2**20, cold=2**30), hot_counts=hot_counts
    )

    found = await reader.answer(None, Statistics())

    assert found.sessions == 3
    assert found.states == {"active": 2, "archived": 1}
    hot, warm, cold = (found.tiers[name] for name in ("hot", "warm", "cold"))
    assert (hot.sessions, hot.bytes, hot.cost) == (7, 2**30, 60.0)
    assert warm.sessions == 2
    assert warm.cost == pytest.approx(warm.bytes / 2**10, abs=1e-6)
    assert (cold.sessions, cold.bytes, cold.cost) == (2, stored, stored)


async def test_without_tiers_nothing_is_there_and_questions_name_the_setting():
    tiers = NoTiers()

    told = await loaded(tiers, ["s1", "s2"])

    assert told == {"s1": None, "s2": None}
    with pytest.raises(Unavailable, match="EVERBUS_MONGO_URL"):
        await tiers.answer(a_session(), FullContext(version=1))
