"""
Lanes that change hands: pauses, clean stops, restarts, rivals and strangers.
"""

import asyncio
import signal
import time
from contextlib import asynccontextmanager

import pytest

from everbus.bus import keys
from everbus.bus.messages import SCHEMA, pack_envelope
from everbus.bus.wire import Wire
from everbus.gateway.lane.commit import Batch, BatchLimits
from everbus.gateway.lane.delivery import Now, received_in
from everbus.gateway.lane.intake import CONSUMER
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import load_scripts, script
from tests.builders import an_envelope
from tests.closed_load import ClosedLoad
from tests.commit_log import CommitLog
from tests.proxy import Proxy
from tests.replicas import (
    POLL_S,
    a_mad,
    epoch_in,
    letters,
    manager,
    owners,
    replica_here,
    replica_in,
    settled,
    until,
)
from tests.servers import valkey

PARTITIONS = 2
# What gateway/README.md promises of a stop: the bus's deadlines and the lanes' TTL.
GRACE_S = 15.0


async def owned_by(client, *replicas, partitions=PARTITIONS, within_s=15.0):
    """
    The owner values, once every lane is owned by one of *replicas*.
    """

    async def all_owned():
        found = await owners(client, partitions)
        wanted = {replica_in(owner) for owner in found.values()} <= set(replicas)
        return found if wanted and len(found) == partitions else None

    return await until(all_owned, within_s, f"lanes owned by {replicas}")


async def sessions_of(mad, count=4):
    return [(await mad.create_session("ada")).id for _ in range(count)]


async def test_a_paused_owner_that_wakes_up_commits_and_takes_nothing(
    server, client, tmp_path
):
    """
    Its lanes went to another while it slept, so it finds itself superseded.

    What it held in memory is committed by its successor, once and in order.
    """
    async with (
        manager(tmp_path, server.url, "sleeper") as sleeper,
        a_mad(server.url, "ann") as ann,
        a_mad(server.url, "bob") as bob,
    ):
        before = await owned_by(client, "sleeper")
        load = ClosedLoad([ann, bob], await sessions_of(ann))
        async with load.running():
            await load.more(20)
            sleeper.send(signal.SIGSTOP)
            async with manager(tmp_path, server.url, "heir"):
                after = await owned_by(client, "heir")
                await load.more(20)

                sleeper.send(signal.SIGCONT)
                for lane in before:
                    await sleeper.logged("lane.superseded", lane=lane)
                await load.more(20)
                load.stop()
                await settled(client)

    assert all(epoch_in(after[p]) > epoch_in(before[p]) for p in before)
    load.check(await CommitLog.read(client, PARTITIONS))
    assert await letters(client, PARTITIONS) == []


async def contents(client):
    """
    Every key's serialised value, groups and pending lists included.
    """
    return {key: await client.dump(key) async for key in client.scan_iter(count=1000)}


async def delivered(wire, owner):
    """
    What the read script gives *owner* on lane 0.
    """
    return await wire.call(
        *script(
            "read",
            [key_names.owner(0), keys.ingress(0, "ann")],
            *(
                owner,
                keys.GROUP,
                CONSUMER,
                8,
                10,
                64,
                1 << 20,
                1 << 20,
                256,
                "news",
                "0-0",
            ),
        )
    )


async def acquired(wire, name, life="1", ttl_ms=60_000):
    key = [key_names.owner(0), key_names.epoch(0)]
    taken, owner = await wire.call(*script("acquire", key, name, life, ttl_ms))
    return taken, owner.decode()


