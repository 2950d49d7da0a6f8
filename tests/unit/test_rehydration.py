"""
Sessions on their way up: loaded from the warm tier, returned from the cold one.
"""

import asyncio

import msgspec
import pytest
import structlog

from everbus.bus.errors import Unavailable
from everbus.bus.messages import Session, pack
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.rehydration import _audit
from everbus.gateway.store.tiers import Corrupted
from everbus.handlers.patches import HOT_BYTES, RECENT_ENTRIES, TAIL_BYTES
from tests.builders import NOW
from tests.lineages import loaded
from tests.unit.below import World, an_entry, entries


async def a_world(count=30, *, purged=None, **fields):
    """
    A stub of a session with *count* entries, *purged* of them (all) only in S3.
    """
    world = World()
    await world.change(full_context={"notes": ["a"]}, **fields)
    if count:
        await world.append(count)
    await world.archive(purged=count if purged is None else purged)
    return world


async def back(world, reader=None):
    return (await loaded(reader or world.reader(), [world.id]))[world.id]


async def test_a_warm_session_comes_with_its_newest_entries():
    world = World()
    await world.change(work_in_progress={"step": 1})
    await world.append(30)

    session = await back(world)

    tail = tuple(entries(30 - RECENT_ENTRIES + 1, 30))
    assert session == msgspec.structs.replace(world.session, recent_timeline=tail)


async def test_the_tail_gives_way_to_the_state():
    """
    A hot session stays below its bound, whatever comes up from below.
    """
    world = World()
    await world.change(work_in_progress={"text": "x" * (HOT_BYTES - 1000)})
    await world.append(30)

    session = await back(world)

    assert 0 < len(session.recent_timeline) < RECENT_ENTRIES
    assert session.recent_timeline[-1] == an_entry(30)
    size = len(pack(msgspec.structs.replace(session, recent_timeline=())))
    assert size + sum(map(len, session.recent_timeline)) <= HOT_BYTES
    assert TAIL_BYTES < HOT_BYTES


async def test_one_that_no_tier_holds_is_none_and_the_others_come():
    world = await a_world()

    found = await loaded(world.reader(), ["nobody", world.id])

    assert found["nobody"] is None
    assert isinstance(found[world.id], Session)


async def test_a_stub_returns_as_it_was_archived():
    world = await a_world(work_in_progress={"step": 1}, tags=("tides",))

    session = await back(world)

    tail = tuple(entries(11, 30))
    assert session == msgspec.structs.replace(world.session, recent_timeline=tail)
    held = await world.held()
    assert held.session == world.session
    assert held.full_context == {"notes": ["a"]}
    assert (held.archival_status, held.moves) == ("ACTIVE", 2)
    assert (held.unrestored, held.unpurged) == (True, False)
    assert held.pointer
    assert held.through == 30


async def test_a_dormant_session_returns_dormant():
    world = await a_world(state="dormant")

    assert (await back(world)).state == "dormant"


async def test_a_session_without_entries_has_nothing_to_bring_back():
    world = await a_world(0)

    session = await back(world)

    assert session.recent_timeline == ()
    assert not (await world.held()).unrestored


@pytest.mark.parametrize("purged", [0, 5, 15, 25])
async def test_the_tail_is_whole_however_far_the_purge_has_got(purged):
    world = await a_world(purged=purged)

    assert (await back(world)).recent_timeline == tuple(entries(11, 30))


async def test_readers_at_once_cause_one_return():
    alone, world = await a_world(), await a_world()
    await back(alone)
    reader = world.reader()

    found = await asyncio.gather(*(back(world, reader) for _ in range(20)))

    assert {session.version for session in found} == {1}
    assert len(world.cold.gets) == len(alone.cold.gets)
    assert (await world.held()).moves == 2


