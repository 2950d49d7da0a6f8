"""
Every warm tier keeps the contract: the one in memory, and MongoDB by both drivers.
"""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given, settings

from everbus.compose.testing.contracts.warm import CHECKS, check_warm_tier
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.store.mongo.warm import MongoWarm
from tests.contracts.histories import (
    History,
    content,
    deliver,
    deliver_once,
    histories,
    windows,
)
from tests.servers import RealServer, secantus

pytestmark = pytest.mark.asyncio(loop_scope="module")

A_CHECK = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
fresh = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory) -> AsyncIterator[RealServer]:
    async with secantus(tmp_path_factory.mktemp("warm")) as real:
        yield real


@A_CHECK
async def test_memory_keeps_the_contract(check):
    await check(MemoryWarm())


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@A_CHECK
async def test_mongodb_keeps_the_contract(check, driver, server):
    tier = MongoWarm(server.url, f"contract{next(fresh)}", driver=driver)
    try:
        await tier.prepare()
        await tier.prepare()
        await check(tier)
    finally:
        tier.close()
        await tier.closed()


async def test_the_contract_runs_as_a_whole():
    """
    As a user runs it over a store of their own.
    """
    made = []

    async def make():
        made.append(MemoryWarm())
        return made[-1]

    await check_warm_tier(make)

    assert len(made) == len(CHECKS)


class Forgetful(MemoryWarm):
    """
    A store that holds every record, but for the timeline.
    """

    async def entries(self, session_id, life, first, last):
        return []


async def test_the_contract_finds_a_store_that_forgets():
    async def make():
        return Forgetful()

    with pytest.raises(AssertionError, match="entries"):
        await check_warm_tier(make)


@given(histories, windows)
@settings(max_examples=300, deadline=None)
async def test_memory_ends_the_same_however_often_records_come(operations, cuts):
    """
    Whatever is repeated, with what follows or long after it.
    """
    history = History(operations)
    once, often = MemoryWarm(), MemoryWarm()

    await deliver_once(once, history)
    await deliver(often, history, cuts)

    assert await content(often, history) == await content(once, history)


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@given(operations=histories, cuts=windows)
@settings(max_examples=10, deadline=None)
async def test_mongodb_ends_as_memory_does(driver, server, operations, cuts):
    """
    Likewise; what is right is what the model in memory makes of it.
    """
    history = History(operations)
    model = MemoryWarm()
    tier = MongoWarm(server.url, f"history{next(fresh)}", driver=driver)
    try:
        await tier.prepare()
        await deliver_once(model, history)
        await deliver(tier, history, cuts)

        assert await content(tier, history) == await content(model, history)
    finally:
        tier.close()
        await tier.closed()
