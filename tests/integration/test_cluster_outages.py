"""
Nodes of a Redis Cluster that die: what others serve goes on.
"""

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
import redis.asyncio

from everbus.bus import connect, keys
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.readings import Readings, read_bus, read_servers
from everbus.gateway.health.verdicts import examine
from everbus.gateway.presence.replica_liveness import LOOK_EVERY_S, alive_channel
from everbus.gateway.store import key_names
from tests.cluster import cluster
from tests.commandline import CommandLine, own_logs
from tests.integration.test_on_cluster import (
    PARTITIONS,
    WITHIN_S,
    owned_by,
    served,
    settings,
    spread,
)
from tests.replicas import a_token, manager, replica_in, until

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.timeout(60),
    pytest.mark.usefixtures("own_logs"),
]
__all__ = ["own_logs"]


@pytest_asyncio.fixture
async def bus(tmp_path):
    """
    A cluster of the test's own, since it loses a node.
    """
    async with cluster(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def client(bus):
    port = bus.nodes[0].port
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port) as made:
        yield made


async def served_everywhere(url, within_s):
    """
    Seconds until a new client of *url* has a session on every partition.
    """
    began = time.monotonic()
    while True:
        try:
            async with connect(url, mad="ann", token=a_token(), timeout=2) as mad:
                async with asyncio.timeout(5):
                    await spread(mad)
                return time.monotonic() - began
        except (EverbusError, TimeoutError):
            assert time.monotonic() - began < within_s, "never served again"
            await asyncio.sleep(0.1)


async def test_nodes_are_learnt_so_the_death_of_the_only_named_one_is_survived(
    bus, tmp_path
):
    """
    Its replica takes over after the cluster's own timeout (2 s here); managers, MADs
    and new clients of this process go on without the address in the URL.
    """
    seed = bus.nodes[0]
    url = f"redis+cluster://127.0.0.1:{seed.port}"
    async with (
        bus.follower(tmp_path, of=0),
        served(bus, redis_url=url),
        connect(url, mad="eva", token=a_token()) as mad,
    ):
        [session, *_] = await spread(mad)
        await seed.kill()

        assert await served_everywhere(url, 12) < 12
        mad.append(session, {"n": 1})
        await mad.flush()
        assert mad.losses == 0


async def test_while_a_primary_is_away_the_other_lanes_are_taken_over(
    bus, tmp_path, client
):
    """
    Also if the list of live replicas lies on it.
    """
    for wire in bus.wires:
        await wire.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    away = await bus.owner(key_names.REPLICAS)
    here = [p for p in range(PARTITIONS) if await bus.owner(key_names.owner(p)) != away]
    others = [wire for n, wire in enumerate(bus.wires) if n != away]
    chosen = settings(jwt_secret="a secret of the tests, 32 bytes or more")

    async def heard():
        asked = [
            await wire.call("PUBSUB", "NUMSUB", alive_channel("dies"))
            for wire in bus.wires
        ]
        return any(count for _, count in asked)

    async with (
        served(bus, name="stays"),
        manager(tmp_path, bus.url, "dies", **chosen) as dies,
    ):
        await owned_by(client, "stays", "dies")
        await until(heard, WITHIN_S, "the replica listens")
        # The other one looks by a clock of its own; it must have seen that once.
        await asyncio.sleep(3 * LOOK_EVERY_S)
        await bus.nodes[away].kill()
        await dies.end(signal.SIGKILL)

        async def taken():
            found = []
            for p in here:
                for wire in others:
                    [reply] = await wire.exchange([("GET", key_names.owner(p))])
                    if isinstance(reply, bytes):
                        found.append(replica_in(reply.decode()))
            return found == ["stays"] * len(here)

        await until(taken, WITHIN_S, "the lanes of the living nodes are taken over")


async def test_a_node_that_joins_later_is_told_of_until_it_has_the_users(
    bus, client, tmp_path
):
    """
    A node without slots and a replica: both may serve one day.
    """
    command = CommandLine(bus.url)
    async with (
        served(bus),
        bus.follower(tmp_path, of=0) as joined,
        AsyncExitStack() as closing,
    ):
        await owned_by(client, "here")
        added = await command("mads", "add", "ann", "-o", "json")
        on_replica = await joined.call("ACL", "USERS")
        new = await closing.enter_async_context(bus.newcomer(tmp_path))

        async def told():
            # Each node is asked once the gossip has reached it.
            readings = Readings(0, await read_servers(bus.url))
            found = {one.name: one for one in examine(readings, INDICATORS)}
            return found["bus_users"].shown == f"ann is not on {new.address}"

        async def made():
            again = await command("mads", "add", "ann", "-o", "json")
            return again.code == 0 and b"ann" in await new.call("ACL", "USERS")

        await until(told, WITHIN_S, "doctor tells of the newcomer")
        await until(made, WITHIN_S, "the newcomer has the user")

    assert added.code == 0
    assert b"ann" in on_replica


async def test_doctor_names_a_node_that_is_away(bus, client):
    config = await bus.owner(keys.CONFIG)
    dead = bus.nodes[(config + 1) % 3]
    async with served(bus):
        await owned_by(client, "here")
        wire = wire_to(bus.url)
        await dead.kill()
        readings = await read_bus(wire)
        found = {
            one.name: one
            for one in examine(
                readings._replace(servers=await read_servers(bus.url)), INDICATORS
            )
        }
        await wire.close()

    assert found["bus_nodes"].verdict == "fail"
    assert f"127.0.0.1:{dead.port}" in found["bus_nodes"].shown
    assert found["lanes_without_owner"].verdict == "fail"