async def test_a_cancelled_reader_does_not_take_the_return_from_the_others():
    world = await a_world()
    reader, entered, go = world.reader(), asyncio.Event(), asyncio.Event()
    open_ = world.vault.open

    async def held_up(*asked):
        entered.set()
        await go.wait()
        return await open_(*asked)

    world.vault.open = held_up
    first = asyncio.create_task(back(world, reader))
    await entered.wait()
    second = asyncio.create_task(back(world, reader))
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.wait([first])
    go.set()

    assert first.cancelled()
    assert (await second).version == 1


async def test_closing_ends_what_is_under_way():
    world = await a_world()
    reader, entered = world.reader(), asyncio.Event()

    async def never(*_):
        entered.set()
        await asyncio.Event().wait()

    world.vault.open = never
    loading = asyncio.create_task(loaded(reader, [world.id]))
    await entered.wait()

    await reader.close()

    assert await loading == {}
    assert (await world.held()).archival_status == "S3"


async def refused(world):
    """
    The error of loading what is damaged: told to the operator, too, and the stub is
    what it was.
    """
    stub = await world.held()

    with structlog.testing.capture_logs() as logs:
        found = await back(world)

    assert isinstance(found, Corrupted)
    assert await world.held() == stub
    alarms = [(entry["event"], entry["log_level"]) for entry in logs]
    assert alarms == [("cold.corrupted", "error")]
    return found


def stored_objects(world):
    return world.cold.cold.objects


