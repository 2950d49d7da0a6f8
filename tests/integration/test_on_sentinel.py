"""
The bus behind three Sentinels: a failover moves every connection to the next primary.
"""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest

from everbus.bus.connector import connector_to
from everbus.bus.errors import EverbusError, Unauthenticated
from everbus.bus.subscription import Subscription
from everbus.bus.wire import Wire
from everbus.compose.exit_codes import Failed
from everbus.compose.role_processes import run_manager
from everbus.compose.settings import load_settings
from everbus.gateway.failpoints import disarmed
from tests.commandline import CommandLine
from tests.hands import hands_on
from tests.replicas import a_mad, a_token, settings_of
from tests.sentinels import NAME, ask, sentinels
from tests.servers import DEBIAN_REDIS, secantus

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.timeout(90),
    pytest.mark.skipif(not DEBIAN_REDIS, reason="no redis-server on the PATH"),
]

# Sentinels of these tests wait 1 s for a silent primary, then elect another.
SERVED_WITHIN_S = 12.0


@asynccontextmanager
async def served(url, **chosen):
    """
    A manager in this process, from its start to its orderly end.
    """
    stop = asyncio.Event()
    given = settings_of(url, replica="here", **chosen)
    running = asyncio.create_task(run_manager(load_settings(given), stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await running


async def appended(mad, session, n):
    """
    Append entry *n*, again and again until it is acknowledged; the seconds it took.
    """
    began = time.monotonic()
    while True:
        try:
            await mad.append_and_wait(
                session, {"n": n}, durability="replicated", timeout=5
            )
            return time.monotonic() - began
        except EverbusError:
            assert time.monotonic() - began < SERVED_WITHIN_S, "never served again"
            await asyncio.sleep(0.05)


async def entries(mad, session):
    """
    The newest entries of the session; one that was sent again may be there twice.
    """
    found = (await mad.get_session(session)).recent_timeline

    return [one.entry["n"] for one in found]


async def test_the_next_primary_serves_after_the_death_of_the_first(tmp_path):
    """
    Calls, heartbeats and events go on; what was acknowledged before is there, once.
    """
    async with (
        sentinels(tmp_path) as bus,
        served(bus.url),
        a_mad(bus.url) as mad,
    ):
        session = (await mad.create_session("ada")).id
        await mad.join(session)
        for n in range(10):
            await mad.append_and_wait(session, {"n": n}, durability="replicated")
        before = await bus.primary()

        await before.kill()
        took_s = await appended(mad, session, 10)
        await appended(mad, session, 11)

        assert await bus.switched(before) != before
        found = await entries(mad, session)
        assert found[:10] == list(range(10))
        assert sorted(set(found)) == list(range(12))
        assert mad.losses == 0
        assert took_s < SERVED_WITHIN_S
        async with a_mad(bus.url, "later") as later:
            assert await entries(later, session) == found


async def test_an_orderly_failover_loses_nothing_and_a_hint_tells_at_once(tmp_path):
    async with (
        sentinels(tmp_path) as bus,
        served(bus.url),
        a_mad(bus.url) as mad,
    ):
        session = (await mad.create_session("ada")).id
        count, listening_at = 0, time.monotonic() + 2.0
        while time.monotonic() < listening_at:
            await appended(mad, session, count)
            count += 1
        moving = asyncio.create_task(bus.fail_over())
        while not moving.done() or count < 100:
            await appended(mad, session, count)
            count += 1

        await moving
        found = await entries(mad, session)
        assert list(dict.fromkeys(found)) == list(range(count))[found[0] :]


async def test_a_hint_closes_the_connections_to_a_primary_that_hangs(tmp_path):
    """
    A hung primary keeps its sockets open: without the hint each waits for its deadline.
    """
    async with sentinels(tmp_path) as bus:
        before = await bus.primary()
        wire = Wire(bus.url, name="test")
        heard, subscribed = asyncio.Event(), asyncio.Event()
        listening = asyncio.create_task(
            Subscription(
                bus.url,
                "news",
                on_message=lambda _: heard.set(),
                on_subscribed=subscribed.set,
            ).run()
        )
        await subscribed.wait()
        assert await wire.call("PING") == b"PONG"
        waiting = asyncio.create_task(
            wire.exchange([("XREAD", "BLOCK", 0, "STREAMS", "s", "$")], timeout_s=60)
        )
        await asyncio.sleep(2.0)  # the Sentinels are listened to by now

        before.pause()
        try:
            subscribed.clear()
            after = await bus.switched(before)
            with pytest.raises(EverbusError):
                async with asyncio.timeout(3):
                    await waiting
            async with asyncio.timeout(5):
                await subscribed.wait()
            assert await wire.call("PUBLISH", "news", "x") == 1
            assert str(after.port).encode() in await wire.call("INFO", "server")
            await asyncio.wait_for(heard.wait(), 2)
        finally:
            before.resume()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await wire.close()


async def test_a_demoted_primary_is_left_at_its_first_refusal(tmp_path):
    async with sentinels(tmp_path) as bus:
        wire = Wire(bus.url, name="test")
        await wire.call("SET", "a", 1)
        before = await bus.primary()
        others = [one for one in bus.servers if one is not before]
        # Demoted behind the Sentinels' back; no connection is closed by that.
        await ask(before.url, "REPLICAOF", "127.0.0.1", others[0].port)

        with pytest.raises(EverbusError, match="refuses for now"):
            await wire.call("SET", "a", 2)

        assert not wire.connected
        await wire.close()


async def test_a_minority_of_sentinels_is_enough_to_lose_and_not_to_decide(tmp_path):
    async with sentinels(tmp_path) as bus:
        await bus.sentinels[0].kill()
        assert await ask(bus.url, "PING") == b"PONG"

        await bus.sentinels[1].kill()
        with pytest.raises(EverbusError, match="2 must agree"):
            await ask(bus.url, "PING")


async def test_sentinels_with_a_password_are_asked_with_their_own(tmp_path):
    async with sentinels(tmp_path) as bus:
        for one in bus.sentinels:
            await ask(one.url, "ACL", "SETUSER", "default", "resetpass", ">for-us")
        given = {"EVERBUS_REDIS_URL": bus.url, "EVERBUS_SENTINEL_PASSWORD": "for-us"}

        assert await ask(load_settings(given).redis_url, "PING") == b"PONG"
        with pytest.raises(Unauthenticated, match="EVERBUS_SENTINEL_PASSWORD"):
            await ask(bus.url, "PING")


async def test_an_unknown_name_is_told(tmp_path):
    async with sentinels(tmp_path) as bus:
        with pytest.raises(EverbusError, match="No such master"):
            await ask(bus.url.replace(f"/{NAME}", "/other"), "PING")
        connection = await connector_to(bus.url, protocol=2).open()
        await connection.disconnect(nowait=True)


async def test_a_manager_refuses_a_primary_that_a_failover_would_rob(tmp_path):
    async with sentinels(tmp_path, min_replicas=0) as bus:
        with pytest.raises(Failed, match="min-replicas-to-write 1"):
            await run_manager(load_settings(settings_of(bus.url)), asyncio.Event())
        async with served(bus.url, redis_unsafe="true"), a_mad(bus.url) as mad:
            await mad.create_session("ada")


async def test_the_command_line_and_the_sync_calls_find_the_primary(tmp_path):
    def sync_calls(url):
        from everbus.bus import sync

        with sync.connect(url, mad="sync", token=a_token()) as mad:
            return mad.create_session("ada").version

    async with sentinels(tmp_path) as bus, served(bus.url):
        assert await asyncio.to_thread(sync_calls, bus.url) == 1
        shell = CommandLine(bus.url)
        for command in (("doctor", "-o", "json"), ("mads", "list", "-o", "json")):
            process = await shell.start(*command)
            said, talk = await process.communicate()
            assert b"bus_config" in said or b"sync" in said, talk


@pytest.mark.campaign
async def test_a_failover_without_a_minimum_of_replicas_applies_nothing_twice(tmp_path):
    """
    Under load: what `hot` lost is not in MongoDB and is gone; fire-and-forget is all
    there, once and in order, and so is `warm`.
    """
    (tmp_path / "mongo").mkdir()
    async with (
        sentinels(tmp_path, min_replicas=0) as bus,
        secantus(tmp_path / "mongo") as mongo,
    ):
        chosen = {"mongo_url": mongo.url, "mongo_database": "failover"}
        chosen |= {"cold_store": "folder", "cold_folder": tmp_path / "cold"}
        settings = load_settings(settings_of(bus.url, **chosen))
        async with (
            served(bus.url, redis_unsafe="true", **chosen),
            hands_on(settings, disarmed) as hands,
            hands.draining(),
            a_mad(bus.url) as mad,
            a_mad(bus.url, "warm") as warm,
        ):
            session = (await mad.create_session("ada", durability="warm")).id
            moving = asyncio.create_task(bus.fail_over())
            kept, count = [], 0
            while not moving.done() or count < 400:
                mad.append(session, f"free-{count}")
                if count % 20 == 0:
                    with suppress(EverbusError):
                        text = f"warm-{count}"
                        await warm.append_and_wait(session, text, durability="warm")
                        kept.append(text)
                count += 1
                await asyncio.sleep(0)
            await moving
            await mad.flush(settled=True, timeout=30)
            texts, after = [], 0
            while after is not None:
                page = await mad.timeline(session, after=after, timeout=20)
                texts += [one.entry for one in page.entries]
                after = page.next
    assert len(texts) == len(set(texts))
    free = [one for one in texts if one.startswith("free")]
    assert free == [f"free-{n}" for n in range(count)]
    assert set(kept) <= set(texts)
