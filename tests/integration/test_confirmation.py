"""
What becomes of hot copies, outbox and waiting callers when MongoDB holds a commit.

Hot sessions and outbox entries are laid out by hand, in the form of the commit; the
drain is the real one, on a real server, over a warm tier that only takes notes.
"""

import asyncio
import time
from contextlib import asynccontextmanager

import msgspec
import pytest

from everbus.archiver.confirmation import ConfirmationLimits, confirmations, entry_of
from everbus.archiver.drain import Drain
from everbus.archiver.lease import NAME as LEASE
from everbus.bus import keys
from everbus.bus.backoff import Backoff
from everbus.bus.messages import Reply, pack, unpack_reply
from everbus.bus.wire import Wire
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store import hot_copy, key_names
from everbus.gateway.store.dead_letters import letter_of
from everbus.gateway.store.hot_copy import (
    COUNT_FIELD,
    REPLIES_FIELD,
    VALUE_FIELD,
    HeldReply,
    Record,
    pack_records,
)
from everbus.gateway.store.tiers import WriteRefused
from everbus.handlers.outcomes import Archived, Event
from tests.builders import NOW, a_session
from tests.replicas import until

TERMS = ConfirmationLimits(hot_ttl_ms=600_000, reply_ttl_ms=60_000)


class Notebook:
    """
    A warm tier that takes every record but those of the sessions in *refuses*.
    """

    def __init__(self, *refuses):
        self.records = []
        self.refuses = refuses

    async def prepare(self):
        return

    async def write(self, records):
        refused = [r for r in records if r.session in self.refuses]
        self.records += [r for r in records if r.session not in self.refuses]
        return [
            WriteRefused(record, "a document may not exceed 16 MiB")
            for record in refused
        ]


