"""
A bus at its `maxmemory`: whoever frees memory, keeps order or answers reads goes on.
"""

import asyncio
from pathlib import Path

import pytest

from everbus.bus import connect
from everbus.bus.errors import EverbusError, Overloaded
from everbus.gateway.store import key_names
from tests.integration.conftest import (
    NEEDS_REDIS,
    PARTITIONS,
    Bus,
    a_replica,
    a_token,
    until,
)
from tests.outages import served
from tests.servers import DEBIAN_REDIS, valkey
from tests.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Together so large that the buffers of connections make no difference.
FILLERS = ("filler:1", "filler:2")

SERVERS = ["", pytest.param(DEBIAN_REDIS, marks=NEEDS_REDIS)]
ON_BOTH = pytest.mark.parametrize("program", SERVERS, ids=["valkey", "redis"])


async def owned_by(bus: Bus, name: str) -> bool:
    owners = await bus.client.mget(
        [key_names.owner(p) for p in (*range(PARTITIONS), "mads")]
    )
    return all(one and f":{name}/".encode() in one for one in owners)


@ON_BOTH
async def test_lanes_are_kept_and_taken_over_at_maxmemory(tmp_path: Path, program: str):
    """
    The second manager starts, takes every lane, and reads what lies on the ingress.
    """
    async with valkey(tmp_path, aof=False, program=program) as server:
        bus = Bus(server)
        async with bus.client:
            first = a_replica(bus.url, "one")
            await first.__aenter__()
            await until(lambda: owned_by(bus, "one"), "the first has all")
            async with connect(bus.url, mad="ada", token=a_token("ada")) as mad:
                session = await mad.create_session("u")
                await bus.client.config_set("maxmemory", 1)
                await asyncio.sleep(3.0)
                assert await owned_by(bus, "one"), "renewed beyond the TTL of 2 s"
                async with a_replica(bus.url, "two"):
                    await first.__aexit__(None, None, None)
                    await until(lambda: owned_by(bus, "two"), "taken over")
                    await bus.client.config_set("maxmemory", 0)
                    mad.append(session.id, "hi")
                    await mad.flush(timeout=10)
                    assert (await mad.get_session(session.id)).last_seq == 1


async def test_before_that_writes_are_refused_and_reads_answered(
    bus: Bus, manager: None
):
    """
    While something waits for MongoDB, which frees memory.
    """
    async with connect(bus.url, mad="eve", token=a_token("eve")) as mad:
        session = await mad.create_session("u")
        for filler in FILLERS:
            await bus.client.setrange(filler, 25_000_000, "x")
        used = (await bus.client.info("memory"))["used_memory"]
        await bus.client.config_set("maxmemory", int(used / 0.97))
        try:
            await asyncio.sleep(1.5)
            with pytest.raises(Overloaded, match="memory is full"):
                await mad.update_session(session.id, {"context_summary": {"a": 1}})
            assert (await mad.get_session(session.id)).version == session.version
        finally:
            await bus.client.config_set("maxmemory", 0)
            await bus.client.unlink(*FILLERS)

        async def written() -> bool:
            try:
                await mad.update_session(session.id, {"context_summary": {"a": 1}})
            except Overloaded:
                return False
            return True

        await until(written, "writes are taken again", 5)


async def test_it_heals_when_mongodb_is_back_under_a_trickle_of_appends(stack: Stack):
    async with served(stack) as (mad, hands), hands.draining():
        session = await mad.create_session("ada")
        sent = 0

        async def append() -> None:
            nonlocal sent
            mad.append(session.id, "x" * 1000)
            sent += 1
            await asyncio.sleep(0.002)

        stack.mongo.pause()
        used = (await stack.client.info("memory"))["used_memory"]
        await stack.client.config_set("maxmemory", used + 2_000_000)
        try:
            async with asyncio.timeout(20):
                while mad.waiting < 50:
                    await append()
            stack.mongo.resume()
            with_room = False
            async with asyncio.timeout(60):
                while not with_room:
                    await append()
                    with_room = mad.waiting < 10
            await mad.flush(timeout=30)
            read = await mad.get_session(session.id)
        finally:
            stack.mongo.resume()
            await stack.client.config_set("maxmemory", 0)
        assert read.last_seq == sent
        await stack.drained()


async def test_a_mad_that_is_listed_connects_at_maxmemory(bus: Bus, manager: None):
    async with connect(bus.url, mad="old", token=a_token("old")) as mad:
        await mad.create_session("u")
    await bus.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Overloaded):
            async with connect(bus.url, mad="new", token=a_token("new")):
                pass
        try:
            async with connect(bus.url, mad="old", token=a_token("old")) as mad:
                await bus.client.config_set("maxmemory", 0)
                await mad.create_session("u")
        except EverbusError as error:
            pytest.fail(f"{type(error).__name__}: {error}")
    finally:
        await bus.client.config_set("maxmemory", 0)
