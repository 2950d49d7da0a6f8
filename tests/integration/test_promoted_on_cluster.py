"""
Lagging replicas promoted on a Redis Cluster, all three at once: what MongoDB has counts
once, what nobody has is sent again, and nothing is twice.

Three primaries, a replica of each, and one SecantusDB.
"""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from everbus.bus import connect
from everbus.bus.unsettled import Unsettled
from tests.bus_pair import FOLLOWED, UNFOLLOWED
from tests.cluster import cluster
from tests.integration.test_on_cluster import served, settings, spread
from tests.replicas import a_token, archiver, until
from tests.servers import secantus

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

WITHIN_S = 30.0
SENT = 5


class Sides:
    """
    A cluster whose primaries have a replica each.

    Attributes:
        bus: the cluster.
        followers: connections to the replicas, in the order of their primaries.
    """

    def __init__(self, bus, followers):
        self.bus, self.followers = bus, followers

    async def lag(self):
        """
        No replica learns of what comes from now on; each has all until now.
        """
        for leader, follower in zip(self.bus.wires, self.followers, strict=True):
            await until(lambda a=leader, b=follower: _has_all(a, b), WITHIN_S)
            await leader.call(*UNFOLLOWED)
            await leader.call("CLIENT", "KILL", "TYPE", "replica")
            await until(lambda b=follower: _is_cut_off(b), WITHIN_S)

    async def promote(self):
        """
        Let the replicas lead with what they have; their primaries follow and forget.
        """
        for follower in self.followers:
            await follower.call("CLUSTER", "FAILOVER", "TAKEOVER")
        for leader in self.bus.wires:
            await until(lambda a=leader: _follows(a), WITHIN_S)
            await leader.call(*FOLLOWED)


async def _told(wire):
    told = (await wire.call("INFO", "replication")).decode().split()
    return dict(line.split(":", 1) for line in told if ":" in line)


async def _has_all(leader, follower):
    here, there = await _told(leader), await _told(follower)
    up = there.get("master_link_status") == "up"
    return up and here["master_repl_offset"] == there["slave_repl_offset"]


async def _is_cut_off(follower):
    return (await _told(follower)).get("master_link_status") == "down"


async def _follows(wire):
    return (await _told(wire))["role"] == "slave"


@pytest_asyncio.fixture(loop_scope="module")
async def sides(tmp_path):
    async with AsyncExitStack() as ends:
        bus = await ends.enter_async_context(cluster(tmp_path))
        followers = []
        for n in range(len(bus.nodes)):
            folder = tmp_path / f"of-{n}"
            folder.mkdir()
            one = await ends.enter_async_context(bus.follower(folder, of=n))
            followers.append(one)
        yield Sides(bus, followers)


@pytest_asyncio.fixture(loop_scope="module")
async def mongo(tmp_path):
    async with secantus(tmp_path) as server:
        yield server


@asynccontextmanager
async def tiered(sides, mongo):
    """
    A manager, a MAD, what MongoDB holds of sessions, and the settings of an archiver.
    """
    chosen = {"mongo_url": mongo.url, "mongo_database": "held"}
    async with (
        AsyncMongoClient(mongo.url) as client,
        served(sides.bus, **chosen),
        connect(sides.bus.url, mad="ann", token=a_token()) as mad,
    ):
        yield mad, client["held"]["sessions"], settings(**chosen)


async def held(documents, sessions, last_seq):
    where = {"_id": {"$in": sessions}, "last_seq": last_seq}
    return await documents.count_documents(where) == len(sessions)


async def texts(mad, session):
    return [one.entry for one in (await mad.timeline(session, timeout=20)).entries]


@pytest.mark.parametrize(
    "drained", [True, pytest.param(False, marks=pytest.mark.campaign)]
)
async def test_what_was_not_settled_is_sent_again_and_counts_once(
    sides, mongo, tmp_path, monkeypatch, drained
):
    """
    The MAD hears of no settlement before; MongoDB has all of it, or nothing.
    """
    async with tiered(sides, mongo) as (mad, documents, chosen):
        draining = AsyncExitStack()
        await draining.enter_async_context(
            archiver(tmp_path, sides.bus.url, "a1", **chosen)
        )
        async with draining:
            sessions = await spread(mad)
            for one in sessions:
                await mad.append_and_wait(one, "before", durability="warm", timeout=20)
            await mad.flush(settled=True, timeout=20)
            await sides.lag()
            if not drained:
                await draining.aclose()
            with monkeypatch.context() as deaf:
                deaf.setattr(Unsettled, "_settle", lambda *_: None)
                for n in range(SENT):
                    for one in sessions:
                        mad.append(one, n)
                await mad.flush()
                for one in sessions:
                    await until(lambda s=one: _has(mad, s), WITHIN_S)
                if drained:
                    await until(lambda: held(documents, sessions, 1 + SENT), WITHIN_S)
                await sides.promote()
        async with archiver(tmp_path, sides.bus.url, "a2", **chosen):
            await mad.flush(settled=True, timeout=WITHIN_S)

            for one in sessions:
                assert await texts(mad, one) == ["before", *range(SENT)]
                after = await mad.append_and_wait(one, "after", timeout=20)
                assert after == 2 + SENT
                durable = await mad.durable(one, wait=True, timeout=20)
                assert durable.seq == 2 + SENT


async def _has(mad, session):
    return (await mad.get_session(session, timeout=20)).last_seq == 1 + SENT
