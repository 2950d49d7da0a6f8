"""
The lane of the leases by itself, on a real server, and heartbeats by hand.

The lane is driven as a replica would drive it, with leases of half a second. What
takes a minute in life (an outage) is put into the keys.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from everbus.bus import keys
from everbus.bus.messages import SCHEMA, Envelope, pack, unpack_envelope
from everbus.bus.wire import Wire
from everbus.gateway.lane.fencing import InstanceLost
from everbus.gateway.presence import lane as presence
from everbus.gateway.presence.lane import PresenceLane, PresenceParts
from everbus.gateway.store import key_names, lease_records
from everbus.gateway.store.scripts import load_scripts, script
from tests.integration.conftest import (
    PARTITIONS,
    Bus,
    until,
)

TTL_MS = 500
# Beyond the TTL: how late a loss may be noticed.
MARGIN_S = 2.0


def said(kind: str, instance: str, epoch: int = 1) -> Envelope:
    body = msgspec.Raw(pack({"instance": instance, "epoch": epoch}))
    return Envelope(v=SCHEMA, id="x", kind=f"instance.{kind}", body=body)


class LeaseBook:
    """
    What is known of the instances, and heartbeats by hand.
    """

    def __init__(self, bus: Bus, wire: Wire) -> None:
        self.bus = bus
        self.wire = wire

    async def say(self, kind: str, *instances: str, mad="ann", epoch=1) -> str:
        beats = [said(kind, instance, epoch) for instance in instances]
        return await self.bus.publish(mad, keys.PRESENCE, *beats)

    async def of(self, instance: str, mad="ann") -> lease_records.InstanceRecord | None:
        found = await lease_records.instances(self.wire, mad)
        return next((one for one in found if one.instance == instance), None)

    async def until(self, instance: str, state: str, mad="ann", within_s=5.0):
        """
        The record of *instance*, once its state is *state*.
        """
        found = None

        async def claim() -> bool:
            nonlocal found
            found = await self.of(instance, mad)
            return found is not None and found.state == state

        await until(claim, f"{instance} {state}", within_s)
        return found

    async def swept(self, times: int = 2) -> None:
        """
        Return after so many sweeps; the second one began later than now.
        """
        seen = await self.bus.client.hget(lease_records.WATCH, "swept_ms")

        async def claim() -> bool:
            return await self.bus.client.hget(lease_records.WATCH, "swept_ms") != seen

        for _ in range(times):
            await until(claim, "a sweep", 3)
            seen = await self.bus.client.hget(lease_records.WATCH, "swept_ms")

    async def unswept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Return when no sweep is due for a minute; for `hasty` tests.
        """
        monkeypatch.setattr(presence, "SWEEP_S", 60.0)
        await self.swept(1)
        await asyncio.sleep(0.15)

    async def settle(self) -> None:
        """
        Return when nobody has a grace any more: what comes now is told from silence.
        """

        async def claim() -> bool:
            watch = await lease_records.watch(self.wire)
            return watch.idle_ms is not None and not watch.grace_ms

        await until(claim, "no grace", 3)

    async def told(self, partition=0) -> list[InstanceLost]:
        """
        What one partition was told of, in order.
        """
        entries = await self.bus.client.xrange(keys.ingress(partition, keys.GATEWAY))
        return [
            msgspec.msgpack.decode(
                unpack_envelope(fields[b"c"]).body, type=InstanceLost
            )
            for _, fields in entries
        ]

    async def outage(self, seconds: int) -> None:
        """
        Make it so that nobody has swept for that long, and all leases are over.
        """
        client, ms = self.bus.client, seconds * 1000
        swept = int(await client.hget(lease_records.WATCH, "swept_ms"))
        await client.hset(lease_records.WATCH, "swept_ms", swept - ms)
        await client.hset(lease_records.WATCH, "grace_ms", 0)
        for member, _ in await client.zrange(
            lease_records.DEADLINES, 0, -1, withscores=True
        ):
            await client.zincrby(lease_records.DEADLINES, -ms, member)
            await client.delete(lease_records.lease(member.decode()))


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Make passes and sweeps come many times as often.
    """
    monkeypatch.setattr(presence, "POLL_S", 0.02)
    monkeypatch.setattr(presence, "SWEEP_S", 0.1)


@asynccontextmanager
async def a_book(bus: Bus) -> AsyncIterator[LeaseBook]:
    """
    An empty bus that tells of expired keys, and that somebody has just swept.
    """
    await bus.client.flushall()
    await bus.client.hset(lease_records.WATCH, "swept_ms", time.time_ns() // 10**6)
    await bus.client.config_set("notify-keyspace-events", "Kx")
    wire = Wire(bus.url)
    yield LeaseBook(bus, wire)
    await wire.close()


async def acquired(wire: Wire, name="one") -> str:
    await load_scripts(wire)
    own = [key_names.owner(keys.PRESENCE), key_names.epoch(keys.PRESENCE)]
    taken, owner = await wire.call(*script("acquire", own, name, name, 60_000))
    assert taken == 1
    return owner.decode()


def parts(url: str, ttl_ms: int = TTL_MS):
    return PresenceParts(url, PARTITIONS, ttl_ms)


@asynccontextmanager
async def watched(book: LeaseBook, name="one", *, url="", ttl_ms=TTL_MS, settle=True):
    """
    The lane of the leases, from its acquisition to its clean end.
    """
    owner = await acquired(book.wire, name)
    lane = PresenceLane(owner, parts(url or book.bus.url, ttl_ms))
    lane.admit(frozenset({"ann", "bob", keys.GATEWAY}))
    running = asyncio.create_task(lane.run())
    try:
        if settle:
            await book.settle()
        yield lane
    finally:
        lane.stop()
        await asyncio.wait_for(running, 5)
        await book.wire.call(
            *script("release", [lease_records.OWNER], owner, keys.NEWS)
        )


def late_ms(lost: lease_records.InstanceRecord) -> int:
    """
    How long after its deadline an instance was declared lost; negative if it lives.
    """
    return lost.ended_ms - lost.heard_ms - TTL_MS


async def told_all(book: LeaseBook) -> bool:
    return not await book.bus.client.exists(lease_records.LOSSES)
