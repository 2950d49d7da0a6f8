"""
Managers that are killed, paused and cut off while MADs are lost.

The MADs are heartbeats by hand, so that a test decides who falls silent when. What
came of a loss is judged by the fences that every partition keeps.
"""

import asyncio
import signal
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
import pytest_asyncio
import redis.asyncio

from everbus.bus import keys
from everbus.bus.messages import SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.wire import Wire
from everbus.gateway.failpoints import PRESENCE
from everbus.gateway.session_manager import lane_owner
from everbus.gateway.store import key_names, lease_records
from tests.proxy import Proxy
from tests.replicas import a_client, manager, until
from tests.servers import valkey

PARTITIONS = 3
TTL_S = 1
SETTINGS = {"partitions": PARTITIONS, "lease_ttl_s": TTL_S, "redis_unsafe": "true"}


@pytest_asyncio.fixture
async def client(tmp_path):
    """
    A connection to a fresh server that knows the MAD ann, just swept by somebody.
    """
    async with valkey(tmp_path) as server, a_client(server.url) as client:
        await client.hset(keys.MADS, "ann", "{}")
        await client.hset(lease_records.WATCH, "swept_ms", time.time_ns() // 10**6)
        client.url, client.port = server.url, server.port
        yield client


async def say(client: redis.asyncio.Redis, kind: str, *instances: str) -> None:
    """
    Publish one heartbeat of each instance of ann.
    """
    fields: list[object] = []
    for instance in instances:
        body = msgspec.Raw(pack({"instance": instance, "epoch": 1}))
        kind_ = f"instance.{kind}"
        fields += [
            "c",
            pack_envelope(Envelope(v=SCHEMA, id="x", kind=kind_, body=body)),
        ]
    stream = keys.ingress(keys.PRESENCE, "ann")
    await client.execute_command("XADD", stream, "*", *fields)


@asynccontextmanager
async def beating(client: redis.asyncio.Redis, *instances: str):
    """
    Heartbeats of these instances all along, a quarter of the TTL apart.
    """

    async def beat() -> None:
        while True:
            await say(client, "beat", *instances)
            await asyncio.sleep(TTL_S / 4)

    heart = asyncio.create_task(beat())
    try:
        yield
    finally:
        heart.cancel()


async def states(url: str) -> dict[str, str]:
    wire = Wire(url)
    try:
        return {one.instance: one.state for one in await lease_records.instances(wire)}
    finally:
        await wire.close()


async def fenced(client: redis.asyncio.Redis, *instances: str) -> bool:
    """
    Whether every partition knows that these are lost.
    """
    fields = [f"ann:{instance}" for instance in instances]
    found = [await client.hmget(key_names.fences(p), fields) for p in range(PARTITIONS)]
    return all(all(fences) for fences in found)


@pytest.mark.parametrize("point", PRESENCE)
async def test_an_owner_that_dies_in_the_middle_of_a_loss_leaves_nobody_untold(
    client, tmp_path, point
):
    """
    Dead behind the declaration, or behind the telling: its successor goes on there.
    """
    lost = [f"i{n}" for n in range(5)]
    await say(client, "join", *lost)
    async with manager(
        tmp_path, client.url, "m1", fail_point=f"{point}:1", **SETTINGS
    ) as first:
        died = await first.ended()
    declared = await states(client.url)
    untold = await client.hlen(lease_records.LOSSES)

    async with manager(tmp_path, client.url, "m1", **SETTINGS):
        await until(lambda: fenced(client, *lost), 10, "all partitions told")
        await until(lambda: _all_told(client), 10, "nothing left to tell")

    assert died == -signal.SIGKILL
    assert dict.fromkeys(lost, "lost") == declared
    assert len(lost) == untold


async def _all_told(client: redis.asyncio.Redis) -> bool:
    return not await client.exists(lease_records.LOSSES)


async def test_a_paused_owner_that_wakes_up_declares_nobody_lost(client, tmp_path):
    """
    Its lane went to another while it slept, so it finds itself superseded.
    """
    # One to whom it would not have to hand the lane over: then it only stops.
    candidates = (f"heir{n}" for n in range(100))
    name = next(n for n in candidates if lane_owner(keys.PRESENCE, [n, "sleeper"]) != n)
    async with manager(tmp_path, client.url, "sleeper", **SETTINGS) as sleeper:
        await sleeper.logged("lane.taken", lane=keys.PRESENCE)
        async with beating(client, "i1"):
            await until(lambda: _is(client.url, "i1", "living"))
            sleeper.send(signal.SIGSTOP)
            async with manager(tmp_path, client.url, name, **SETTINGS) as heir:
                await heir.logged("lane.taken", lane=keys.PRESENCE)
                sleeper.send(signal.SIGCONT)
                await sleeper.logged("lane.superseded", lane=keys.PRESENCE)
                await asyncio.sleep(2 * TTL_S)
                found = await states(client.url)
                lost = sleeper.records("mad.lost") + heir.records("mad.lost")

    assert found == {"i1": "living"}
    assert lost == []


async def _is(url: str, instance: str, state: str) -> bool:
    return (await states(url)).get(instance) == state


async def test_a_bus_that_is_cut_off_again_and_again_hides_no_loss(client, tmp_path):
    """
    Every connection of the owner breaks while half of its MADs fall silent.
    """
    silent, alive = [f"s{n}" for n in range(25)], [f"a{n}" for n in range(25)]
    async with (
        Proxy("127.0.0.1", client.port) as proxy,
        manager(tmp_path, proxy.url(), "m1", **SETTINGS) as owner,
        beating(client, *alive),
    ):
        await owner.logged("lane.taken", lane=keys.PRESENCE)
        await say(client, "join", *silent)
        await until(lambda: _is(client.url, "s24", "living"))
        for _ in range(15):
            proxy.cut()
            await asyncio.sleep(0.1)
        await until(lambda: fenced(client, *silent), 15, "all partitions told")
        found = await states(client.url)
        fences = await client.hkeys(key_names.fences(0))

    assert proxy.connections_cut > 15
    assert {"living"} == {found[name] for name in alive}
    assert sorted(f"ann:{name}".encode() for name in silent) == sorted(fences)