async def test_an_old_owner_can_neither_read_nor_commit_after_an_acquire(
    server, client
):
    """
    Forces the interleaving: read by one, acquire by another, then the first again.
    """
    wire = Wire(server.url)
    await load_scripts(wire)
    await client.xgroup_create(keys.ingress(0, "ann"), keys.GROUP, "0", mkstream=True)
    for n in (1, 2):
        envelope = an_envelope("timeline.append", id=f"i.0.{n}", session="s")
        packed = pack_envelope(envelope)
        await client.xadd(keys.ingress(0, "ann"), {"c": packed})
    _, old = await acquired(wire, "old")
    _, [[_, [(identifier, fields), _]]] = await delivered(wire, old)
    [delivery] = received_in("ann", identifier.decode(), fields, 0, 1)
    batch = Batch(0, BatchLimits(), Now.at(1_000))
    batch.touch("s", None)
    batch.bury(delivery, "poison", "told by the old one")
    batch.settle(delivery, ProducerWindow.starting_at(1))
    await client.delete(key_names.owner(0))
    taken, new = await acquired(wire, "new")
    await client.xadd(keys.ingress(0, "ann"), {"c": b"news"})
    before = await contents(client)

    read = await delivered(wire, old)
    committed = await wire.call(*batch.command(old))
    marked = await wire.call(
        *script(
            "mark", [key_names.owner(0), key_names.attempts(0)], old, "w", "old#0", 100
        )
    )
    renewed = await wire.call(*script("renew", [key_names.owner(0)], old, 60_000))
    released = await wire.call(*script("release", [key_names.owner(0)], old, keys.NEWS))

    assert taken == 1
    assert read == committed == marked == [b"superseded"]
    assert renewed == released == 0
    assert await contents(client) == before
    assert (await client.xpending(keys.ingress(0, "ann"), keys.GROUP))["pending"] == 2
    assert (await wire.call(*batch.command(new)))[0] == b"ok"
    assert (await client.xpending(keys.ingress(0, "ann"), keys.GROUP))["pending"] == 1
    await wire.close()


async def test_a_commit_that_arrives_after_the_takeover_changes_nothing(
    server, client, tmp_path
):
    """
    Held back on its way until the successor has done the work, then let go.

    Only appends, since an append leaves the version as it was: nothing but the
    epoch can tell that the commit is late.
    """
    async with (
        Proxy("127.0.0.1", server.port) as proxy,
        manager(tmp_path, proxy.url(), "late") as late,
        a_mad(server.url, "ann") as ann,
    ):
        lanes = await owned_by(client, "late")
        sessions = await sessions_of(ann, 8)
        async with appending(ann, sessions) as counts:
            await until(lambda: min(counts.values()) > 20)
            proxy.requests.stall()
            async with manager(tmp_path, server.url, "heir"):
                await owned_by(client, "heir")
                await served(ann, sessions)
                held = proxy.requests.held_bytes
                proxy.heal()
                for lane in lanes:
                    # Its owner value is another one after each reconnect.
                    await late.logged("lane.superseded", 60, lane=lane)
                await served(ann, sessions)
        await settled(client)

    assert held > 0
    log = await CommitLog.read(client, PARTITIONS)
    log.check()
    for session, count in counts.items():
        assert log.numbers(session, "ann") == list(range(1, count + 1))


@asynccontextmanager
async def appending(mad, sessions):
    """
    Appends to all *sessions* while the block runs; yields how many to each.
    """
    counts = dict.fromkeys(sessions, 0)
    stop = asyncio.Event()

    async def append():
        while not stop.is_set():
            for session in sessions:
                counts[session] += 1
                mad.append(session, {"n": counts[session]})
            await mad.flush()
            # A pace, not a wait: an outage must not pile up more than is replayed.
            await asyncio.sleep(POLL_S)

    appends = asyncio.create_task(append())
    try:
        yield counts
    finally:
        stop.set()
        await appends


async def served(mad, sessions):
    for session in sessions:
        await mad.get_session(session)


async def test_a_release_tells_the_others(server, client):
    """
    So that none of them waits for its next tick.
    """
    wire = Wire(server.url)
    await load_scripts(wire)
    _, owner = await acquired(wire, "one")
    async with client.pubsub() as listening:
        await listening.subscribe(keys.NEWS)
        await listening.get_message(timeout=5)

        await wire.call(*script("release", [key_names.owner(0)], owner, keys.NEWS))
        news = await listening.get_message(timeout=5)

    assert news["data"] == b"released"
    await wire.close()


async def test_a_lane_is_not_given_to_a_second_one_while_it_is_held(server, client):
    wire = Wire(server.url)
    await load_scripts(wire)
    _, held = await acquired(wire, "one")

    refused = await acquired(wire, "two")
    repeated = await acquired(wire, "one")
    reborn, owner = await acquired(wire, "one", life="2")

    assert refused == (0, held)
    assert repeated == (0, held)
    assert reborn == 1
    assert epoch_in(owner) > epoch_in(held)
    await wire.close()


