"""
Write-behind into a real MongoDB protocol server: all of it, once, in any crash.
"""

import asyncio
import signal
from contextlib import asynccontextmanager

import msgspec
import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from everbus.archiver.drain import Drain
from everbus.archiver.lease import NAME as LEASE
from everbus.bus.backoff import Backoff
from everbus.bus.errors import Unavailable
from everbus.bus.messages import Session
from everbus.gateway.failpoints import DRAIN, disarmed
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import VALUE_FIELD, unpack_records
from everbus.gateway.store.mongo.documents import (
    CHECKPOINTS,
    EVENTS,
    REMOVALS,
    SESSIONS,
    SNAPSHOTS,
    TIMELINE,
)
from everbus.gateway.store.mongo.warm import MongoWarm
from tests.closed_load import ClosedLoad
from tests.commit_log import CommitLog
from tests.replicas import a_client, a_mad, archiver, manager, settled, until
from tests.servers import secantus, valkey

PARTITIONS = 2
_ELSEWHERE = {"id", "recent_timeline", "full_context", "archival_status"}
SHOWN = ("_id", *(f for f in Session.__struct_fields__ if f not in _ELSEWHERE))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bus(tmp_path_factory):
    async with valkey(tmp_path_factory.mktemp("valkey")) as real:
        yield real


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mongo(tmp_path_factory):
    async with secantus(tmp_path_factory.mktemp("secantus")) as real:
        yield real


