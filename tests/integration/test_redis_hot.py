"""
Hot copies seen from outside the lanes, on Valkey: counted, and forgotten when durable.
"""

from collections.abc import AsyncIterator

import pytest_asyncio

from everbus.bus.keys import partition_of
from everbus.bus.wire import Wire
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import (
    Admitting,
    Found,
    RedisHot,
    Settling,
    admit_command,
    found_in,
    read_commands,
)
from everbus.gateway.store.hot_walk import hot_totals
from everbus.gateway.store.scripts import load_scripts
from tests.builders import a_session
from tests.servers import valkey

PARTITIONS = 4
OWNER = "1:replica/1"
TTL_MS = 60_000
LINEAGE = 12
NONE = Settling()


@pytest_asyncio.fixture
async def wire(tmp_path) -> AsyncIterator[Wire]:
    async with valkey(tmp_path) as real:
        wire = Wire(real.url)
        await load_scripts(wire)
        for p in range(PARTITIONS):
            await wire.call("SET", key_names.owner(p), OWNER)
        yield wire
        await wire.close()


async def found(wire, session_id) -> Found:
    p = partition_of(session_id, PARTITIONS)
    return found_in(session_id, await wire.exchange(read_commands(p, session_id)))


async def admitted(wire, session, over=None, keeps_hot=False, settling=NONE) -> bytes:
    p = partition_of(session.id, PARTITIONS)
    over = over or await found(wire, session.id)
    admitting = Admitting(OWNER, session, over, keeps_hot, LINEAGE, TTL_MS)
    [status] = await wire.call(*admit_command(p, session.id, admitting, settling))

    return status


async def test_an_admitted_session_is_read_back_whole(wire):
    session = a_session(id="s1", version=3, recent_timeline=(b"\xa1a", b"\xa1b"))

    assert await admitted(wire, session) == b"ok"

    there = await found(wire, "s1")
    assert (there.session, there.lineage) == (session, LINEAGE)


async def test_an_admission_rests_on_the_hot_copy_that_was_compared(wire):
    """
    One that came late, behind a commit, changes nothing.
    """
    session = a_session(id="s1", version=3)
    nothing = await found(wire, "s1")
    await admitted(wire, session)
    before = await found(wire, "s1")
    key = key_names.session(partition_of("s1", PARTITIONS), "s1")
    await wire.call("HSET", key, "last_seq", 9)

    older = a_session(id="s1", version=2)
    for over, keeps_hot in ((nothing, False), (before, False), (before, True)):
        settling = Settling({"ann:i1": "7,1"}, ["ann:x"])
        status = await admitted(wire, older, over, keeps_hot, settling)
        assert status == b"changed"

    after = await found(wire, "s1")
    assert (after.session.version, after.session.last_seq) == (3, 9)
    p = partition_of("s1", PARTITIONS)
    assert not await wire.call("EXISTS", key_names.publishers(p))
    assert not await wire.call("EXISTS", key_names.ledger(p, "ann:x"))


async def test_an_admission_settles_commands_with_it(wire):
    p = partition_of("s1", PARTITIONS)
    await wire.call("SET", key_names.ledger(p, "ann:known"), "its reply")
    settling = Settling({"ann:i1": "7,1"}, ["ann:x", "ann:known"])

    await admitted(wire, a_session(id="s1"), settling=settling)

    assert await wire.call("HGET", key_names.publishers(p), "ann:i1") == b"7,1"
    assert await wire.call("GET", key_names.ledger(p, "ann:x")) == b""
    assert await wire.call("GET", key_names.ledger(p, "ann:known")) == b"its reply"


async def test_a_hot_copy_that_does_not_decode_is_found_as_such_and_replaced(wire):
    session = a_session(id="s1", version=3)
    p = partition_of("s1", PARTITIONS)
    for broken in (
        ("HSET", key_names.session(p, "s1"), "version", "x"),
        ("HDEL", key_names.session(p, "s1"), "created_at"),
        ("SET", key_names.session(p, "s1"), "no hash"),
        ("SET", key_names.recent(p, "s1"), "no list"),
    ):
        await wire.call("DEL", key_names.session(p, "s1"), key_names.recent(p, "s1"))
        await admitted(wire, session)
        await wire.call(*broken)
        assert (await found(wire, "s1")).undecodable

        assert await admitted(wire, session) == b"ok"
        assert (await found(wire, "s1")).session == session


async def test_hot_sessions_are_counted_and_forgotten(wire):
    url = f"redis://{wire.address}"
    hot = RedisHot(wire, PARTITIONS)
    for name in ("one", "two", "three"):
        await admitted(wire, a_session(id=name))

    assert (await hot_totals(url))[0] == 3
    assert await hot.exists("one")
    assert await hot.forget("one")
    assert await hot.forget("one")
    assert not await hot.exists("one")
    assert (await hot_totals(url))[0] == 2


async def test_nothing_is_forgotten_that_mongodb_does_not_hold(wire):
    # As a commit leaves it: nothing is durable yet.
    key = key_names.session(partition_of("fresh", PARTITIONS), "fresh")
    await wire.call("HSET", key, "version", 1, "last_seq", 0)
    hot = RedisHot(wire, PARTITIONS)

    assert not await hot.forget("fresh")
    assert await hot.exists("fresh")
