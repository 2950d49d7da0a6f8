"""
MongoDB as the warm tier where it is not as a plain store would be: races between
writers, refusals, failures, plans.
"""

import asyncio
import gc
import itertools
import warnings
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec
import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient
from pymongo.errors import BulkWriteError

from everbus.bus.errors import Unavailable
from everbus.bus.messages import TimelineEntry, pack
from everbus.compose.testing.contracts.assertions import is_empty, seqs
from everbus.compose.testing.contracts.sample_histories import BEGIN, SampleHistory
from everbus.gateway.store.claims import Branch, Claim
from everbus.gateway.store.mongo.documents import (
    REMOVALS,
    SESSIONS,
    TIMELINE,
    new_document,
)
from everbus.gateway.store.mongo.operations import Insert
from everbus.gateway.store.mongo.warm import MongoWarm
from everbus.handlers.commands import ListSessions
from tests.servers import secantus

pytestmark = pytest.mark.asyncio(loop_scope="module")

numbers = itertools.count()
ON_EACH_DRIVER = pytest.mark.parametrize("driver", ["motor", "pymongo"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    async with secantus(tmp_path_factory.mktemp("secantus")) as real:
        yield real


@pytest.fixture
def database():
    """
    A database of the test's own.
    """
    return f"warm{next(numbers)}"


@asynccontextmanager
async def a_tier(url, database, **options):
    tier = MongoWarm(url, database, **options)
    try:
        yield tier
    finally:
        tier.close()
        await tier.closed()


@pytest_asyncio.fixture(loop_scope="module")
async def tier(server, database):
    async with a_tier(server.url, database) as made:
        await made.prepare()
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def other(server, database):
    """
    The same database, by another process.
    """
    async with a_tier(server.url, database, driver="pymongo") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def raw(server, database):
    """
    The same database, past all of our code.
    """
    async with AsyncMongoClient(server.url, tz_aware=True) as connection:
        yield connection[database]


def interrupted(tier, collection, meanwhile):
    """
    Let *meanwhile* happen once, just before *tier* writes to *collection*: as if its
    process had been paused there.
    """
    door = tier._mongo
    bulk = door.bulk
    waiting = [meanwhile]

    async def held_up(name, operations, *args, **options):
        if name == collection and operations and waiting:
            await waiting.pop()()
        return await bulk(name, operations, *args, **options)

    door.bulk = held_up


async def test_a_paused_writer_does_not_bring_a_state_back(tier, other):
    """
    Neither the state nor the full context, which another one wrote meanwhile.
    """
    story = SampleHistory("s")
    await tier.write([story.create()])
    old = story.update({"a": 1}, tags=("old",))
    newer = [old, story.update({"a": 2, "b": 3}, tags=("new",)), story.append("x")]
    interrupted(tier, SESSIONS, lambda: other.write(newer))

    await tier.write([old])

    held = (await tier.sessions(["s"], context=True))["s"]
    assert held.session == story.session
    assert held.full_context == {"a": 2, "b": 3}


async def test_a_paused_writer_does_not_bring_a_last_seq_back(tier, other):
    story = SampleHistory("s")
    await tier.write([story.create()])
    old, newer = story.append("x"), story.append("y")
    interrupted(tier, SESSIONS, lambda: other.write([old, newer]))

    await tier.write([old])

    assert (await tier.sessions(["s"]))["s"].session == story.session


async def test_what_a_paused_writer_adds_is_not_lost(tier, other):
    """
    Another one wrote the first half of what it holds; the second half must count.
    """
    story = SampleHistory("s")
    records = [story.create(), story.update({"a": 1}), story.append("x")]
    records += [story.update({"b": 2}, tags=("t",)), story.append("y")]
    interrupted(tier, SESSIONS, lambda: other.write(records[:3]))

    await tier.write(records)

    held = (await tier.sessions(["s"], context=True))["s"]
    assert held.session == story.session
    assert held.full_context == {"a": 1, "b": 2}
    assert await seqs(tier, story) == [1, 2]


@pytest.mark.parametrize("paused_at", [TIMELINE, SESSIONS])
async def test_a_paused_writer_leaves_nothing_of_a_deleted_session(
    tier, other, raw, paused_at
):
    story = SampleHistory("s")
    await tier.write([story.create()])
    late = [story.append("x"), story.update({"a": 1}), story.checkpoint("c")]
    interrupted(tier, paused_at, lambda: other.write([*late, story.delete()]))

    await tier.write(late)

    assert await tier.sessions(["s"]) == {}
    await is_empty(tier, story)
    tombstone = await raw[SESSIONS].find_one({"_id": "s"})
    assert set(tombstone) == {"_id", "created_at", "deleted_at"}


async def test_a_paused_writer_brings_no_archived_entry_back(tier, other):
    story = SampleHistory("s")
    await tier.write([story.create()])
    late = story.append("x", "y")

    async def archived_and_purged():
        await other.write([late, story.archive("p")])
        while await other.purge("s", BEGIN, 2, 100):
            pass
        [stub] = await other.unfinished("unpurged", 1)
        assert await other.swap(stub, msgspec.structs.replace(stub, unpurged=False))

    interrupted(tier, TIMELINE, archived_and_purged)

    await tier.write([late])

    assert await seqs(tier, story) == []


async def test_an_archive_that_comes_just_before_a_deletion_is_noted(tier, other):
    """
    The tombstone must not hide a pointer that was not there when it was looked for.
    """
    story = SampleHistory("s")
    await tier.write([story.create()])
    archived = story.archive("p")
    interrupted(tier, SESSIONS, lambda: other.write([archived]))

    await tier.write([story.delete()])

    assert await tier.removals(9) == ["p"]
    assert await tier.sessions(["s"]) == {}


async def test_two_writers_of_the_same_checkpoints_keep_each_once(tier, other):
    story = SampleHistory("s")
    records = [story.create(), story.checkpoint("a"), story.checkpoint("b")]

    await asyncio.gather(tier.write(records), other.write(records))

    page = await tier.checkpoints("s", BEGIN, None, 9)
    assert [c.name for c in page.checkpoints] == ["b", "a"]


async def test_a_deleted_session_is_kept_as_an_id_for_a_month_only(tier, raw):
    story = SampleHistory("s")
    await tier.write([story.create(), story.delete()])

    indexes = await raw[SESSIONS].index_information()

    assert indexes["deleted_at_1"]["expireAfterSeconds"] == 30 * 86_400
    assert await raw[REMOVALS].count_documents({}) == 0


async def test_a_claim_makes_the_indexes_before_it_writes(other, raw):
    """
    Managers claim while an archiver that has just started makes them, too.
    """
    door, seen = other._mongo, []
    bulk = door.bulk

    async def looked(name, operations, *args, **options):
        seen.append(await raw[name].index_information())
        return await bulk(name, operations, *args, **options)

    door.bulk = looked
    await other.claim([Claim(session="s", lineage=7)])
    await other.claim([Claim(session="t", lineage=7)])

    assert len(seen) == 2
    assert all("deleted_at_1" in indexes for indexes in seen)


async def test_a_long_timeline_is_removed_in_bounded_steps(tier, raw, monkeypatch):
    monkeypatch.setattr("everbus.gateway.store.mongo.deletions.DELETED_AT_ONCE", 10)
    story, neighbour = SampleHistory("long"), SampleHistory("longer")
    both = [story.create(), neighbour.create(), neighbour.append("x")]
    await tier.write([*both, *(story.append(*range(7)) for _ in range(6))])
    sizes = []
    bulk = tier._mongo.bulk

    async def counted(name, operations, *args, **options):
        before = await raw[name].count_documents({})
        done = await bulk(name, operations, *args, **options)
        sizes.append(before - await raw[name].count_documents({}))
        return done

    tier._mongo.bulk = counted

    await tier.write([story.delete()])

    assert max(sizes) <= 20
    assert await raw[TIMELINE].count_documents({}) == 1


@ON_EACH_DRIVER
async def test_what_mongodb_can_never_take_is_refused_alone(server, database, driver):
    """
    By a validator, a foreign unique index, its size, its numbers; all others are
    written, also those of the same session.
    """
    async with (
        a_tier(server.url, database, driver=driver) as tier,
        AsyncMongoClient(server.url) as connection,
    ):
        raw = connection[database]
        await tier.prepare()
        await raw.command("collMod", TIMELINE, validator={"entry": {"$ne": "bad"}})
        await raw.command("collMod", SESSIONS, validator={"tags": {"$ne": "bad"}})
        await raw[TIMELINE].create_index("entry.once", unique=True, sparse=True)
        story, fine = SampleHistory("s"), SampleHistory("fine")
        records = [story.create(), story.append("bad"), story.append({"once": 1})]
        records += [story.append({"once": 1}), story.append(2**64 - 1)]
        records += [story.update(tags=("good",)), story.update(tags=("bad",))]
        records += [fine.create(), fine.append("x" * 2**24), fine.append("y")]

        refused = await tier.write(records)

        held = await tier.sessions(["s", "fine"])
        assert [records.index(r.record) for r in refused] == [1, 3, 4, 6, 8]
        assert "code 121" in refused[0].reason
        assert "11000" in refused[1].reason
        assert "OverflowError" in refused[2].reason
        assert held["s"].session.tags == ("good",)
        assert held["s"].session.last_seq == 4
        assert await seqs(tier, story) == [2]
        assert await seqs(tier, fine) == [2]
        assert await tier.write(records[:1] + records[7:8]) == []


@pytest.mark.parametrize("code", [91, 112, 189, 10107, 14031, 9001, 4711])
async def test_what_may_pass_is_not_refused(tier, code, monkeypatch):
    """
    Not the primary, a conflict, a full disk, or a code that nobody has heard of.
    """
    failures = [{"index": 0, "code": 121}, {"index": 1, "code": code}]
    fails_with(tier, monkeypatch, {"writeErrors": failures})

    with pytest.raises(Unavailable, match=str(code)):
        await tier.write([SampleHistory("s").create()])


async def test_an_unacknowledged_write_is_not_done(tier, monkeypatch):
    details = {"writeErrors": [], "writeConcernErrors": [{"code": 64}]}
    fails_with(tier, monkeypatch, details)

    with pytest.raises(Unavailable, match="64"):
        await tier.write([SampleHistory("s").create()])


def fails_with(tier, monkeypatch, details):
    """
    Let every bulk fail, and the server say *details* of it.
    """

    class Failing:
        async def bulk_write(self, *_, **__):
            raise BulkWriteError(details)

        find = tier._mongo._collection(SESSIONS).find

    monkeypatch.setattr(tier._mongo, "_collection", lambda name: Failing())


@ON_EACH_DRIVER
async def test_a_mongodb_that_does_not_answer_is_unavailable(tmp_path, driver):
    """
    Paused, then killed; what was acknowledged before is there afterwards.
    """
    story = SampleHistory("s")
    async with secantus(tmp_path) as server:
        async with a_tier(server.url, "db", driver=driver, timeout_ms=500) as tier:
            await tier.prepare()
            await tier.write([story.create()])
            server.pause()
            with pytest.raises(Unavailable):
                await tier.write([story.append("x")])
            with pytest.raises(Unavailable):
                await tier.sessions(["s"])
            server.resume()
            await server.kill()
            with pytest.raises(Unavailable):
                await tier.find(ListSessions(), "")
            assert (await tier_counts(tier)) is None
        await server.restart()
        async with a_tier(server.url, "db", driver=driver) as tier:
            held = await tier.sessions(["s"])
    # PyMongo leaves a socket that it was opening when the server died; it must not
    # be laid to whatever test is running when it is collected.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

    assert held["s"].session.id == "s"


async def tier_counts(tier):
    try:
        return await tier.counts()
    except Unavailable:
        return None


@ON_EACH_DRIVER
async def test_a_client_of_another_event_loop_fails_loudly(server, database, driver):
    """
    PyMongo would hang, motor would wait for a loop that may be gone.
    """
    async with a_tier(server.url, database, driver=driver) as tier:
        await tier.prepare()

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, tier.sessions(["s"]))


def stages(plan):
    """
    The names of a plan's stages, from the outermost inwards.
    """
    found = []
    while plan is not None:
        found.append(plan["stage"])
        plan = plan.get("inputStage")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def many(server):
    """
    Five thousand sessions of a hundred owners.
    """
    async with a_tier(server.url, "many") as tier:
        await tier.prepare()
        inserts = []
        for n in range(5000):
            story = SampleHistory(
                f"s{n:05}",
                BEGIN + timedelta(seconds=n),
                f"owner{n % 100}",
                acl=(f"mad{n % 50}",),
                tags=(f"tag{n % 200}",),
                state="dormant" if n % 90 == 7 else "active",
                participants={f"part{n % 70}": {}},
                context_summary={"topic": f"word{n % 80}"},
            )
            inserts.append(Insert(new_document(story.session, {}, Branch())))
        await tier._mongo.bulk(SESSIONS, inserts)
        yield tier


@pytest.mark.parametrize(
    ("query", "visible_to", "index"),
    [
        (ListSessions(), "", "last_active"),
        (ListSessions(active_before=BEGIN + timedelta(seconds=99)), "", "last_active"),
        (ListSessions(), "mad7", "readers"),
        (ListSessions(owner="owner7"), "", "owner_id"),
        (ListSessions(participant="part7"), "", "participant_names"),
        (ListSessions(state="dormant"), "", "state"),
        (ListSessions(tag="tag7"), "", "tags"),
        (ListSessions(text="word7"), "", "words"),
        (
            ListSessions(owner="owner7", active_since=BEGIN + timedelta(seconds=99)),
            "",
            "owner_id",
        ),
    ],
)
async def test_sessions_are_found_without_reading_the_collection(
    many, query, visible_to, index
):
    query = msgspec.structs.replace(query, limit=20)

    plan = await many.explain(query, visible_to)
    page = await many.find(query, visible_to)

    assert "IXSCAN" in stages(plan), plan
    assert "COLLSCAN" not in stages(plan), plan
    assert index in str(plan)
    assert len(page.sessions) == 20


async def test_later_pages_are_found_without_reading_the_collection(many):
    query = ListSessions(owner="owner7", limit=20)
    page = await many.find(query, "")

    plan = await many.explain(msgspec.structs.replace(query, cursor=page.next), "")

    assert "IXSCAN" in stages(plan), plan


async def test_entries_hold_who_appended_them_by_which_command(tier, raw):
    """
    The audit of appends: their events are not kept by themselves.
    """
    story = SampleHistory("s")
    record = story.append("x")
    await tier.write([story.create(), record])
    packed = pack(TimelineEntry(2, BEGIN, "late", "y"))
    await tier.put_entries("s", BEGIN, [packed])

    first = await raw[TIMELINE].find_one({"seq": 1})
    assert first["command"] == record.events[0].command_id
    assert first["principal"] == "ada"
    assert first["life"] == BEGIN


async def test_words_of_an_earlier_version_are_made_anew(tier, raw):
    """
    Sessions are found as of today after an update, without being written to.
    """
    stories = [
        SampleHistory(f"s{n}", context_summary={"t": "我们关于潮汐的谈话"})
        for n in range(3)
    ]
    await tier.write([story.create() for story in stories])
    old = {"$set": {"words": ["我们关于潮汐的谈话"]}, "$unset": {"words_version": ""}}
    await raw[SESSIONS].update_many({}, old)
    before = await tier.find(ListSessions(text="潮汐"), "")

    renewed = [await tier.renew_words(2) for _ in range(3)]

    assert before.sessions == ()
    assert renewed == [2, 1, 0]
    assert len((await tier.find(ListSessions(text="潮汐"), "")).sessions) == 3