@pytest_asyncio.fixture
async def client(bus):
    async with a_client(bus.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def database(request):
    """
    A database of the test's own.
    """
    return f"t{abs(hash(request.node.name))}"


@pytest_asyncio.fixture
async def held(mongo, database):
    """
    What MongoDB holds, read past all of our code.
    """
    async with AsyncMongoClient(mongo.url, tz_aware=True) as connection:
        yield connection[database]


@pytest.fixture
def parts(bus, mongo, database, tmp_path):
    """
    Starts managers and archivers of the test's bus and database.
    """
    settings = {"mongo_url": mongo.url, "mongo_database": database}

    class Parts:
        def manager(self, name="m1"):
            return manager(tmp_path, bus.url, name, **settings)

        def archiver(self, name="a1", **more):
            return archiver(tmp_path, bus.url, name, **settings, **more)

    return Parts()


async def confirmed(client, within_s=30.0):
    """
    Wait until all is committed, no outbox holds anything, the backlog is nothing.
    """

    await settled(client)

    async def empty():
        lengths = [await client.xlen(key_names.outbox(p)) for p in range(PARTITIONS)]
        backlog = [await client.get(key_names.backlog(p)) for p in range(PARTITIONS)]
        return not any(lengths) and not any(int(b or 0) for b in backlog)

    await until(empty, within_s, "outboxes drained")


async def document_in(held, session):
    """
    The session's document, as far as it is what the SDK shows; None if deleted.
    """
    found = await held["sessions"].find_one({"_id": session})
    if found is None or "deleted_at" in found:
        return None
    assert found["archival_status"] == "ACTIVE"
    # Fields that documents lack as long as there is nothing to tell.
    absent = {"tenant": "", "notices": 0}
    return {name: (absent | found)[name] for name in SHOWN}


async def timeline_in(held, session):
    found = held["timeline"].find({"session": session}).sort("seq", 1)
    return [(d["seq"], d["at"], d["author"], d["entry"]) async for d in found]


def told(entries):
    return [(e.seq, e.at, e.author, e.entry) for e in entries]


def document_of(session):
    """
    What of that the document of a session has to be, as the SDK gave it.
    """
    document = msgspec.structs.asdict(session) | {"_id": session.id}
    document |= {"acl": list(session.acl), "tags": list(session.tags)}
    return {name: document[name] for name in SHOWN}


async def fill(mad, count=45):
    """
    A session with a state of every kind and *count* entries.
    """
    session = await mad.create_session("ada")
    for n in range(1, count + 1):
        mad.append(session.id, {"n": n, "text": f"ünï {n}", "deep": [{"a": None}, 1.5]})
    patch = {"context_summary": {"topic": "tides"}, "work_in_progress": {"n": 2**53}}
    await mad.update_session(session.id, patch)
    await mad.join(session.id, role="critic")
    return await mad.get_session(session.id)


async def test_sessions_and_timelines_arrive_as_they_went_in(client, bus, held, parts):
    """
    Field by field and entry by entry; then nothing is left to confirm.
    """
    async with parts.manager(), a_mad(bus.url) as mad:
        sessions = [await fill(mad) for _ in range(3)]
        log = await CommitLog.read(client, PARTITIONS)

        async with parts.archiver():
            await confirmed(client)
            first = [await timeline_in(held, session.id) for session in sessions]
            documents = [await document_in(held, session.id) for session in sessions]
            await mad.append_and_wait(sessions[0].id, "an append alone")
            await confirmed(client)
            later = await mad.get_session(sessions[0].id)

    assert documents == [document_of(session) for session in sessions]
    assert first == [told(log.entries[session.id]) for session in sessions]
    assert [len(timeline) for timeline in first] == [45, 45, 45]
    assert later.last_seq == 46
    assert await document_in(held, later.id) == document_of(later)


async def test_a_page_older_than_the_hot_tail_is_read_through_the_sdk(
    client, bus, parts
):
    """
    The hot tier has twenty entries; every page looks the same from wherever.
    """
    async with parts.manager(), parts.archiver(), a_mad(bus.url) as mad:
        session = await fill(mad)

        first = await mad.timeline(session.id, after=0, limit=30)
        second = await mad.timeline(session.id, after=first.next, limit=30)
        hot = await mad.timeline(session.id, after=30, limit=30)

    entries = [*first.entries, *second.entries]
    assert [e.seq for e in entries] == list(range(1, 46))
    assert [e.entry["n"] for e in entries] == list(range(1, 46))
    assert second.next is None
    assert told(hot.entries) == told(second.entries)


@pytest.mark.campaign  # in every run it is killed at each of its fail points
async def test_an_archiver_that_is_killed_again_and_again_loses_nothing(
    client, bus, held, parts
):
    """
    Whatever it held when it died is written again, and does no harm.
    """
    redelivered = 0
    async with (
        parts.manager(),
        a_mad(bus.url, "ann") as ann,
        a_mad(bus.url, "bob") as bob,
    ):
        sessions = [(await ann.create_session("ada")).id for _ in range(4)]
        load = ClosedLoad([ann, bob], sessions)
        async with load.running():
            for _ in range(3):
                before = await held["timeline"].estimated_document_count()
                async with parts.archiver() as doomed:
                    await until(lambda before=before: grown(held, before), 20)
                    await doomed.end(signal.SIGKILL)
                redelivered += await pending(client)
                await client.delete(key_names.owner(LEASE))
            load.stop()
        await settled(client)
        async with parts.archiver():
            await confirmed(client)
        after = {session: await ann.get_session(session) for session in sessions}

    assert redelivered > 0
    for session in sessions:
        document = await document_in(held, session)
        timeline = await timeline_in(held, session)
        assert document == document_of(after[session])
        load.check_timeline(session, marked(timeline))


@pytest.mark.parametrize("point", DRAIN)
@pytest.mark.parametrize(
    "kills",
    [3, pytest.param(20, marks=[pytest.mark.campaign, pytest.mark.timeout(300)])],
)
async def test_a_kill_at_any_point_of_the_drain_loses_and_repeats_nothing(
    client, bus, held, parts, point, kills
):
    """
    Whatever it had done by then is done again, and every session is as it was told.
    """
    async with parts.manager(), a_mad(bus.url, "ann") as ann:
        sessions = [(await ann.create_session("ada")).id for _ in range(3)]
        load = ClosedLoad([ann], sessions)
        async with load.running():
            deaths = [await die(client, parts, point, n) for n in range(kills)]
            load.stop()
        async with parts.archiver():
            await confirmed(client)
        after = {session: await ann.get_session(session) for session in sessions}

    assert deaths == [-signal.SIGKILL] * kills
    for session in sessions:
        timeline = await timeline_in(held, session)
        load.check_timeline(session, marked(timeline))
        assert await document_in(held, session) == document_of(after[session])


def marked(timeline):
    """
    Seq, author and entry of each.
    """
    return [(seq, author, entry) for seq, _, author, entry in timeline]


async def die(client, parts, point, nth):
    """
    Run an archiver armed at *point* until it is dead; its exit code.
    """
    async with parts.archiver(f"a{nth}", fail_point=f"{point}:{nth + 1}") as armed:
        code = await armed.ended()
    # Nobody has to wait for the dead one's lease.
    await client.delete(key_names.owner(LEASE))
    return code


async def grown(held, before):
    return await held["timeline"].estimated_document_count() > before


async def pending(client):
    """
    How many outbox entries were read and never confirmed.
    """
    found = [
        await client.xpending(key_names.outbox(p), key_names.ARCHIVER_GROUP)
        for p in range(PARTITIONS)
    ]
    return sum(told["pending"] for told in found)


class Forgetful(MongoWarm):
    """
    A store that writes, then fails as if nobody knew: the confirm never comes.
    """

    fails = 2

    async def write(self, records):
        refused = await super().write(records)
        if self.fails:
            self.fails -= 1
            raise Unavailable("written, but its acknowledgement was lost")
        return refused


@asynccontextmanager
async def draining(bus, warm):
    drain = Drain(
        bus.url, PARTITIONS, warm, "here", fail=disarmed, backoff=Backoff(0.1, 0.2)
    )
    stop = asyncio.Event()
    running = asyncio.create_task(drain.run(stop))
    try:
        yield drain
    finally:
        stop.set()
        await running
        warm.close()


async def test_what_was_written_but_not_confirmed_is_written_again_without_harm(
    client, bus, held, mongo, database, parts
):
    async with parts.manager(), a_mad(bus.url) as mad:
        session = await fill(mad)
        log = await CommitLog.read(client, PARTITIONS)
        warm = Forgetful(mongo.url, database)

        async with draining(bus, warm) as drain:
            await confirmed(client)

    assert warm.fails == 0
    records = sum(len(events) > 0 for events in log.events.values())
    assert drain.written >= records
    assert await timeline_in(held, session.id) == told(log.entries[session.id])
    assert await document_in(held, session.id) == document_of(session)


async def two_lives(mad, name):
    """
    A session with four entries, deleted, and made again with two; the second.
    """
    await mad.create_session("ada", session_id=name)
    for n in range(1, 5):
        await mad.append_and_wait(name, {"life": 1, "n": n})
    await mad.update_session(name, {"context_summary": {"life": 1}})
    await mad.delete_session(name)
    await mad.create_session("ada", session_id=name)
    for n in range(1, 3):
        await mad.append_and_wait(name, {"life": 2, "n": n})
    return await mad.get_session(name)


async def test_a_session_made_again_under_its_id_keeps_nothing_of_its_former_life(
    client, bus, held, parts
):
    """
    Although both lives reach MongoDB in one write.
    """
    async with parts.manager(), a_mad(bus.url) as mad:
        session = await two_lives(mad, "again")
        await mad.create_session("ada", session_id="gone")
        await mad.append_and_wait("gone", {"n": 1})
        await mad.delete_session("gone")

        async with parts.archiver():
            await confirmed(client)
            timeline = await timeline_in(held, "again")
            document = await document_in(held, "again")
            await mad.delete_session("again")
            await confirmed(client)

    assert [entry for *_, entry in timeline] == [
        {"life": 2, "n": 1},
        {"life": 2, "n": 2},
    ]
    assert document == document_of(session)
    for deleted in ("again", "gone"):
        assert await document_in(held, deleted) is None
        assert await timeline_in(held, deleted) == []


@pytest.mark.parametrize("size", [1, 3, 5, 7, 100])
async def test_however_the_outbox_is_cut_into_writes_the_result_is_the_same(
    client, bus, held, mongo, database, parts, size
):
    """
    Each write is done twice, as after a crash before its confirm.
    """
    async with parts.manager(), a_mad(bus.url) as mad:
        session = await two_lives(mad, "again")
        entries = [
            entry
            for p in range(PARTITIONS)
            for entry in await client.xrange(key_names.outbox(p))
        ]
    warm = MongoWarm(mongo.url, database)
    await warm.prepare()

    for first in range(0, len(entries), size):
        records = [
            record
            for _, fields in entries[first : first + size]
            for record in unpack_records(fields[VALUE_FIELD])
        ]
        await warm.write(records)
        await warm.write(records)
    warm.close()

    timeline = await timeline_in(held, "again")
    assert [entry["life"] for *_, entry in timeline] == [2, 2]
    assert await document_in(held, "again") == document_of(session)


async def with_tables(mongo, database):
    """
    Let the server make its tables, and end in order once.

    SecantusDB makes them when they are first written to; killed in the seconds after,
    it may not open its own files any more ("WiredTigerError: Invalid argument").
    """
    async with AsyncMongoClient(mongo.url) as connection:
        for name in (SESSIONS, TIMELINE, EVENTS, SNAPSHOTS, CHECKPOINTS, REMOVALS):
            await connection[database][name].insert_one({"_id": "first"})
            await connection[database][name].delete_one({"_id": "first"})
    await mongo.restart()


async def test_mongodb_away_delays_and_loses_nothing(client, bus, parts, tmp_path):
    """
    Killed while it is written to and started again: the archiver catches up.
    """
    async with secantus(tmp_path) as mongo, a_client(bus.url):
        await with_tables(mongo, "fallen")
        settings = {"mongo_url": mongo.url, "mongo_database": "fallen"}
        async with (
            manager(tmp_path, bus.url, "m1", **settings),
            archiver(tmp_path, bus.url, "a1", **settings),
            a_mad(bus.url, "ann") as ann,
        ):
            sessions = [(await ann.create_session("ada")).id for _ in range(2)]
            load = ClosedLoad([ann], sessions)
            async with load.running():
                await load.more(10)
                await mongo.kill()
                await load.more(20)
                behind = await client.mget(map(key_names.backlog, range(PARTITIONS)))
                await mongo.restart()
                await load.more(10)
                load.stop()
            await settled(client)
            await confirmed(client)
        async with AsyncMongoClient(mongo.url, tz_aware=True) as connection:
            for session in sessions:
                timeline = await timeline_in(connection["fallen"], session)
                load.check_timeline(session, marked(timeline))
    assert sum(int(records or 0) for records in behind) > 0


async def test_a_second_archiver_waits_until_the_first_is_gone(
    client, bus, held, parts
):
    """
    Paused, its lease runs out; only then the other begins, and keeps it.
    """
    async with (
        parts.manager(),
        a_mad(bus.url) as mad,
        parts.archiver("a1") as first,
    ):
        session = await mad.create_session("ada")
        await confirmed(client)
        holder = await client.get(key_names.owner(LEASE))
        async with parts.archiver("a2") as second:
            await second.logged("archiver.ready")
            first.send(signal.SIGSTOP)
            for n in range(30):
                mad.append(session.id, {"n": n})
            await mad.flush()
            await settled(client)
            still = await client.get(key_names.owner(LEASE))

            await confirmed(client)
            heir = await client.get(key_names.owner(LEASE))
            first.send(signal.SIGCONT)
            # Its next read or its next renewal tells it, whichever comes first.
            events = ("drain.superseded", "lease.lost")
            await until(lambda: any(map(first.records, events)), 15, "it has noticed")

            assert await first.end() == 0
            assert await client.get(key_names.owner(LEASE)) == heir

    assert still == holder
    assert heir != holder
    timeline = await timeline_in(held, session.id)
    assert [entry["n"] for *_, entry in timeline] == list(range(30))