@pytest.mark.parametrize("place", range(3))
async def test_a_flipped_byte_in_what_is_read_is_refused(place):
    """
    Manifest, document or last chunk: neither is served, and nothing is admitted.
    """
    world = await a_world()
    probe = await a_world()
    await back(probe)
    key = list(dict.fromkeys(probe.cold.gets))[place]
    data = bytearray(stored_objects(world)[key])
    data[len(data) // 2] ^= 1
    stored_objects(world)[key] = bytes(data)

    await refused(world)


@pytest.mark.parametrize("place", range(3))
async def test_a_missing_object_is_refused(place):
    world = await a_world()
    probe = await a_world()
    await back(probe)
    del stored_objects(world)[list(dict.fromkeys(probe.cold.gets))[place]]

    await refused(world)


async def test_an_older_archive_under_the_pointer_is_refused():
    """
    Put back by somebody's backup: valid in itself, but not what was archived last.
    """
    world = await a_world()
    old = await world.held()
    await back(world)
    await world.change(work_in_progress={"newer": 1})
    await world.append(3)
    stub = await world.archive(purged=33)
    forged = msgspec.structs.replace(stub, pointer=old.pointer)
    assert await world.warm.swap(stub, forged)

    error = await refused(world)

    assert error.details["key"] == old.pointer


async def test_a_cold_tier_that_is_away_leaves_the_stub_and_spares_the_others():
    world = await a_world()
    other = World(world.warm, session_id="s2")
    await other.change()
    world.cold.failing = Unavailable("S3 is away")

    found = await loaded(world.reader(), [world.id, "s2"])

    assert isinstance(found[world.id], Unavailable)
    assert isinstance(found["s2"], Session)
    world.cold.failing = None
    assert (await back(world)).version == 1


async def test_a_defect_in_one_session_is_told_as_such_and_spares_the_others():
    world = await a_world()
    other = World(world.warm, session_id="s2")
    await other.change()

    async def broken(*_):
        raise KeyError("surprise")

    world.vault.open = broken
    with structlog.testing.capture_logs() as logs:
        found = await loaded(world.reader(), [world.id, "s2"])

    assert isinstance(found[world.id], Unavailable)
    assert isinstance(found["s2"], Session)
    assert [entry["event"] for entry in logs] == ["load.failed"]


async def test_a_stub_without_a_cold_tier_names_the_setting():
    world = await a_world()

    error = await back(world, world.reader(vault=None))

    assert isinstance(error, Unavailable)
    assert "EVERBUS_S3_ENDPOINT" in error.message


async def test_a_warm_tier_that_is_away_is_said_for_each():
    world = await a_world()

    async def away(*_, **__):
        raise Unavailable("MongoDB is away")

    world.warm.claim = away

    found = await loaded(world.reader(), ["a", "b"])

    assert {type(error) for error in found.values()} == {Unavailable}


async def test_a_return_is_written_to_the_audit_once():
    world = await a_world()
    stub = await world.held()
    written = []
    write = world.warm.write

    async def noted(records):
        written.extend(records)
        return await write(records)

    world.warm.write = noted
    await back(world)

    [record] = written
    assert [event.kind for event in record.events] == ["session.rehydrated"]
    assert record.events[0].command_id == _audit(stub, NOW).events[0].command_id
    # It is no step of the version: history has no second version 1.
    steps = await world.warm.changes(world.id, world.session.created_at, 0, 1)
    assert [step.kind for step in steps] == ["session.created"]


async def test_the_return_is_logged_with_its_time():
    world = await a_world()

    with structlog.testing.capture_logs() as logs:
        await back(world)

    [entry] = [entry for entry in logs if entry["event"] == "session.rehydrated"]
    assert entry["log_level"] == "info"
    assert entry["duration_ms"] >= 0


class Crash(Exception):
    """
    Stands for the death of the process.
    """


@pytest.mark.parametrize("point", ["return_fetched", "return_swapped"])
async def test_a_crash_leaves_the_stub_or_the_session_and_the_next_reader_goes_on(
    point,
):
    world = await a_world()

    def dies(passed):
        if passed == point:
            raise Crash

    await back(world, world.reader(fail=dies))
    status = (await world.held()).archival_status
    assert status == ("S3" if point == "return_fetched" else "ACTIVE")

    session = await back(world)

    assert session.recent_timeline == tuple(entries(11, 30))
    assert (await world.held()).moves == 2


def raced(world, meanwhile):
    """
    A reader that is overtaken by *meanwhile* when it is about to swap, once.
    """
    swap = world.warm.swap

    async def late(before, after):
        world.warm.swap = swap
        await meanwhile()
        return await swap(before, after)

    world.warm.swap = late


async def test_of_two_processes_one_returns_it_and_the_other_finds_it_returned():
    world = await a_world()
    raced(world, lambda: back(world, world.reader()))

    session = await back(world)

    assert session.version == 1
    assert session.recent_timeline == tuple(entries(11, 30))
    assert (await world.held()).moves == 2


async def test_a_late_reader_does_not_undo_what_was_written_since():
    """
    It wakes up when others have returned the session, changed it and archived it.
    """
    world = await a_world()

    async def long_ago():
        await back(world, world.reader())
        await world.change(work_in_progress={"newer": 1})
        await world.append(4)
        await world.archive(purged=34)

    raced(world, long_ago)

    session = await back(world)

    assert (session.version, session.last_seq) == (2, 34)
    assert session.work_in_progress == {"newer": 1}
    assert session.recent_timeline == tuple(entries(15, 34))
    assert (await world.held()).session == world.session


async def test_a_late_reader_does_not_revive_what_was_deleted():
    world = await a_world()

    async def deleted():
        session = world.session
        record = Record(
            session=session.id,
            created_at=session.created_at,
            version=session.version + 1,
            last_seq=session.last_seq,
            last_active=session.last_active,
            deleted=True,
        )
        await world.warm.write([record])

    raced(world, deleted)

    assert await back(world) is None
    assert await world.warm.sessions([world.id]) == {}


async def test_a_stub_that_keeps_changing_is_given_up():
    world = await a_world()

    async def never(*_):
        return False

    world.warm.swap = never

    error = await back(world)

    assert isinstance(error, Unavailable)
    assert "archived anew" in error.message


async def test_more_ids_than_allowed_are_a_defect_of_the_caller():
    with pytest.raises(ValueError, match="257"):
        await loaded(World().reader(), [f"s{n}" for n in range(257)])