async def test_epochs_grow_also_when_the_server_lost_everything(server, client):
    wire = Wire(server.url)
    epochs = []

    for _ in range(3):
        await client.flushall()
        await load_scripts(wire)
        _, owner = await acquired(wire, "one")
        await client.delete(key_names.owner(0))
        _, next_owner = await acquired(wire, "two")
        epochs += (epoch_in(owner), epoch_in(next_owner))
        # The clock in milliseconds is what keeps them apart over a loss.
        await until(lambda last=epochs[-1]: time.time_ns() // 1_000_000 > last)

    assert epochs == sorted(set(epochs))
    await wire.close()


async def test_a_bus_that_is_emptied_while_no_manager_lives_knows_its_mads_again(
    server, client
):
    """
    Nobody is left who knows them but themselves.
    """
    await client.hset(
        keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA, "lease_ms": 3000}
    )
    settings = {"partitions": 1, "lease_ttl_s": 3}
    async with a_mad(server.url) as mad:
        async with replica_here(server.url, **settings):
            await mad.create_session("ada")
        await client.flushall()
        async with replica_here(server.url, **settings):
            session = await mad.create_session("ada", timeout=30)

            assert (await mad.get_session(session.id)).version == 1
            assert await client.hexists(keys.MADS, "fiedler")


async def test_a_clean_stop_hands_over_at_once_and_leaves_nothing_pending(
    server, client, tmp_path
):
    """
    The successor owns every lane within a second, long before the TTL of ten.

    It finds nothing to replay: the one that stopped finished its batches.
    """
    settings = {"lane_ttl_ms": 10_000}
    async with (
        manager(tmp_path, server.url, "m1", **settings) as first,
        a_mad(server.url, "ann") as ann,
        a_mad(server.url, "bob") as bob,
    ):
        await owned_by(client, "m1")
        load = ClosedLoad([ann, bob], await sessions_of(ann))
        async with (
            load.running(),
            manager(tmp_path, server.url, "m2", **settings) as second,
        ):
            await second.logged("manager.ready")
            await load.more(20)
            first.send(signal.SIGTERM)
            begun = time.monotonic()
            await owned_by(client, "m2")
            took_s = time.monotonic() - begun
            code = await first.ended()
            await load.more(20)
            load.stop()
            await settled(client)
            replays = second.records("lane.replays")

    assert took_s < 1.0
    assert code == 0
    assert replays == []
    assert first.records("lane.superseded") == []
    load.check(await CommitLog.read(client, PARTITIONS))


async def test_a_replica_that_restarts_under_its_name_does_not_wait_for_the_ttl(
    server, client, tmp_path
):
    settings = {"lane_ttl_ms": 30_000}
    async with manager(tmp_path, server.url, "m1", **settings) as first:
        before = await owned_by(client, "m1")
        await first.end(signal.SIGKILL)

    async with manager(tmp_path, server.url, "m1", **settings) as again:
        await again.logged("replica.started")
        begun = time.monotonic()
        after = await until_changed(client, before)
        took_s = time.monotonic() - begun

    assert took_s < 3.0
    assert {replica_in(owner) for owner in after.values()} == {"m1"}
    assert all(epoch_in(after[p]) > epoch_in(before[p]) for p in before)


async def until_changed(client, before):
    async def all_changed():
        found = await owners(client, PARTITIONS)
        holder = key_names.holder_of
        fresh = {p for p in found if holder(found[p]) != holder(before[p])}
        return found if fresh == before.keys() else None

    return await until(all_changed, 10, "new owner values")


async def test_of_two_processes_under_one_name_the_first_ends_and_says_why(
    server, client, tmp_path
):
    """
    Two that took lanes from each other for ever would serve nobody.
    """
    async with manager(tmp_path, server.url, "m1") as first:
        before = await owned_by(client, "m1")
        async with (
            manager(tmp_path, server.url, "m1") as second,
            a_mad(server.url) as mad,
        ):
            code = await first.ended(15)
            after = await owned_by(client, "m1")
            session = await mad.create_session("ada")

            assert second.alive

    assert code == 5
    assert "another process runs as replica 'm1'" in first.output()
    assert "EVERBUS_REPLICA" in first.output()
    assert "Traceback" not in first.output()
    assert all(epoch_in(after[p]) > epoch_in(before[p]) for p in before)
    assert session.version == 1


