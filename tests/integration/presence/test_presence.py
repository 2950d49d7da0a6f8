"""
Heartbeats become leases, silence becomes a loss, and outages kill nobody.
"""

import asyncio
import time

import pytest

from everbus.bus import keys
from everbus.gateway.lane.fencing import InstanceLost
from everbus.gateway.presence import leases as presence_leases
from everbus.gateway.store import key_names, lease_records
from tests.integration.conftest import (
    ON_EACH_SERVER,
    PARTITIONS,
    a_replica,
    until,
)
from tests.integration.presence.leases import (
    MARGIN_S,
    TTL_MS,
    LeaseBook,
    late_ms,
    told_all,
    watched,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@ON_EACH_SERVER
@pytest.mark.usefixtures("hasty")
async def test_an_instance_joins_beats_and_leaves(book: LeaseBook):
    """
    Told to every partition as one that said goodbye; what was read is trimmed.
    """
    async with watched(book):
        await book.say("join", "i1")
        joined = await book.until("i1", "living")
        await book.say("beat", "i1")

        async def heard() -> bool:
            return (await book.of("i1")).heard_ms > joined.heard_ms

        await until(heard, "the second heartbeat")
        heartbeat_published = await book.of("i1")
        lease = await book.bus.client.get(lease_records.lease("ann:i1"))
        await book.say("leave", "i1")
        left = await book.until("i1", "left")
        await until(lambda: told_all(book), "told")

    assert (joined.epoch, heartbeat_published.since_ms) == (1, joined.since_ms)
    assert 0 < heartbeat_published.left_ms <= TTL_MS
    assert lease == b"1"
    assert (left.left_ms, left.noticed) == (0, "")
    for partition in range(PARTITIONS):
        told = await book.told(partition)
        assert told == [InstanceLost(mad="ann", instance="i1", epoch=1, left=True)]
    left_over = [key async for key in book.bus.client.scan_iter("eb:{mads}:*")]
    assert set(map(bytes.decode, left_over)) == {
        *(
            lease_records.RECORDS,
            lease_records.ENDED,
            lease_records.WATCH,
            key_names.epoch(keys.PRESENCE),
        )
    }


@ON_EACH_SERVER
async def test_silence_is_noticed_by_the_sweep_without_any_notification(
    book: LeaseBook,
):
    await book.bus.client.config_set("notify-keyspace-events", "")
    async with watched(book):
        await book.say("join", "i1")
        await book.until("i1", "living")
        lost = await book.until("i1", "lost")
        await until(lambda: told_all(book), "told")
        notified = (await lease_records.watch(book.wire)).notified

    assert (notified, lost.noticed, lost.epoch) == ("off", "sweep", 1)
    assert 0 <= late_ms(lost) <= MARGIN_S * 1000
    for partition in range(PARTITIONS):
        told = await book.told(partition)
        assert told == [InstanceLost(mad="ann", instance="i1", epoch=1)]


@ON_EACH_SERVER
@pytest.mark.parametrize("flags", ["Kx", "Ex"])
@pytest.mark.usefixtures("hasty")
async def test_an_expiry_that_is_told_wakes_the_owner_at_once(
    book: LeaseBook, flags, monkeypatch
):
    """
    No sweep is due for a minute, so nothing else can have noticed.
    """
    await book.bus.client.config_set("notify-keyspace-events", flags)
    async with watched(book):
        await book.unswept(monkeypatch)
        await book.say("join", "i1")
        lost = await book.until("i1", "lost")

    assert lost.noticed == "event"
    assert 0 <= late_ms(lost) < 450


async def test_of_fifty_instances_exactly_the_silent_half_is_lost(book: LeaseBook):
    alive = [f"a{n}" for n in range(25)]
    silent = [f"s{n}" for n in range(25)]
    async with watched(book):
        await book.say("join", *alive, *silent)
        await book.until("s24", "living")
        while (await book.of("s24")).state == "living":
            await book.say("beat", *alive)
            await asyncio.sleep(TTL_MS / 3000)
        found = {one.instance: one for one in await lease_records.instances(book.wire)}
        await until(lambda: told_all(book), "told")

    assert {"living"} == {found[name].state for name in alive}
    assert {"lost"} == {found[name].state for name in silent}
    assert max(map(late_ms, found.values())) <= MARGIN_S * 1000
    assert sorted(silent) == sorted(one.instance for one in await book.told())


@ON_EACH_SERVER
@pytest.mark.usefixtures("hasty")
async def test_an_outage_kills_nobody_whose_heartbeats_wait(book: LeaseBook):
    """
    A minute without any replica: the owner reads first, and nobody is lost.
    """
    async with watched(book):
        await book.say("join", "i1", "i2")
        await book.until("i2", "living")
    await book.outage(60)
    await book.say("beat", "i1", "i2")

    async with watched(book, "two", settle=False):
        await book.swept()
        found = await lease_records.instances(book.wire)

    assert [one.state for one in found] == ["living", "living"]
    assert await book.told() == []


@ON_EACH_SERVER
@pytest.mark.usefixtures("hasty")
async def test_after_an_outage_everybody_has_a_fresh_ttl(book: LeaseBook):
    """
    Also whose heartbeats could not reach the bus; then silence counts again.
    """
    async with watched(book):
        await book.say("join", "i1")
        await book.until("i1", "living")
    await book.outage(60)
    began = time.monotonic()

    async with watched(book, "two", settle=False):
        await book.swept()
        between = await book.of("i1")
        lost = await book.until("i1", "lost")
        took_s = time.monotonic() - began

    assert (between.state, lost.noticed) == ("living", "sweep")
    assert TTL_MS / 1000 <= took_s <= TTL_MS / 1000 + MARGIN_S


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_stood_still_costs_nobody_the_lease(
    book: LeaseBook, monkeypatch
):
    """
    Paused for longer than TTL and gap: neither side could be heard meanwhile.
    """
    monkeypatch.setattr(presence_leases, "MIN_GAP_MS", 400)
    monkeypatch.setattr(presence_leases, "MAX_GAP_MS", 400)
    async with watched(book):
        await book.say("join", "i1")
        await book.until("i1", "living")
        book.bus.server.pause()
        await asyncio.sleep(2 * TTL_MS / 1000)
        book.bus.server.resume()
        await book.swept()
        between = await book.of("i1")
        lost = await book.until("i1", "lost")

    assert between.state == "living"
    assert lost.ended_ms - lost.heard_ms >= 3 * TTL_MS


@pytest.mark.usefixtures("hasty")
async def test_a_planned_hand_over_grants_nothing(book: LeaseBook):
    async with watched(book):
        await book.say("join", "i1")
        await book.until("i1", "living")
    before = await book.bus.client.hget(lease_records.WATCH, "grace_ms")

    async with watched(book, "two"):
        lost = await book.until("i1", "lost")

    assert before == await book.bus.client.hget(lease_records.WATCH, "grace_ms")
    assert late_ms(lost) <= MARGIN_S * 1000


@pytest.mark.usefixtures("hasty")
async def test_the_sweep_finds_what_no_listener_heard(book: LeaseBook):
    """
    The listener's connection is killed again and again across the expiry.
    """
    async with watched(book):
        await book.say("join", "i1")
        await book.until("i1", "living")
        lost = None
        while lost is None or lost.state == "living":
            await book.bus.client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
            await asyncio.sleep(0.002)
            lost = await book.of("i1")

    assert (lost.state, lost.noticed) == ("lost", "sweep")
    assert late_ms(lost) <= MARGIN_S * 1000


@pytest.mark.usefixtures("hasty")
async def test_a_listener_that_was_cut_off_looks_at_once_for_what_it_missed(
    book: LeaseBook, monkeypatch
):
    """
    The server tells nothing any more, and no sweep is due for a minute.
    """
    async with watched(book):
        await book.unswept(monkeypatch)
        await book.bus.client.config_set("notify-keyspace-events", "")
        await book.say("join", "i1")
        await asyncio.sleep(1.5 * TTL_MS / 1000)
        silent = await book.of("i1")
        await book.bus.client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
        lost = await book.until("i1", "lost")

    assert (silent.state, lost.noticed) == ("living", "sweep")


@ON_EACH_SERVER
async def test_a_replica_watches_over_the_leases_like_over_any_lane(book: LeaseBook):
    """
    It takes the lane, hands it over in order, and its heir grants nothing anew.
    """
    url = book.bus.url
    settings = {"EVERBUS_LEASE_TTL_S": "1"}
    await book.bus.register("ann")
    async with a_replica(url, "one", **settings):
        await book.say("join", "i1")
        await book.until("i1", "living")
        first = await book.bus.client.get(lease_records.OWNER)
    between = await book.bus.client.get(lease_records.OWNER)
    grace = await book.bus.client.hget(lease_records.WATCH, "grace_ms")
    async with a_replica(url, "two", **settings):
        lost = await book.until("i1", "lost")
        second = await book.bus.client.get(lease_records.OWNER)

    assert b":one/" in first
    assert between is None
    assert b":two/" in second
    assert lost.ended_ms - max(lost.heard_ms + 1000, int(grace)) <= MARGIN_S * 1000


@pytest.mark.usefixtures("hasty")
async def test_where_config_is_forbidden_it_listens_all_the_same(book: LeaseBook):
    """
    As on managed servers, which may notify though they do not say so.
    """
    await book.bus.client.acl_setuser(
        "managed",
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        channels=["*"],
        categories=["+@all"],
        commands=["-config"],
    )
    url = book.bus.url.replace("://", "://managed:secret@")
    async with watched(book, url=url):
        await book.say("join", "i1")
        lost = await book.until("i1", "lost")
        watch = await lease_records.watch(book.wire)

    assert watch.notified == "forbidden"
    assert late_ms(lost) <= MARGIN_S * 1000


@pytest.mark.parametrize("flags", ["", "Kx"])
async def test_a_hundred_thousand_other_volatile_keys_delay_nothing_beyond_the_bound(
    book: LeaseBook, flags
):
    """
    Events come late or never then; the sweep is what the bound rests on.
    """
    await book.bus.client.config_set("notify-keyspace-events", flags)
    fill = "for i = 1, 100000 do redis.call('SET', 'v:' .. i, '', 'PX', 3600000) end"
    await book.bus.client.eval(fill, 0)
    async with watched(book):
        await book.say("join", *(f"i{n}" for n in range(20)))
        await book.until("i19", "lost")
        found = await lease_records.instances(book.wire)
    await book.bus.client.flushall()

    assert {"lost"} == {one.state for one in found}
    assert max(map(late_ms, found)) <= MARGIN_S * 1000
