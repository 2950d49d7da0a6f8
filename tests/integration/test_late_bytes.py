"""
What a connection of a lane still carries after the lane has given it up.

The proxy holds back what the old connection sends, its end too, and delivers it
behind what a newer one has sent: late, in part, or as a whole. The lane's promise is
that nothing of it has an effect; see gateway/lane/README.md.
"""

from contextlib import asynccontextmanager

import pytest

from everbus.bus import keys
from everbus.bus.messages import pack_envelope
from everbus.bus.wire import Wire, WireFailed
from everbus.gateway.lane import loop
from everbus.gateway.lane.commit import Batch, BatchLimits
from everbus.gateway.lane.connection import LaneConnection
from everbus.gateway.lane.delivery import Now, received_in
from everbus.gateway.lane.intake import CONSUMER
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import hot_copy, key_names
from everbus.gateway.store.scripts import load_scripts, script
from tests.bench.yardstick import a_session
from tests.builders import an_envelope
from tests.commit_log import CommitLog
from tests.proxy import Proxy
from tests.replicas import a_client, a_mad, epoch_in, replica_here, settled, until
from tests.servers import valkey

LANE = b"everbus-lane-0"
OWNER, EPOCH = key_names.owner(0), key_names.epoch(0)


@pytest.fixture
async def server(tmp_path):
    async with valkey(tmp_path) as real:
        yield real


@pytest.fixture
async def client(server):
    async with a_client(server.url) as connected:
        yield connected


@pytest.fixture
async def proxy(server):
    async with Proxy("127.0.0.1", server.port) as between:
        yield between


@pytest.fixture
def hasty(monkeypatch):
    """
    A lane gives up a connection that does not answer after half a second.
    """
    monkeypatch.setattr(loop, "EXCHANGE_TIMEOUT_S", 0.5)


@asynccontextmanager
async def a_connection(proxy, client):
    """
    The connection of lane 0, which nobody else serves.
    """
    wire = Wire(proxy.url(), name=LANE.decode())
    await load_scripts(wire)
    taken = script("acquire", [OWNER, EPOCH], "here", "1", 60_000)
    _, owner = await wire.call(*taken)
    connection = LaneConnection(wire, 0, owner.decode())
    await connection.reopen()
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def a_lane(proxy, server):
    """
    Lane 0 of a replica behind the proxy, and a MAD beside it.
    """
    async with (
        replica_here(proxy.url(), partitions=1, lane_ttl_ms=5_000) as replica,
        a_mad(server.url) as mad,
    ):
        await until(lambda: 0 in replica.lanes)
        yield replica.lanes[0], mad


def a_commit(owner):
    batch = Batch(0, BatchLimits(), Now.at(1_000))
    fields = [b"c", pack_envelope(an_envelope("timeline.append", id="i.0.1"))]
    [delivery] = received_in("ann", "5-1", fields, 0, 1)
    batch.bury(delivery, "poison", "of the old connection")
    batch.settle(delivery, ProducerWindow.starting_at(1))

    return batch.command(owner)


# What a lane's connection carries, by the name of the script, under its owner value.
CARRIED = {
    "read": lambda owner: script(
        "read",
        [OWNER, keys.ingress(0, "ann")],
        *(owner, keys.GROUP, CONSUMER, 8, 10, 64, 1 << 20, 1 << 20, 256, "news", "0-0"),
    ),
    "commit": a_commit,
    "admit": lambda owner: hot_copy.admit_command(
        0,
        "s",
        hot_copy.Admitting(
            owner, a_session("s"), hot_copy.Found(None), False, 1, 60_000
        ),
        hot_copy.Settling(),
    ),
    "mark": lambda owner: script(
        "mark", [OWNER, key_names.attempts(0)], owner, "ann/5-1/0", "me", 100
    ),
    "prune": lambda owner: script(
        "prune", [OWNER, key_names.publishers(0)], owner, "ann:old", "1,2"
    ),
    "release": lambda owner: script("release", [OWNER], owner, keys.NEWS),
    "renew": lambda owner: script("renew", [OWNER], owner, 1),
    # The next epoch but this one, as the attempt to connect before would propose it.
    "reopen": lambda owner: script(
        "reopen", [OWNER, EPOCH], epoch_in(owner) + 1, owner.partition(":")[2]
    ),
}


async def contents(client):
    """
    Every key's serialised value, groups and pending lists included.
    """
    return {key: await client.dump(key) async for key in client.scan_iter(count=1000)}


