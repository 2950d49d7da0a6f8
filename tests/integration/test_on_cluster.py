"""
The bus on a Redis Cluster of three primaries: what holds on one server holds here.
"""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
import redis.asyncio

from everbus.archiver.cluster_drain import ClusterDrain
from everbus.archiver.drain import LeaseLost
from everbus.bus import connect, keys
from everbus.bus.cluster_wire import wire_to
from everbus.bus.heartbeat import HeartbeatThread
from everbus.compose.acl import mad_rules
from everbus.compose.role_processes import run_manager
from everbus.compose.settings import load_settings
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store import key_names, lease_records
from tests.closed_load import ClosedLoad
from tests.cluster import cluster
from tests.commit_log import CommitLog
from tests.replicas import (
    a_mad,
    a_token,
    manager,
    replica_in,
    settings_of,
    unsettled,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITIONS = 8
WITHIN_S = 15.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory):
    async with cluster(tmp_path_factory.mktemp("cluster"), aof=True) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def bus(whole):
    """
    The cluster, with nothing on it.
    """
    await whole.empty()
    return whole


@pytest_asyncio.fixture(loop_scope="module")
async def client(bus):
    """
    The test's own eyes: redis-py's, not ours.
    """
    node = bus.nodes[0]
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=node.port) as made:
        yield made


def settings(**chosen):
    return {"partitions": PARTITIONS, "redis_unsafe": "true", **chosen}