async def test_only_the_lanes_of_a_dead_replica_move(server, client, tmp_path):
    """
    Three replicas share 16 lanes; two keep theirs, epoch and all.
    """
    settings = {"partitions": 16}
    async with (
        manager(tmp_path, server.url, "m1", **settings),
        manager(tmp_path, server.url, "m2", **settings),
        manager(tmp_path, server.url, "m3", **settings) as doomed,
    ):
        await spread(client, {"m1", "m2", "m3"})
        before = await quiet(client)
        await doomed.end(signal.SIGKILL)
        after = await owned_by(client, "m1", "m2", partitions=16)

    shares = {replica_in(owner) for owner in before.values()}
    assert shares == {"m1", "m2", "m3"}
    kept = {p: o for p, o in before.items() if replica_in(o) != "m3"}
    assert {p: after[p] for p in kept} == kept


async def spread(client, replicas):
    async def all_have_some():
        found = await owners(client, 16)
        return len(found) == 16 and {*map(replica_in, found.values())} == replicas

    await until(all_have_some, 20, "lanes on every replica")


async def quiet(client, for_s=1.5):
    """
    The owners, once nothing has moved for a tick and a half.
    """
    found, since = await owners(client, 16), time.monotonic()

    async def unmoved():
        nonlocal found, since
        now = await owners(client, 16)
        if now != found:
            found, since = now, time.monotonic()
        return time.monotonic() - since > for_s

    await until(unmoved, 20)
    return found


async def test_a_manager_with_another_number_of_partitions_is_refused_with_the_remedy(
    server, client, tmp_path
):
    await client.hset(keys.CONFIG, mapping={"partitions": 8, "schema": SCHEMA})

    async with manager(tmp_path, server.url, "m1", partitions=4) as refused:
        code = await refused.ended()

    assert code == 5
    assert "this bus has 8 partitions" in refused.output()
    assert "EVERBUS_PARTITIONS=8" in refused.output()
    assert "Traceback" not in refused.output()
    assert await owners(client, 8) == {}


async def test_managers_that_all_stop_leave_no_owner_behind(server, client, tmp_path):
    """
    Whoever comes next serves at once.
    """
    async with manager(tmp_path, server.url, "m1", lane_ttl_ms=60_000) as only:
        await owned_by(client, "m1")

        assert await only.end() == 0

    assert await owners(client, PARTITIONS) == {}
    assert await client.zrange(key_names.REPLICAS, 0, -1) == []


async def test_a_pause_shorter_than_the_ttl_costs_no_lane(server, client, tmp_path):
    async with (
        manager(tmp_path, server.url, "m1", lane_ttl_ms=8000) as first,
        a_mad(server.url) as mad,
    ):
        before = await owned_by(client, "m1")
        session = await mad.create_session("ada")
        first.send(signal.SIGSTOP)
        waiting = asyncio.create_task(mad.append_and_wait(session.id, "hi"))
        await until(lambda: mad.waiting == 0)
        first.send(signal.SIGCONT)

        assert await waiting == 1
        after = await owners(client, PARTITIONS)
        holder = key_names.holder_of
        assert all(holder(after[p]) == holder(before[p]) for p in before)


@pytest.mark.campaign  # it waits for every deadline that there is
async def test_a_stop_ends_within_its_grace_though_the_bus_does_not_answer(tmp_path):
    """
    Nothing can be handed over then: the TTL of the lanes does it.
    """
    async with (
        valkey(tmp_path) as server,
        manager(tmp_path, server.url, "m1", lane_ttl_ms=500) as part,
    ):
        await part.logged("lane.taken")
        server.pause()
        started = time.monotonic()
        code = await part.end(signal.SIGTERM, within_s=3 * GRACE_S)
        took_s = time.monotonic() - started
        server.resume()

    assert code == 0
    assert took_s < GRACE_S
    assert "Traceback" not in part.output()
