"""
Every hot tier keeps the contract: the one in memory, and Redis on real servers.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bus import keys
from bus.wire import Wire
from gateway.store.contracts.hot import CHECKS
from gateway.store.hot import RedisHot
from gateway.store.memory.hot import MemoryHot
from gateway.store.scripts import load_scripts
from tests.servers import RealServer, valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

A_CHECK = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory) -> AsyncIterator[RealServer]:
    async with valkey(tmp_path_factory.mktemp("hot")) as real:
        yield real


@A_CHECK
async def test_memory_keeps_the_contract(check):
    await check(MemoryHot())


@A_CHECK
async def test_redis_keeps_the_contract(check, server):
    wire = Wire(server.url)
    try:
        await wire.call("FLUSHALL")
        await load_scripts(wire)
        await check(RedisHot(wire, 4))
    finally:
        await wire.close()


async def test_redis_forgets_nothing_that_mongodb_does_not_hold(server):
    wire = Wire(server.url)
    try:
        await load_scripts(wire)
        hot = RedisHot(wire, 4)
        # As a commit leaves it: nothing is durable yet.
        key = f"eb:{{{keys.partition_of('fresh', 4)}}}:session:fresh"
        await wire.call("HSET", key, "version", 1, "last_seq", 0)

        assert not await hot.forget("fresh")
        assert await hot.exists("fresh")
    finally:
        await wire.close()
