"""
The clock of the bus's host is set by an hour: nothing is late by it, and nobody dies.

Valkey runs under libfaketime, which sets its wall clock and leaves the monotonic one
alone, as a real step does. Debian's redis-server, with jemalloc, does not start so.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from everbus.bus import AlreadyExists, connect, keys
from everbus.bus.wire import Wire
from everbus.compose.servers import valkey_server
from everbus.compose.settings import load_settings
from everbus.compose.stack_folder import free_port
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store import key_names, lease_records
from everbus.gateway.store.scripts import load_scripts, script
from tests.hands import hands_on
from tests.integration.conftest import (
    PARTITIONS,
    Bus,
    a_replica,
    a_token,
    until,
)
from tests.lineages import lost_nothing
from tests.replicas import settings_of
from tests.servers import _serving, secantus

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime"),
]

STEPS = pytest.mark.parametrize("step_s", [3600, -3600])
LATE_S = 10.0


class Clock:
    """
    The wall clock of a server.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._file.write_text("+0\n")
        self.env = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, by_s: int) -> None:
        self._file.write_text(f"{by_s:+d}\n")


@asynccontextmanager
async def a_bus(folder: Path) -> AsyncIterator[tuple[Bus, Clock]]:
    clock = Clock(folder)
    server = valkey_server(folder, free_port(), aof=False)
    server = replace(server, env={**server.env, **clock.env})
    async with _serving(server, f"redis://127.0.0.1:{server.port}/0") as real:
        bus = Bus(real)
        async with bus.client:
            yield bus, clock


async def stepped(bus: Bus, step_s: int) -> bool:
    seconds, _ = await bus.client.time()
    return abs(seconds - time.time() - step_s) < 60


async def served_by(bus: Bus, *names: str) -> bool:
    owners = await bus.client.mget(
        [key_names.owner(p) for p in (*range(PARTITIONS), keys.PRESENCE)]
    )
    holders = {key_names.holder_of(one.decode())[0] for one in owners if one}
    return all(owners) and holders <= set(names)


@STEPS
async def test_while_everybody_lives_nothing_is_late_and_nobody_dies(
    tmp_path: Path, step_s: int
):
    async with a_bus(tmp_path) as (bus, clock), AsyncExitStack() as parts:
        for name in ("one", "two"):
            await parts.enter_async_context(a_replica(bus.url, name))
        await bus.until_served()
        mad = await parts.enter_async_context(
            connect(bus.url, mad="ada", token=a_token("ada"))
        )
        session = await mad.create_session("u")
        clock.set(step_s)
        await until(lambda: stepped(bus, step_s), "the clock was set")
        worst_s, until_s = 0.0, time.monotonic() + 8.0
        while time.monotonic() < until_s:
            began = time.monotonic()
            mad.append(session.id, "hi")
            await mad.create_session("u", timeout=LATE_S)
            worst_s = max(worst_s, time.monotonic() - began)
            await asyncio.sleep(0.05)
        assert worst_s < LATE_S
        assert mad.losses == 0
        wire = Wire(bus.url)
        [record] = await lease_records.instances(wire, "ada")
        await wire.close()
        assert record.state == "living"


@STEPS
async def test_the_lanes_of_a_dead_manager_are_taken(tmp_path: Path, step_s: int):
    """
    Its keys and its place among the living are put back as it left them.
    """
    async with a_bus(tmp_path) as (bus, clock):
        wire = Wire(bus.url)
        await load_scripts(wire)
        await wire.call(*script("register", [key_names.REPLICAS], "dead", 5_000))
        for lane in (*range(PARTITIONS), keys.PRESENCE):
            own = [key_names.owner(lane), key_names.epoch(lane)]
            await wire.call(*script("acquire", own, "dead", "1", 5_000))
        await wire.close()
        clock.set(step_s)
        await until(lambda: stepped(bus, step_s), "the clock was set")
        async with a_replica(bus.url, "one"):
            await until(lambda: served_by(bus, "one"), "all lanes taken", LATE_S)


@STEPS
async def test_a_mad_that_died_before_is_missed_in_time(tmp_path: Path, step_s: int):
    """
    Neither an hour later nor, since all looks late, together with those that live.
    """
    ttl_s = 6
    async with (
        a_bus(tmp_path) as (bus, clock),
        a_replica(bus.url, "one", EVERBUS_LEASE_TTL_S=str(ttl_s)),
    ):
        await bus.until_served()
        wire = Wire(bus.url)
        async with connect(bus.url, mad="eva", token=a_token("eva")):
            dead = await died(bus)
            began = time.monotonic()
            clock.set(step_s)

            async def missed() -> bool:
                found = await lease_records.instances(wire, "bob")
                return [one.state for one in found] == ["lost"]

            await until(missed, f"{dead} is lost", ttl_s + LATE_S)
            took_s = time.monotonic() - began
            [living] = await lease_records.instances(wire, "eva")
        await wire.close()
        assert living.state == "living"
        assert took_s > ttl_s / 2


async def died(bus: Bus) -> str:
    """
    An instance of `bob` that lives now and says nothing any more.
    """
    from tests.integration.presence.leases import said

    await bus.register("bob")
    await bus.publish("bob", keys.PRESENCE, said("join", "i1"))  # type: ignore[arg-type]
    wire = Wire(bus.url)

    async def known() -> bool:
        return bool(await lease_records.instances(wire, "bob"))

    await until(known, "bob is known")
    await wire.close()

    return "i1"


async def test_young_sessions_are_found_after_the_clock_was_set_back(tmp_path: Path):
    """
    By the clock they could be nowhere else but in the hot tier, which lost them; and
    to make one of them again replaces nothing.
    """
    async with a_bus(tmp_path) as (bus, clock), secantus(tmp_path) as mongo:
        named = {"EVERBUS_MONGO_URL": mongo.url, "EVERBUS_MONGO_DATABASE": "clock"}
        cold = {"cold_store": "folder", "cold_folder": tmp_path / "cold"}
        tiers = {"mongo_url": mongo.url, "mongo_database": "clock"}
        given = settings_of(bus.url, **tiers, **cold)
        settings = load_settings(given | {"EVERBUS_PARTITIONS": str(PARTITIONS)})
        # The lineage was begun long before, so that only the clock is in doubt.
        for p in range(PARTITIONS):
            await lost_nothing(bus.client, p)
        async with (
            a_replica(bus.url, "one", **named),
            hands_on(settings, disarmed) as hands,
            hands.draining(),
        ):
            await bus.until_served()
            async with connect(bus.url, mad="ada", token=a_token("ada")) as mad:
                made = [await mad.create_session("u") for _ in range(6)]
                for one in made:
                    await mad.append_and_wait(one.id, "said", durability="warm")
                    await mad.suspend_session(one.id)
                await bus.client.delete(
                    *(
                        key_names.tombstone(bus.partition(one.id), one.id)
                        for one in made
                    )
                )
                clock.set(-15)

                async def back() -> bool:
                    seconds, _ = await bus.client.time()
                    return bool(seconds < time.time() - 10)

                await until(back, "the clock was set")
                for one in made[:3]:
                    found = await mad.get_session(one.id)
                    assert (found.version, found.last_seq) == (2, 1)
                for one in made[3:]:
                    with pytest.raises(AlreadyExists):
                        await mad.create_session("other", session_id=one.id)
                    page = await mad.timeline(one.id)
                    assert [entry.entry for entry in page.entries] == ["said"]
