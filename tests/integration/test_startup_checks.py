"""
What a manager says to the server it is started on, and to one that ends.
"""

import asyncio
import signal

import pytest
import pytest_asyncio
import structlog.testing

from everbus.bus.wire import Wire
from everbus.compose.exit_codes import CONFLICT, Failed
from everbus.compose.settings import load_settings
from everbus.compose.startup_checks import check_server
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import load_scripts, script
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import NOTED
from tests.replicas import (
    manager,
    owners,
    replica_here,
    replica_in,
    settings_of,
    until,
)
from tests.servers import valkey


@pytest_asyncio.fixture
async def set_up(client):
    """
    Changes the server's configuration for one test.
    """
    known = await client.config_get("*")
    changed = []

    async def change(name, value):
        changed.append(name)
        await client.config_set(name, value)

    yield change
    for name in changed:
        await client.config_set(name, known[name])


async def checked(url, **settings):
    """
    The warnings that a manager would begin with.
    """
    wire = Wire(url)
    try:
        with structlog.testing.capture_logs() as logs:
            await check_server(wire, load_settings(settings_of(url, **settings)))
    finally:
        await wire.close()
    return {log["setting"] for log in logs}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")],
)
async def test_a_bus_that_may_lose_sessions_is_refused_with_the_remedy(
    server, set_up, setting, value
):
    await set_up(setting, value)

    with pytest.raises(Failed, match=f"CONFIG SET {setting}") as refused:
        await checked(server.url)

    assert refused.value.exit_code == CONFLICT
    assert "EVERBUS_REDIS_UNSAFE=true" in str(refused.value)
    assert setting in await checked(server.url, redis_unsafe="true")


async def test_a_refused_manager_ends_before_it_wrote_anything(
    server, client, set_up, tmp_path
):
    await set_up("appendonly", "no")

    async with manager(tmp_path, server.url, "m1") as part:
        code = await part.ended()

    assert code == CONFLICT
    assert "this bus may lose sessions" in part.output()
    assert "Traceback" not in part.output()
    assert await client.keys() == []


@pytest.mark.parametrize(
    ("setting", "value", "warned"),
    [
        ("appendfsync", "always", set()),
        ("appendfsync", "everysec", {"appendfsync"}),
        ("notify-keyspace-events", "", {"appendfsync", "notify-keyspace-events"}),
    ],
)
async def test_what_weakens_a_promise_is_warned_of(
    server, set_up, setting, value, warned
):
    await set_up(setting, value)

    assert await checked(server.url) == warned


async def test_a_primary_that_goes_on_without_its_replicas_is_warned_of(
    server, client, tmp_path
):
    """
    It could accept writes that a failover then drops; behind Sentinels, which fail
    over unasked, it is refused (`test_on_sentinel.py`).
    """
    (tmp_path / "follower").mkdir()
    async with valkey(tmp_path / "follower") as follower:
        wire = Wire(follower.url)
        await wire.call("REPLICAOF", "127.0.0.1", str(server.port))
        await wire.close()

        async def followed():
            return (await client.info("replication"))["connected_slaves"]

        await until(followed)
        found = await checked(server.url)

    assert found == {"appendfsync", "min-replicas-to-write"}


async def test_a_bus_that_keeps_its_configuration_to_itself_is_warned_of_once(
    server, client
):
    await client.acl_setuser(
        "manager", enabled=True, passwords=["+x"], commands=["+@all", "-config"]
    )
    url = server.url.replace("redis://", "redis://manager:x@")

    assert await checked(url) == {"CONFIG"}

    await client.acl_deluser("manager")


async def crashed_since(url):
    """
    The crashes that the next replica to come would count.
    """
    wire = Wire(url)
    try:
        await load_scripts(wire)
        told = await wire.call(*script("register", [key_names.REPLICAS], "next", 0))
    finally:
        await wire.close()
    return told[0]


def waited_for_lanes():
    """
    The seconds that lanes have had no owner, by this process's metric.
    """
    samples = metrics.RECLAIM.collect()[0].samples
    return sum(s.value for s in samples if s.name.endswith("_sum"))


async def test_a_replica_that_is_killed_counts_as_crashed_once(
    server, client, tmp_path
):
    """
    However many survive it; and the time that its lanes had no owner is told.
    """
    before = NOTED.totals()["replica_crashed"]
    waited = waited_for_lanes()
    settings = {"partitions": 4, "lane_ttl_ms": 1000}

    async with (
        replica_here(server.url, name="a", **settings),
        replica_here(server.url, name="b", **settings),
        manager(tmp_path, server.url, "doomed", **settings) as doomed,
    ):

        async def spread():
            return len({replica_in(o) for o in (await owners(client, 4)).values()}) == 3

        # Rendezvous hashing gives each of the three a share of these lanes.
        await until(spread)
        await doomed.end(signal.SIGKILL)

        async def survived():
            found = await owners(client, 4)
            return len(found) == 4 and "doomed" not in map(replica_in, found.values())

        await until(survived)
        assert await crashed_since(server.url) == []

    assert NOTED.totals()["replica_crashed"] == before + 1
    assert waited_for_lanes() - waited < 5


async def test_a_replica_that_says_goodbye_is_no_crash(server, client):
    before = NOTED.totals()["replica_crashed"]

    async with replica_here(server.url, name="a"):
        async with replica_here(server.url, name="b"):
            await until(lambda: client.zscore(key_names.REPLICAS, "b"))
        assert await crashed_since(server.url) == []

    assert NOTED.totals()["replica_crashed"] == before


async def test_the_lanes_of_a_killed_replica_are_taken_over_at_once(
    server, client, tmp_path
):
    """
    Its sockets close, long before the TTL of its lanes.
    """
    settings = {"partitions": 4, "lane_ttl_ms": 20_000}
    async with (
        replica_here(server.url, name="stays", **settings),
        manager(tmp_path, server.url, "dies", **settings) as dies,
    ):

        async def owned_by(*names):
            found = await owners(client, 4)
            return {replica_in(one) for one in found.values()} == set(names) and (
                len(found) == 4
            )

        await until(lambda: owned_by("stays", "dies"), 15)
        # It must have been heard once before its silence counts.
        await asyncio.sleep(0.5)
        await dies.end(signal.SIGKILL)

        await until(lambda: owned_by("stays"), 2)