@asynccontextmanager
async def given_up(connection, proxy, carried):
    """
    The old connection with *carried* on it, after the lane has opened a new one.
    """
    stranded = proxy.strand(LANE)
    with pytest.raises(WireFailed):
        await connection.exchange([carried], timeout_s=0.1)
    assert stranded.held_bytes > 0
    await connection.reopen()
    yield stranded


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("name", CARRIED)
async def test_what_a_given_up_connection_carries_has_no_effect(
    client, proxy, name, half
):
    await client.xgroup_create(keys.ingress(0, "ann"), keys.GROUP, "0", mkstream=True)
    await client.xadd(keys.ingress(0, "ann"), {"c": b"\xc1"})
    await client.hset(key_names.publishers(0), "ann:old", "1,2")
    async with a_connection(proxy, client) as connection:
        carried = CARRIED[name](connection.owner)
        async with given_up(connection, proxy, carried) as stranded:
            before = await contents(client)
            stranded.deliver(stranded.held_bytes // 2 if half else None)
            await until(lambda: stranded.over)

            assert await contents(client) == before
            assert await client.ttl(OWNER) > 10

        # The same under the new connection's epoch has one: the case can tell.
        await connection.call(*CARRIED[name](connection.owner))
        assert name == "renew" or await contents(client) != before


async def test_a_late_commit_does_not_fork_a_session(server, client, proxy, hasty):
    """
    It comes behind three newer commits of its session, which moved no version.
    """
    async with a_lane(proxy, server) as (lane, mad):
        session = (await mad.create_session("ada")).id
        await mad.append_and_wait(session, {"n": 1})
        await at_rest(lane, client)
        stranded = proxy.strand(LANE)
        mad.append(session, {"n": 2})
        await until(lambda: stranded.given_up)
        seqs = [await mad.append_and_wait(session, {"n": n}) for n in (3, 4)]
        stranded.deliver()
        await until(lambda: stranded.over)
        seqs.append(await mad.append_and_wait(session, {"n": 5}))
        await settled(client)

    log = await CommitLog.read(client, 1)
    log.check()
    assert seqs == [3, 4, 5]
    assert log.numbers(session, "fiedler") == [1, 2, 3, 4, 5]


async def test_a_nudge_whose_end_comes_late_loses_no_entry(
    server, client, proxy, monkeypatch
):
    """
    The old wait goes on at the server; it sees the next entry as the new one does.
    """
    monkeypatch.setattr(loop, "WAIT_MS", 6_000)
    async with a_lane(proxy, server) as (lane, mad):
        session = (await mad.create_session("ada")).id
        await at_rest(lane, client)
        before, stranded = lane.owner, proxy.strand(LANE)
        lane._nudge()
        await until(lambda: stranded.given_up and lane.owner != before)
        # The old wait and the new one: the server serves the older one first.
        await blocked(client, 2)

        assert await mad.append_and_wait(session, {"n": 1}, timeout=3) == 1
        stranded.deliver()
        await until(lambda: stranded.over)
        await settled(client, within_s=3)


async def at_rest(lane, client):
    """
    Return when the lane waits at the server, so that it commits what comes next.
    """
    await until(lambda: lane._resting)
    await blocked(client, 1)


async def blocked(client, lanes):
    """
    Return when *lanes* connections of the lane wait at the server.
    """

    async def wait():
        found = await client.client_list()
        named = [one for one in found if one["name"] == LANE.decode()]
        return sum("b" in one["flags"] for one in named) == lanes

    await until(wait, what=f"{lanes} connections wait")


async def test_a_commit_whose_reply_is_lost_is_not_done_again(
    server, client, proxy, hasty
):
    async with a_lane(proxy, server) as (lane, mad):
        session = (await mad.create_session("ada")).id
        await at_rest(lane, client)
        before = lane.owner
        proxy.drop_replies()
        mad.append(session, {"n": 1})
        await until(lambda: not lane._wire.connected)
        proxy.cut()
        proxy.heal()
        await until(lambda: lane.owner != before)

        assert await mad.append_and_wait(session, {"n": 2}) == 2
        await settled(client)

    log = await CommitLog.read(client, 1)
    log.check()
    assert log.numbers(session, "fiedler") == [1, 2]


@pytest.mark.parametrize("count", [1, 40, 400])
async def test_a_commit_that_arrives_in_part_has_no_effect(
    server, client, proxy, hasty, count
):
    async with a_lane(proxy, server) as (lane, mad):
        session = (await mad.create_session("ada")).id
        await at_rest(lane, client)
        before, stranded = lane.owner, proxy.strand(LANE)
        mad.append(session, {"n": 1})
        await until(lambda: stranded.given_up)
        stranded.deliver(count)
        await until(lambda: stranded.over)
        await until(lambda: lane.owner != before)

        assert await mad.append_and_wait(session, {"n": 2}) == 2
        await settled(client)

    log = await CommitLog.read(client, 1)
    log.check()
    assert log.numbers(session, "fiedler") == [1, 2]
