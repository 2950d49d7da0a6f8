"""
Lanes on a network that loses packets: a connection that a lane gave up closes late, and
late bytes come behind newer ones; nothing is stolen, lost or doubled.

What one such connection can do is forced byte for byte in test_late_bytes.py; here TCP
does what it does by itself.
"""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from everbus.bus.wire import Wire, WireFailed
from everbus.compose.processes import start
from everbus.compose.servers import valkey_server
from everbus.compose.stack_folder import free_port
from everbus.gateway.lane import loop
from tests.closed_load import ClosedLoad
from tests.commit_log import CommitLog
from tests.packet_loss import THERE, lossy_link, why_not
from tests.replicas import (
    a_client,
    a_mad,
    epoch_in,
    letters,
    owners,
    replica_here,
    settled,
    until,
)
from tests.servers import RealServer

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(300)]

PARTITIONS = 2
UPDATES = 400
WITHIN_S = 120.0


@pytest.fixture
def link():
    if reason := why_not():
        pytest.skip(reason)
    with lossy_link() as made:
        yield made


@asynccontextmanager
async def beyond(link, folder):
    """
    A Valkey that only *link* reaches.
    """
    spec = valkey_server(folder, free_port())
    url = f"redis://{THERE}:{spec.port}/0"
    with (folder / "valkey.conf").open("a") as config:
        config.write(f"\nbind {THERE}\nprotected-mode no\n")

    async def ready(_):
        wire = Wire(url, name="ready")
        try:
            return await wire.call("PING") == b"PONG"
        except WireFailed:
            return False
        finally:
            await wire.close()

    inside = ("ip", "netns", "exec", link.namespace, *spec.argv)
    server = RealServer(await start(replace(spec, argv=inside, ready=ready)), url)
    try:
        yield server
    finally:
        await server.kill()


async def nudge(replica):
    """
    Interrupt the waits of its lanes, again and again, as changes of the MADs do.
    """
    while True:
        await asyncio.sleep(0.05)
        for lane in tuple(replica.lanes.values()):
            lane._nudge()


async def epochs(client):
    async def owned():
        return len(await owners(client, PARTITIONS)) == PARTITIONS

    await until(owned, WITHIN_S)
    found = await owners(client, PARTITIONS)

    return [epoch_in(found[p]) for p in range(PARTITIONS)]


@pytest.mark.parametrize("share", [0.01, 0.05])
async def test_lanes_take_and_commit_everything_once_whatever_packets_are_lost(
    link, tmp_path, monkeypatch, share
):
    # So that lanes give up connections whose packets are still on their way.
    monkeypatch.setattr(loop, "EXCHANGE_TIMEOUT_S", 0.5)
    async with (
        beyond(link, tmp_path) as server,
        replica_here(
            server.url, partitions=PARTITIONS, lane_ttl_ms=5_000, plaintext="redis"
        ) as replica,
        a_mad(server.url, "ann") as ann,
        a_mad(server.url, "bob") as bob,
        a_client(server.url) as client,
    ):
        before = await epochs(client)
        sessions = [(await ann.create_session("ada")).id for _ in range(4)]
        load = ClosedLoad([ann, bob], sessions)
        nudging = asyncio.create_task(nudge(replica))
        try:
            async with load.running():
                link.share = share
                await load.more(UPDATES, WITHIN_S)
                link.share = 0.0
                await load.more(20, WITHIN_S)
                load.stop()
        finally:
            nudging.cancel()
        # Nothing is in a pending list that its lane does not know of.
        await settled(client, WITHIN_S)
        log = await CommitLog.read(client, PARTITIONS)
        buried = await letters(client, PARTITIONS)
        after = await epochs(client)

    load.check(log)
    assert buried == []
    assert link.lost > 0
    # Connections were given up: each has an epoch of its own.
    assert all(b > a for a, b in zip(before, after, strict=True))