@asynccontextmanager
async def served(bus, name="here", **chosen):
    """
    A manager in this process, from its start to its orderly end.
    """
    given = settings_of(bus.url, replica=name, **settings(**chosen))
    stop = asyncio.Event()
    running = asyncio.create_task(run_manager(load_settings(given), stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            await running


async def owners(client):
    """
    Partition → the replica that owns its lane.
    """
    found = {}
    for p in range(PARTITIONS):
        if owner := await client.get(key_names.owner(p)):
            found[p] = replica_in(owner.decode())
    return found


async def owned_by(client, *replicas):
    """
    Return when every lane has an owner, and each of *replicas* has some.
    """

    async def shared():
        found = await owners(client)
        return len(found) == PARTITIONS and set(found.values()) == set(replicas)

    await until(shared, WITHIN_S, f"all lanes owned by {replicas}")


async def spread(mad):
    """
    A session on each partition.
    """
    found = {}
    while len(found) < PARTITIONS:
        session = await mad.create_session("ada")
        found.setdefault(keys.partition_of(session.id, PARTITIONS), session.id)
    return list(found.values())


async def all_settled(client):
    async def nothing_is_left():
        return not await unsettled(client)

    await until(nothing_is_left, WITHIN_S, "every ingress is settled")


async def test_everything_about_a_session_works_on_every_partition(bus, client):
    """
    Versions rise by one, entries stay in order, every request has its reply.
    """
    nodes = {await bus.owner(key_names.owner(p)) for p in range(PARTITIONS)}
    async with served(bus), a_mad(bus.url) as mad:
        sessions = await spread(mad)
        for session in sessions:
            for n in range(3):
                patch = {"context_summary": {"n": n}}
                after = await mad.update_session(session, patch, expected_version=1 + n)
                assert 2 + n == after.version
                mad.append(session, {"n": n})
        await mad.flush()
        pages = await asyncio.gather(*map(mad.timeline, sessions))
        found = await asyncio.gather(*map(mad.get_session, sessions * 20))

    assert {0, 1, 2} == nodes
    assert [[e.entry["n"] for e in p.entries] for p in pages] == [
        [0, 1, 2]
    ] * PARTITIONS
    assert {(s, 4) for s in sessions} == {(one.id, one.version) for one in found}


async def test_replies_that_no_wake_up_told_of_are_found_on_every_node(
    bus, client, monkeypatch
):
    """
    The sweep reads streams of several slots at once, and unlinks what it has.
    """
    async with served(bus), a_mad(bus.url) as mad:
        sessions = await spread(mad)
        monkeypatch.setattr(
            "everbus.bus.reply_receiver.ReplyReceiver._receive", lambda *_: None
        )
        found = await asyncio.gather(*map(mad.get_session, sessions * 10))

        assert Counter(dict.fromkeys(sessions, 10)) == Counter(s.id for s in found)
        await until(
            lambda: _none(bus, "eb:*:reply:*"), WITHIN_S, "replies that were read go"
        )


async def _none(bus, pattern):
    return not await bus.keys(pattern)


async def test_a_watch_is_told_what_happens_on_another_node(bus):
    async with served(bus), a_mad(bus.url, "ann") as ann, a_mad(bus.url, "bob") as bob:
        for session in (await spread(ann))[:3]:
            told = []

            async def listen(session=session, told=told):
                async for event in bob.watch(session):
                    told.append(event)
                    if len(told) == 5:
                        return

            listening = asyncio.create_task(listen())
            while not listening.done():
                await ann.append_and_wait(session, {"n": len(told)})
            numbers = [event.position.number for event in told]
            assert list(range(numbers[0], numbers[0] + 5)) == numbers


async def test_a_killed_replicas_lanes_are_taken_over_and_nothing_is_lost(
    bus, client, tmp_path
):
    async with (
        manager(tmp_path, bus.url, "one", **settings()) as one,
        served(bus, "two"),
    ):
        await owned_by(client, "one", "two")
        async with a_mad(bus.url, "ann") as ann, a_mad(bus.url, "bob") as bob:
            load = ClosedLoad([ann, bob], await spread(ann))
            async with load.running():
                await load.more(20)
                await one.end(9)
                await owned_by(client, "two")
                await load.more(20)
        await all_settled(client)

    load.check(await CommitLog.read(client, PARTITIONS))


async def test_a_slot_that_moves_under_load_loses_nothing(bus, client):
    """
    Its lane stands still while the slot is on its way, then goes on at the new node.
    """
    moving = (
        key_names.owner(0),
        lease_records.OWNER,
        keys.CONFIG,
        keys.MADS,
        key_names.REPLICAS,
    )
    async with served(bus), a_mad(bus.url, "ann") as ann, a_mad(bus.url, "bob") as bob:
        load = ClosedLoad([ann, bob], await spread(ann))
        async with load.running():
            await load.more(20)
            for key in moving:
                assert await bus.migrate(key, (await bus.owner(key) + 1) % 3) > 0
                await load.more(20)
        await all_settled(client)

    load.check(await CommitLog.read(client, PARTITIONS))


async def test_a_slot_that_is_long_on_its_way_stops_its_own_lane_only(bus, client):
    moved = key_names.owner(0)
    target = (await bus.owner(moved) + 1) % 3
    async with served(bus), a_mad(bus.url) as mad:
        sessions = {keys.partition_of(s, PARTITIONS): s for s in await spread(mad)}
        async with bus.migrating(moved, target) as step:
            await step(3)
            waiting = asyncio.create_task(
                mad.update_session(sessions[0], {"tags": ["late"]}, timeout=30)
            )
            for p in range(1, PARTITIONS):
                await mad.update_session(sessions[p], {"tags": ["meanwhile"]})
            assert not waiting.done()
        assert (await waiting).version == 2


async def test_a_primary_that_is_away_for_a_while_loses_nothing(bus, client):
    async with served(bus), a_mad(bus.url, "ann") as ann, a_mad(bus.url, "bob") as bob:
        load = ClosedLoad([ann, bob], await spread(ann))
        async with load.running():
            await load.more(20)
            await bus.nodes[0].restart()
            await load.more(20)
        await all_settled(client)

    load.check(await CommitLog.read(client, PARTITIONS))


async def test_a_follower_that_is_promoted_in_order_loses_nothing(
    bus, client, tmp_path
):
    async with (
        served(bus),
        bus.follower(tmp_path, of=0) as follower,
        a_mad(bus.url, "ann") as ann,
    ):
        load = ClosedLoad([ann], await spread(ann))
        async with load.running():
            await load.more(20)
            await follower.call("CLUSTER", "FAILOVER")
            await until(lambda: _leads(follower), WITHIN_S, "the follower leads")
            await load.more(20)
            await bus.wires[0].call("CLUSTER", "FAILOVER")
            await until(lambda: _leads(bus.wires[0]), WITHIN_S, "it follows again")
            await load.more(20)
        await all_settled(client)
        load.check(await CommitLog.read(client, PARTITIONS))


async def _leads(wire):
    return (await wire.call("ROLE"))[0] == b"master"


async def test_a_mad_that_falls_silent_is_missed_and_leaves_its_sessions(
    bus, client, monkeypatch
):
    """
    The sweep of the deadlines finds it; then every partition is told.
    """
    dead = asyncio.Event()
    publish = HeartbeatThread._publish

    def beat(heart, kind, epoch):
        if heart._mad == "bob" and dead.is_set():
            raise ConnectionError("dead, for this test")
        publish(heart, kind, epoch)

    monkeypatch.setattr(HeartbeatThread, "_publish", beat)
    async with (
        served(bus, lease_ttl_s=1),
        a_mad(bus.url, "ann") as ann,
        a_mad(bus.url, "bob") as bob,
    ):
        sessions = await spread(ann)
        for session in sessions:
            await bob.join(session)
        dead.set()
        died = time.monotonic()

        async def missed():
            found = await asyncio.gather(*map(ann.get_session, sessions))
            return all("bob" not in one.participants for one in found)

        await until(missed, WITHIN_S, "bob is in no session")
        told_within_s = time.monotonic() - died

    # TTL + 2 s is promised; the outage's grace is another TTL at most.
    assert told_within_s < 4
    assert not await client.hlen(lease_records.LOSSES)


async def test_the_server_tells_of_expired_leases_on_whichever_node_has_them(bus):
    """
    Notifications are of one node alone, so each that the URL names is listened to.
    """
    async with served(bus):

        async def listened_to():
            counts = [await wire.call("PUBSUB", "NUMPAT") for wire in bus.wires]
            # The tokens are listened to on one of them.
            return sorted(counts) == [1, 1, 2]

        await until(listened_to, WITHIN_S, "every node is listened to")


@asynccontextmanager
async def draining(bus, warm, name):
    drain = ClusterDrain(bus.url, PARTITIONS, warm, name, fail=disarmed)
    stop = asyncio.Event()
    running = asyncio.create_task(drain.run(stop))
    try:
        yield drain
    finally:
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            await running


async def test_the_archiver_brings_every_outbox_into_the_tier_below(bus, client):
    warm = MemoryWarm()
    async with served(bus), a_mad(bus.url) as mad, draining(bus, warm, "one"):
        sessions = await spread(mad)
        for session in sessions:
            await mad.update_session(session, {"tags": ["kept"]})

        async def drained():
            lengths = [
                await client.xlen(key_names.outbox(p)) for p in range(PARTITIONS)
            ]
            return not any(lengths)

        await until(drained, WITHIN_S, "every outbox is empty")
        held = await warm.sessions(sessions)

    assert {(s, 2) for s in sessions} == {(s, held[s].session.version) for s in held}
    for p in range(PARTITIONS):
        assert await client.get(key_names.backlog(p)) == b"0"


async def test_an_archiver_that_was_paused_takes_nothing_from_its_successor(bus):
    warm = MemoryWarm()
    async with served(bus), a_mad(bus.url) as mad:
        await spread(mad)
        async with draining(bus, warm, "one") as one:
            await until(lambda: one.written >= PARTITIONS, WITHIN_S, "one works")
            before = one.lease.owner
        async with draining(bus, warm, "two") as two:
            await spread(mad)
            await until(lambda: two.written > 0, WITHIN_S, "two works")
            # Woken up with what it believed before.
            one.lease.owner, one.lease._until = before, float("inf")
            with pytest.raises(LeaseLost):
                await one._read(">")
            with pytest.raises(LeaseLost):
                await one._fence()
            await one._wire.close()
            one.lease.owner = ""


async def test_a_mad_with_the_rights_that_it_is_given_needs_no_others(bus):
    """
    Its user is made on each node; where keys are it learns without asking.
    """
    rules = mad_rules("ann", database=0)
    for wire in bus.wires:
        await wire.call("ACL", "SETUSER", "ann", "reset", "on", ">secret", *rules)
    url = bus.url.replace("://", "://ann:secret@")
    async with served(bus):
        for wire in bus.wires:
            await wire.exchange([("HSETNX", keys.MADS, "ann", "{}")])
        async with connect(url, mad="ann", token=a_token()) as mad:
            for session in await spread(mad):
                await mad.join(session)
                mad.append(session, {"n": 1})
            await mad.flush()
    for wire in bus.wires:
        await wire.call("ACL", "DELUSER", "ann")


async def test_it_is_enough_that_one_of_the_nodes_that_are_named_lives(bus):
    alive = f"127.0.0.1:{bus.nodes[2].port}"
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:2,{alive}"
    async with served(bus, redis_url=url):
        for _ in range(2):
            async with connect(url, mad="ann", token=a_token()) as mad:
                assert (await mad.create_session("ada")).version == 1


async def test_a_command_for_several_slots_is_refused_and_not_split(bus):
    wire = wire_to(bus.url)
    [reply] = await wire.exchange([("MGET", key_names.owner(0), key_names.owner(1))])
    await wire.close()

    assert "same slot" in str(reply)