@asynccontextmanager
async def draining(server, warm, name="here"):
    drain = Drain(
        server.url,
        1,
        warm,
        name,
        fail=disarmed,
        terms=TERMS,
        backoff=Backoff(0.05, 0.1),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(drain.run(stop))
    try:
        yield drain
    finally:
        stop.set()
        await running


async def lay(client, session):
    """
    Make *session* hot as a commit leaves it: without a time to live.
    """
    arguments = hot_copy.field_arguments(None, session)
    await client.execute_command("HSET", key_names.session(0, session.id), *arguments)
    await client.rpush(key_names.recent(0, session.id), b"entry")


def a_record(session, **fields):
    known = {
        "session": session.id,
        "created_at": session.created_at,
        "version": session.version,
        "last_seq": session.last_seq,
        "last_active": session.last_active,
        "state": session,
    }
    return Record(**known | fields)


async def commit(client, *records, replies=()):
    fields = {VALUE_FIELD: pack_records(list(records)), COUNT_FIELD: len(records)}
    if replies:
        fields[REPLIES_FIELD] = pack(replies)
    await client.incrby(key_names.backlog(0), len(records))
    return await client.xadd(key_names.outbox(0), fields)


async def drained(client):
    async def empty():
        return await client.xlen(key_names.outbox(0)) == 0

    await until(empty, 10, "outbox drained")


async def moved(server, client, *records, warm=None, replies=()):
    """
    Drain one entry with *records*.
    """
    await commit(client, *records, replies=replies)
    async with draining(server, warm or Notebook()):
        await drained(client)


async def durable(client, session_id="s1"):
    key = key_names.session(0, session_id)
    return await client.hmget(key, "durable_version", "durable_seq")


async def ttls(client, session_id="s1"):
    return [
        await client.pttl(key(0, session_id))
        for key in (key_names.session, key_names.recent)
    ]


async def test_a_hot_copy_may_expire_only_when_mongodb_holds_all_of_it(server, client):
    """
    Until then it has no time to live; then it has the configured one.
    """
    session = a_session(version=3, last_seq=7)
    await lay(client, session)
    before = await ttls(client)

    await moved(server, client, a_record(session, version=2, last_seq=7))
    behind = await ttls(client), await durable(client)
    await moved(server, client, a_record(session))

    assert before == [-1, -1]
    assert behind == ([-1, -1], [b"2", b"7"])
    assert await durable(client) == [b"3", b"7"]
    assert all(0 < ttl <= TERMS.hot_ttl_ms for ttl in await ttls(client))


async def test_appends_behind_keep_the_hot_copy_as_well(server, client):
    session = a_session(version=3, last_seq=8)
    await lay(client, session)

    await moved(server, client, a_record(session, last_seq=7))

    assert await ttls(client) == [-1, -1]
    assert await durable(client) == [b"3", b"7"]


async def test_what_is_confirmed_late_takes_nothing_back(server, client):
    """
    An archiver that was paused confirms after its successor did.
    """
    session = a_session(version=3, last_seq=7)
    await lay(client, session)

    await moved(server, client, a_record(session))
    await moved(server, client, a_record(session, version=2, last_seq=5))

    assert await durable(client) == [b"3", b"7"]


async def test_another_life_of_the_id_is_left_alone(server, client):
    session = a_session(version=3)
    await lay(client, session)
    earlier = NOW.replace(year=2020)

    await moved(server, client, a_record(session, created_at=earlier))

    assert await durable(client) == [None, None]
    assert await ttls(client) == [-1, -1]


async def test_what_an_earlier_life_left_on_the_hash_does_not_count(server, client):
    """
    More than there is cannot be held of this one.
    """
    session = a_session(version=2, last_seq=1)
    await lay(client, session)
    key = key_names.session(0, "s1")
    await client.hset(key, mapping={"durable_version": 9, "durable_seq": 40})

    await moved(server, client, a_record(session, version=1, last_seq=0))

    assert await durable(client) == [b"1", b"0"]


async def test_a_dormant_session_leaves_redis_and_says_so(server, client):
    session = a_session(version=2, state="dormant")
    await lay(client, session)

    await moved(server, client, a_record(session))

    assert not await client.exists(
        key_names.session(0, "s1"), key_names.recent(0, "s1")
    )
    assert await client.get(key_names.tombstone(0, "s1")) == b"elsewhere"
    assert 0 < await client.pttl(key_names.tombstone(0, "s1")) <= TERMS.hot_ttl_ms


async def test_a_dormant_session_that_was_woken_meanwhile_stays(server, client):
    await lay(client, a_session(version=3, state="active"))
    slept = a_session(version=2, state="dormant")

    await moved(server, client, a_record(slept))

    assert await ttls(client) == [-1, -1]
    assert await client.get(key_names.tombstone(0, "s1")) is None


async def test_an_archived_session_leaves_only_when_its_stub_is_written(server, client):
    """
    An earlier record of the same version must not take the hot copy away: what is
    loaded then would be the document, not the stub.
    """
    session = a_session(version=2, state="archived")
    await lay(client, session)
    left = Archived(pointer="p", through=0, bytes=1, moves=0)

    await moved(server, client, a_record(session))
    before = await client.exists(key_names.session(0, "s1")), await ttls(client)
    await moved(server, client, a_record(session, state=None, archived=left))

    assert before == (1, [-1, -1])
    assert not await client.exists(key_names.session(0, "s1"))
    assert await client.get(key_names.tombstone(0, "s1")) == b"elsewhere"


async def test_the_mark_of_a_deletion_goes_when_mongodb_knows_of_it(server, client):
    """
    That deletion's only: a later one has a mark of its own.
    """
    session = a_session(version=4)
    deleted = a_record(session, state=None, deleted=True)
    other = hot_copy.tombstone_value(session.created_at, 9)
    await client.set(key_names.tombstone(0, "s1"), other)

    await moved(server, client, deleted)
    kept = await client.get(key_names.tombstone(0, "s1"))
    await client.set(
        key_names.tombstone(0, "s1"), hot_copy.tombstone_value(session.created_at, 4)
    )
    await moved(server, client, deleted)

    assert kept == other.encode()
    assert await client.get(key_names.tombstone(0, "s1")) is None


async def test_a_session_made_again_in_the_same_write_is_no_longer_marked(
    server, client
):
    first = a_session(version=4)
    again = a_session(version=1, created_at=NOW.replace(year=2027))
    await lay(client, again)
    await client.set(
        key_names.tombstone(0, "s1"), hot_copy.tombstone_value(first.created_at, 4)
    )
    await commit(client, a_record(first, state=None, deleted=True))

    await moved(server, client, a_record(again))

    assert await client.get(key_names.tombstone(0, "s1")) is None
    assert await durable(client) == [b"1", b"0"]


async def test_an_id_from_the_future_stays_as_long_as_it_counts_as_new(server, client):
    ahead_ms = 300_000
    made = int(time.time() * 1000) + ahead_ms
    digits = f"{made:012x}"
    identifier = f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"
    session = a_session(id=identifier)
    await lay(client, session)

    await moved(server, client, a_record(session))

    stays = await client.pttl(key_names.session(0, identifier))
    assert TERMS.hot_ttl_ms + ahead_ms - 60_000 < stays
    assert stays <= TERMS.hot_ttl_ms + ahead_ms + 1000


def a_held_reply(command="i.0.1", channel="eb:wake:m:i", body=b"\x01"):
    packed = pack(Reply(id=command, body=msgspec.Raw(body)))
    return HeldReply(keys.reply(0, "m", command), channel, command, packed)


@asynccontextmanager
async def listening(client, channel):
    """
    What is published on *channel*; the list is complete when the block ends.
    """
    heard = []
    subscription = client.pubsub()
    await subscription.subscribe(channel)
    await subscription.get_message(timeout=5)
    try:
        yield heard
        await client.publish(channel, b"end")
        while True:
            message = await subscription.get_message(
                ignore_subscribe_messages=True, timeout=5
            )
            if message["data"] == b"end":
                return
            heard.append(msgspec.msgpack.decode(message["data"]))
    finally:
        await subscription.aclose()


async def test_held_replies_are_given_once_and_woken_for(server, client):
    """
    Although the entry is confirmed twice, as by an archiver that was paused.
    """
    session = a_session()
    await lay(client, session)
    replies = (a_held_reply("i.0.1"), a_held_reply("i.0.2"), a_held_reply("j.0.1", ""))
    fields = {
        VALUE_FIELD: pack_records([a_record(session)]),
        COUNT_FIELD: 1,
        REPLIES_FIELD: pack(replies),
    }
    async with listening(client, "eb:wake:m:i") as heard:
        await moved(server, client, a_record(session), replies=replies)
        again = await client.xadd(key_names.outbox(0), fields)
        await client.xreadgroup("archiver", "drain", {key_names.outbox(0): ">"})
        await client.xack(key_names.outbox(0), "archiver", again)
        async with draining(server, Notebook()) as drain:
            await until(lambda: drain.lease.held)
            await confirm_by_hand(client, again, fields)

    for held in replies:
        [(_, found)] = await client.xrange(held.stream)
        assert found == {b"r": held.packed}
        assert 0 < await client.pttl(held.stream) <= TERMS.reply_ttl_ms
    assert heard == [[replies[0].packed, replies[1].packed]]


async def confirm_by_hand(client, identifier, fields):
    """
    What an archiver does that wakes up after somebody else confirmed its entry.
    """
    told = {name: str(v).encode() if v == 1 else v for name, v in fields.items()}
    entry = entry_of(0, identifier, told)
    for command in confirmations([entry], [], int(time.time() * 1000), TERMS):
        await client.execute_command(*command)


async def test_a_reply_alone_is_given_when_all_before_it_is_held(server, client):
    """
    As `durable(wait)` asks: an entry without records.
    """
    warm = Notebook()
    session = a_session()
    await commit(client, a_record(session))
    held = a_held_reply()

    await moved(server, client, warm=warm, replies=(held,))

    assert [r.session for r in warm.records] == ["s1"]
    assert await client.xlen(held.stream) == 1


async def test_an_entry_that_is_no_records_becomes_a_dead_letter(server, client):
    """
    It must not stop the archiver, nor be lost; the entries behind it are written.
    """
    warm = Notebook()
    await client.xadd(key_names.outbox(0), {"b": b"\xc1 no msgpack", "n": 1})
    await client.incr(key_names.backlog(0))

    await moved(server, client, a_record(a_session()), warm=warm)

    [(_, fields)] = await client.xrange(key_names.dead(0))
    assert fields[b"cause"] == b"undecodable"
    assert letter_of(fields).packed == b"\xc1 no msgpack"
    assert [r.session for r in warm.records] == ["s1"]


async def test_a_refused_record_becomes_a_dead_letter_with_all_of_it(server, client):
    """
    The others are confirmed; its hot copy is all there is, and stays.
    """
    big = a_session(work_in_progress={"text": "x" * 200_000})
    other = a_session(id="s2")
    for session in (big, other):
        await lay(client, session)
    event = Event(
        kind="session.updated", command_id="i.0.1", mad="m", principal="ada", version=1
    )
    refused = a_record(big, events=(event,))
    replies = (a_held_reply("i.0.1"), a_held_reply("i.0.2"))
    await commit(client, refused, a_record(other), replies=replies)

    async with draining(server, Notebook("s1")):
        await drained(client)

    [(_, fields)] = await client.xrange(key_names.dead(0))
    letter = letter_of(fields)
    assert (letter.mad, letter.cause, letter.index) == ("archiver", "constraint", 0)
    assert letter.message == "a document may not exceed 16 MiB"
    assert msgspec.msgpack.decode(letter.packed, type=Record) == refused
    assert await ttls(client, "s1") == [-1, -1]
    assert await durable(client, "s1") == [None, None]
    assert await durable(client, "s2") == [b"1", b"0"]
    assert await client.get(key_names.backlog(0)) == b"0"
    codes = [await code_in(client, held) for held in replies]
    assert codes == ["defect", "ok"]


async def test_after_a_refused_record_the_hot_copy_never_goes(server, client):
    """
    What comes later is held, and makes up for nothing: not even rest lets it go.
    """
    session = a_session()
    await lay(client, session)
    await moved(server, client, a_record(session), warm=Notebook("s1"))
    for later in ({"last_seq": 1}, {"version": 2, "state": "dormant"}):
        session = msgspec.structs.replace(session, **later)
        await lay(client, session)
        await moved(server, client, a_record(session))
        assert await ttls(client, "s1") == [-1, -1]

    assert await durable(client, "s1") == [b"2", b"1"]
    wire = Wire(server.url)
    try:
        assert not await hot_copy.RedisHot(wire, 1).forget("s1")
    finally:
        await wire.close()
    assert await client.exists(key_names.session(0, "s1"))


async def code_in(client, held):
    [(_, found)] = await client.xrange(held.stream)
    return unpack_reply(found[b"r"]).code


async def test_entries_that_somebody_trimmed_do_not_keep_the_backlog_up(server, client):
    """
    Read and not confirmed, then trimmed: how many records they held, nobody knows.
    """
    outbox = key_names.outbox(0)
    await client.xgroup_create(outbox, "archiver", "0", mkstream=True)
    for n in range(3):
        await commit(client, a_record(a_session(id=f"s{n}")))
    await client.xreadgroup("archiver", "drain", {outbox: ">"})
    await client.xtrim(outbox, maxlen=1)

    async with draining(server, Notebook()):
        await drained(client)
        await until(lambda: nothing_pending(client), 10, "nothing pending")

    assert await client.get(key_names.backlog(0)) == b"0"


async def nothing_pending(client):
    told = await client.xpending(key_names.outbox(0), "archiver")
    return told["pending"] == 0


async def test_a_backlog_of_an_outbox_that_was_emptied_by_hand_is_set_right(
    server, client
):
    await commit(client, a_record(a_session()))
    await client.xtrim(key_names.outbox(0), maxlen=0)

    async with draining(server, Notebook()):

        async def nothing():
            return await client.get(key_names.backlog(0)) == b"0"

        await until(nothing, 10, "backlog is nothing")


async def test_an_archiver_that_lost_its_lease_reads_nothing(server, client):
    """
    Paused for long, it wakes up and believes that it still has it.
    """
    warm = Notebook()
    async with draining(server, warm, "late") as late:
        await until(lambda: late.lease.held)
        await client.set(key_names.owner(LEASE), "9:another/1", px=60_000)
        await commit(client, a_record(a_session()))

        await until(lambda: not late.lease.held)

    assert warm.records == []
    assert await client.xlen(key_names.outbox(0)) == 1


async def test_a_server_that_forgot_its_scripts_and_groups_is_served_on(server, client):
    async with draining(server, Notebook()) as drain:
        await until(lambda: drain.lease.held)
        await client.script_flush()
        await client.delete(key_names.outbox(0))
        await commit(client, a_record(a_session()))

        await drained(client)


@pytest.mark.parametrize("count", [1, 499, 501, 2000])
async def test_however_many_sessions_one_write_has_all_are_confirmed(
    server, client, count
):
    """
    A call is bounded, and Lua's stack as well.
    """
    sessions = [a_session(id=f"s{n}") for n in range(count)]
    for session in sessions:
        await lay(client, session)
    for first in range(0, count, 256):
        await commit(client, *map(a_record, sessions[first : first + 256]))

    async with draining(server, Notebook()) as drain:
        await drained(client)

    assert drain.written == count
    assert await client.get(key_names.backlog(0)) == b"0"
    for session in sessions:
        assert await durable(client, session.id) == [b"1", b"0"]
