"""
What MADs, rivals and bad luck do to the leases: rubbish, zombies, crowds, late owners.
"""

import asyncio

import msgspec
import pytest

from everbus.bus import keys
from everbus.bus.messages import Envelope, pack_envelope
from everbus.gateway.lane.connection import LaneLost
from everbus.gateway.presence import announcements as presence_announcements
from everbus.gateway.presence import lane as presence
from everbus.gateway.presence import leases as presence_leases
from everbus.gateway.presence.announcements import Announcements
from everbus.gateway.presence.heartbeats import parse_heartbeats
from everbus.gateway.presence.leases import Leases
from everbus.gateway.store import lease_records
from tests.integration.conftest import (
    ON_EACH_SERVER,
    PARTITIONS,
    until,
)
from tests.integration.presence.leases import (
    LeaseBook,
    acquired,
    said,
    told_all,
    watched,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_ID = f"{2**64 - 1}-{2**64 - 1}"


@pytest.mark.usefixtures("hasty")
async def test_a_forged_event_changes_nothing(book: LeaseBook):
    async with watched(book, ttl_ms=30_000, settle=False):
        await book.say("join", "i1")
        await book.until("i1", "living")
        await book.bus.client.hset(lease_records.WATCH, "grace_ms", 0)
        swept = await book.bus.client.hget(lease_records.WATCH, "swept_ms")
        for member in ("ann:i1", "ann:nobody", "x", "\xff", "ann:i1:2"):
            channel = f"__keyspace@0__:{lease_records.lease(member)}"
            assert await book.bus.client.publish(channel, "expired") == 1
        await book.swept()
        found = await lease_records.instances(book.wire)

    assert swept != await book.bus.client.hget(lease_records.WATCH, "swept_ms")
    assert [one.instance for one in found] == ["i1"]
    assert found[0].state == "living"


@ON_EACH_SERVER
@pytest.mark.usefixtures("hasty")
async def test_rubbish_on_a_stream_is_thrown_away_and_hurts_nobody(book: LeaseBook):
    """
    Not even its own MAD's instances: the last one here would silence the stream.
    """
    stream = keys.ingress(keys.PRESENCE, "ann")
    client = book.bus.client
    for packed in (b"", b"\xff", b"x" * 300_000):
        await client.xadd(stream, {"c": packed})
    await client.xadd(stream, {"x" * 1000: "y"})
    await book.say("join", "a" * 5000, "a:b", "")
    await book.say("join", "i0", epoch=0)
    await book.say("join", "i1")
    await client.xadd(stream, {"c": b"rubbish"}, id=MAX_ID)
    await book.say("join", "i2", mad="bob")

    async with watched(book, ttl_ms=30_000, settle=False):
        await book.until("i1", "living")
        await book.until("i2", "living", "bob")
        await book.say("join", "i3")
        await book.until("i3", "living")
        found = await lease_records.instances(book.wire)

    assert [one.instance for one in found] == ["i1", "i3", "i2"]
    assert not await client.exists(stream)


@pytest.mark.usefixtures("hasty")
async def test_a_stream_that_its_mad_cuts_short_is_read_as_far_as_it_is_there(
    book: LeaseBook,
):
    stream = keys.ingress(keys.PRESENCE, "ann")
    async with watched(book, ttl_ms=30_000, settle=False):
        for n in range(300):
            await book.say("join", f"i{n}")
            if n % 7 == 0:
                await book.bus.client.xtrim(stream, maxlen=0)
        await book.say("join", "last")
        await book.until("last", "living")


@pytest.mark.usefixtures("hasty")
async def test_a_zombie_is_told_that_its_epoch_is_over_until_it_joins_anew(
    book: LeaseBook,
):
    channel = keys.wake("ann", "i1")
    async with book.bus.client.pubsub() as heard, watched(book):
        await heard.subscribe(channel)
        await book.say("join", "i1", epoch=4)
        await book.until("i1", "lost")
        await book.say("beat", "i1", epoch=4)
        await book.say("beat", "i1", epoch=3)
        message = None
        while message is None or message["type"] != "message":
            message = await heard.get_message(timeout=5)
        refused = await book.of("i1")
        await book.say("join", "i1", epoch=5)
        anew = await book.until("i1", "living")
        await book.say("beat", "i1", epoch=4)
        await book.say("leave", "i1", epoch=4)
        await book.swept()
        still = await book.of("i1")

    assert msgspec.msgpack.decode(message["data"]) == [{"superseded": 4}]
    assert refused.state == "lost"
    assert (anew.epoch, still.epoch) == (5, 5)


@pytest.mark.usefixtures("hasty")
async def test_a_higher_epoch_continues_a_living_lease(book: LeaseBook):
    async with watched(book, ttl_ms=30_000, settle=False):
        await book.say("join", "i1", epoch=1)
        await book.say("join", "i1", epoch=2)

        async def claim() -> bool:
            found = await book.of("i1")
            return found is not None and found.epoch == 2

        await until(claim, "epoch 2")

    assert await book.told() == []
    assert await book.bus.client.get(lease_records.lease("ann:i1")) == b"2"


@pytest.mark.usefixtures("hasty")
async def test_one_mad_has_room_for_so_many_and_takes_nobody_elses(
    book: LeaseBook, monkeypatch
):
    """
    Who left makes room; the other MAD does not notice.
    """
    monkeypatch.setattr(presence_leases, "MAX_INSTANCES", 2)
    async with watched(book, ttl_ms=30_000, settle=False):
        await book.say("join", "i1", "i2", "i3")
        await book.say("join", "i9", mad="bob")
        await book.until("i9", "living", "bob")
        await book.until("i2", "living")
        over_limit = await book.of("i3")
        await book.say("leave", "i1")
        await book.say("beat", "i3")
        await book.until("i3", "living")

    assert over_limit is None
    assert await book.bus.client.hgetall(lease_records.LIVING) == {
        b"ann": b"2",
        b"bob": b"1",
    }


@pytest.mark.usefixtures("hasty")
async def test_records_of_those_that_are_gone_are_bounded(book: LeaseBook, monkeypatch):
    monkeypatch.setattr(presence_leases, "MAX_RECORDS", 3)
    names_ = [f"i{n}" for n in range(5)]
    async with watched(book):
        for name in names_:
            await book.say("join", name)
            await book.say("leave", name)
            await book.until(name, "left")
            await asyncio.sleep(0.002)
        await book.swept()
        newest = [one.instance for one in await lease_records.instances(book.wire)]
        monkeypatch.setattr(presence_leases, "KEPT_MS", 0)
        await book.swept()

    assert newest == names_[2:]
    assert await lease_records.instances(book.wire) == []


@pytest.mark.usefixtures("hasty")
async def test_after_the_bus_was_emptied_heartbeats_alone_bring_everybody_back(
    book: LeaseBook,
):
    async with watched(book, ttl_ms=30_000, settle=False) as lane:
        await book.say("join", "i1")
        await book.until("i1", "living")
        await book.bus.client.flushall()
        await book.bus.client.set(lease_records.OWNER, lane.owner)
        await book.say("beat", "i1")
        await book.until("i1", "living")


@pytest.mark.usefixtures("hasty")
async def test_a_partition_that_cannot_be_told_is_told_later(
    book: LeaseBook, monkeypatch
):
    """
    Nothing else waits for it: leases are kept, and the other partitions know.
    """
    monkeypatch.setattr(presence, "RETRY_ANNOUNCE_S", 0.1)
    broken = keys.ingress(2, keys.GATEWAY)
    await book.bus.client.set(broken, "no stream")
    async with watched(book):
        await book.say("join", "i1")
        await book.until("i1", "lost")
        await until(lambda: _was_told(book, 3), "the next one told")
        untold = (await lease_records.watch(book.wire)).untold
        await book.say("join", "i2", mad="bob")
        await book.until("i2", "living", "bob")
        await book.bus.client.delete(broken)
        await until(lambda: _was_told(book, 2), "told")
        await until(lambda: told_all(book), "nothing left")

    assert untold == 1


async def _was_told(book: LeaseBook, partition: int) -> bool:
    return len(await book.told(partition)) > 0


@pytest.mark.usefixtures("hasty")
async def test_losses_beyond_one_chunk_are_all_told(book: LeaseBook, monkeypatch):
    monkeypatch.setattr(
        "everbus.gateway.presence.announcements.MAX_COMMANDS", 2 * PARTITIONS
    )
    monkeypatch.setattr(presence_announcements, "WRITE_COMMANDS", 3)
    monkeypatch.setattr(presence, "CHUNK", 3)
    monkeypatch.setattr(presence_leases, "CHUNK", 3)
    names_ = {f"i{n}" for n in range(10)}
    async with watched(book):
        await book.say("join", *names_)
        await book.until("i9", "lost")
        await until(lambda: _has_told(book, names_), "all told")
        await until(lambda: told_all(book), "nothing left")


async def _has_told(book: LeaseBook, instances: set[str]) -> bool:
    return instances == {one.instance for one in await book.told(PARTITIONS - 1)}


async def test_a_heartbeat_that_waits_to_be_read_excuses_for_a_moment(
    book: LeaseBook, monkeypatch
):
    """
    Forced between reading and judging: it came after the last read.

    But not for ever, since a noisy sibling of the same MAD may keep the stream full.
    """
    owner = await acquired(book.wire)
    leases = Leases(book.wire, owner, 1)
    await leases.sweep("off")
    await _apply(book, leases, said("join", "i1"))
    await asyncio.sleep(0.005)
    await book.say("beat", "sibling")

    look = await leases.sweep("off")
    excused = await leases.declare_lost(dict.fromkeys(look.due, "sweep"))
    monkeypatch.setattr(presence_leases, "UNREAD_GRACE_MS", 0)
    waiting, lost = await leases.declare_lost(dict.fromkeys(look.due, "sweep"))

    assert look.due == ("ann:i1",)
    assert excused == (1, [])
    assert (waiting, [one.instance.instance for one in lost]) == (0, ["i1"])


async def _apply(book: LeaseBook, leases: Leases, *beats: Envelope) -> None:
    await book.bus.publish("ann", keys.PRESENCE, *beats)
    entries = await book.wire.call("XRANGE", keys.ingress("mads", "ann"), "-", "+")
    await leases.apply({"ann": parse_heartbeats(entries)})


async def test_a_lease_counts_from_the_arrival_but_nobody_is_late_through_us(
    book: LeaseBook,
):
    """
    An id ahead of the clock lengthens nothing; one that waited still has a third.
    """
    leases = Leases(book.wire, await acquired(book.wire), 30_000)
    stream = keys.ingress(keys.PRESENCE, "ann")
    for identifier, instance in (("1-1", "late"), ("9999999999999-1", "ahead")):
        packed = pack_envelope(said("join", instance))
        await book.bus.client.xadd(stream, {"c": packed}, id=identifier)
    entries = await book.wire.call("XRANGE", stream, "-", "+")
    await leases.apply({"ann": parse_heartbeats(entries)})

    assert 9_000 < (await book.of("late")).left_ms <= 10_000
    assert 29_000 < (await book.of("ahead")).left_ms <= 30_000


async def test_a_heartbeat_after_the_look_keeps_its_instance_alive(book: LeaseBook):
    """
    Forced between looking and declaring; and who is not known cannot be lost.
    """
    owner = await acquired(book.wire)
    leases = Leases(book.wire, owner, 1)
    await leases.sweep("off")
    await _apply(book, leases, said("join", "i1"))
    await asyncio.sleep(0.005)
    look = await leases.sweep("off")
    await _apply(book, Leases(book.wire, owner, 60_000), said("beat", "i1"))

    told = await leases.declare_lost(
        dict.fromkeys((*look.due, "ann:nobody", "x", ""), "event")
    )

    assert look.due == ("ann:i1",)
    assert told == (0, [])
    assert (await book.of("i1")).state == "living"


async def test_after_a_gap_between_look_and_verdict_nobody_is_lost(book: LeaseBook):
    """
    Forced: the server stood still in between, as long as no owner may.
    """
    owner = await acquired(book.wire)
    leases = Leases(book.wire, owner, 1)
    await leases.sweep("off")
    await _apply(book, leases, said("join", "i1"))
    await asyncio.sleep(0.005)
    look = await leases.sweep("off")
    await book.outage(60)

    assert look.due == ("ann:i1",)
    assert await leases.declare_lost(dict.fromkeys(look.due, "sweep")) == (0, [])


@ON_EACH_SERVER
async def test_a_superseded_owner_changes_nothing(book: LeaseBook):
    """
    Forces the interleaving: every script of one after the acquire by another.
    """
    owner = await acquired(book.wire)
    old = Leases(book.wire, owner, 1)
    await old.sweep("off")
    await _apply(book, old, said("join", "i1"), said("join", "i2"), said("leave", "i2"))
    await asyncio.sleep(0.005)
    due = dict.fromkeys((await old.sweep("off")).due, "sweep")
    await book.bus.client.delete(lease_records.OWNER)
    await acquired(book.wire, "two")
    await book.say("beat", "i1")
    client = book.bus.client
    kept = ("eb:{mads}:*", lease_records.LOSSES)
    before = {key: await client.dump(key) async for key in client.scan_iter(kept[0])}

    entries = await book.wire.call("XRANGE", keys.ingress("mads", "ann"), "-", "+")
    for late in (
        old.apply({"ann": parse_heartbeats(entries)}),
        old.sweep("off"),
        old.declare_lost(due),
        Announcements(book.wire, owner, PARTITIONS, lambda _: None).publish(),
    ):
        with pytest.raises(LaneLost):
            await late

    after = {key: await client.dump(key) async for key in client.scan_iter(kept[0])}
    assert list(due) == ["ann:i1"]
    assert after == before
