"""
Connecting and leaving: credentials, the environment, a bus that says no.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from everbus.bus import (
    ReplyTimeout,
    Unauthenticated,
    Unavailable,
    connect,
    keys,
)
from tests.integration.conftest import (
    PARTITIONS,
    Bus,
    MadFactory,
    a_replica,
    a_token,
    only_grants,
    until,
)
from tests.servers import valkey

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("manager"),
]


async def test_a_mad_finds_the_bus_and_its_token_in_the_environment(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EVERBUS_MAD_URL", bus.url + "?client_name={mad}")
    monkeypatch.setenv("EVERBUS_MAD", "rover")
    monkeypatch.setenv("EVERBUS_TOKEN", a_token("rover"))

    async with connect() as mad:
        session = await mad.create_session("ada")
        clients = await bus.client.client_list()

    assert session.acl == ("host:rover",)
    assert "rover" in {client["name"].removeprefix("mad-") for client in clients}


async def test_a_wrong_password_is_told_at_once(bus: Bus):
    await bus.client.acl_setuser("locked", enabled=True, passwords=["+right"])

    with pytest.raises(Unauthenticated, match="refuses the credentials"):
        async with connect(_as(bus.url, "locked", "wrong"), mad="locked", token="t"):
            pass


async def test_a_mad_without_its_rights_is_told_and_served_once_it_has_them(bus: Bus):
    """
    It may look, but not publish: the call tells why, and the append waits.
    """
    entered = []
    await bus.client.acl_setuser(
        "mute",
        enabled=True,
        passwords=["+secret"],
        commands=[
            *("+client|setname", "+hmget", "+xread", "+subscribe", "+publish"),
            "+ping",
        ],
        keys=["*"],
        channels=["*"],
    )
    url = _as(bus.url, "mute", "secret")

    async def use() -> None:
        async with connect(url, mad="mute", token=a_token("mute")) as mad:
            entered.append(mad)
            with pytest.raises(Unavailable, match="Rights of a MAD"):
                await mad.create_session("ada", timeout=1)
            mad.append("s1", "hi")
            with pytest.raises(Unavailable, match="Rights of a MAD"):
                await mad.flush(timeout=0.2)
            await bus.client.acl_setuser("mute", commands=["+xadd"])
            await mad.flush()

    await use()
    assert len(entered) == 1, "it was refused to publish, not to connect"


async def test_an_ingress_of_another_type_is_told_and_got_over(
    bus: Bus, mad: MadFactory
):
    """
    The bus's own words are in the error; what waits is sent once it is mended.
    """
    async with mad("squatted") as speaker:
        session = await speaker.create_session("ada")
        ingress = keys.ingress(bus.partition(session.id), "squatted")
        await bus.client.rename(ingress, "put-aside")
        await bus.client.set(ingress, "no stream")

        speaker.append(session.id, "hi")
        with pytest.raises(Unavailable, match="WRONGTYPE"):
            await speaker.flush(timeout=0.3)
        await bus.client.rename("put-aside", ingress)
        await speaker.flush()
        await bus.until_settled("squatted")

    assert [entry.entry for entry in await bus.entries(session.id)] == ["hi"]


async def test_a_garbled_wake_up_is_only_a_hint(bus: Bus, mad: MadFactory):
    async with mad("waker") as speaker:
        session = await speaker.create_session("ada")
        [channel] = await bus.client.pubsub_channels("eb:wake:waker:*")

        await bus.client.publish(channel, b"\xc1 no msgpack")

        assert (await speaker.get_session(session.id)).id == session.id


async def test_a_block_that_ends_by_an_exception_still_brings_its_appends(
    bus: Bus, mad: MadFactory
):
    session = bus.a_session_id(1)

    async def fail() -> None:
        async with mad("hasty") as speaker:
            await speaker.create_session("ada", session_id=session)
            speaker.append(session, "hi")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await bus.until_settled("hasty")

    assert [entry.entry for entry in await bus.entries(session)] == ["hi"]


async def test_managers_older_than_the_sdk_are_told_apart(bus: Bus):
    await bus.client.hset(keys.CONFIG, "schema", 0)
    try:
        with pytest.raises(Unavailable, match="upgrade the managers first"):
            async with connect(bus.url, mad="modern", token="t"):
                pass
    finally:
        await bus.client.hset(keys.CONFIG, "schema", 1)


async def test_a_cut_wake_up_channel_is_taken_up_again(bus: Bus, mad: MadFactory):
    """
    Killed while a reply is on its way: the sweep finds it, then all is as before.
    """
    async with mad("deafened") as speaker:
        session = await speaker.create_session("ada")
        before = await _listeners(bus)
        await bus.client.client_kill_filter(_type="pubsub", skipme=True)

        after = await speaker.update_session(session.id, {"context_summary": {"a": 1}})

        async def listening() -> bool:
            return await _listeners(bus) == before

        await until(listening, "the channel is listened to again")
    assert after.version == 2


async def test_a_request_that_its_caller_gave_up_disturbs_no_other(
    bus: Bus, mad: MadFactory, monkeypatch: pytest.MonkeyPatch
):
    """
    Nobody gets its reply, nothing of it stays behind here or on the bus, and what
    became of it can be asked.
    """
    async with mad("fickle") as speaker:
        session = await speaker.create_session("ada")
        partition = bus.partition(session.id)
        publisher, updates = speaker._requests._publisher, []
        publish = publisher.publish

        def noted(*envelope, **how):
            outgoing = publish(*envelope, **how)
            if outgoing.envelope.kind == "session.update":
                updates.append(outgoing.envelope.id)
            return outgoing

        monkeypatch.setattr(publisher, "publish", noted)
        gone = []
        for n in range(20):
            asking = asyncio.create_task(
                speaker.update_session(session.id, {"context_summary": {"n": n}})
            )
            # Published in its first step: behind this, the reply may come any time.
            await asyncio.sleep(0)
            asking.cancel()
            gone.append(asking)
            assert (await speaker.get_session(session.id)).version == n + 2
        assert [one.cancelled() for one in gone] == [True] * 20
        replies = speaker._requests._replies
        assert replies._expected == {}

        told = {(await speaker.outcome(one)).state for one in updates}
        late = await speaker.cancel(updates[0])
        streams = [keys.reply(partition, "fickle", one) for one in updates]

        async def unlinked() -> bool:
            return not await bus.client.exists(*streams)

        await until(unlinked, "the replies that nobody waited for are gone", 5)

    assert (len(updates), told, late.state) == (20, {"applied"}, "applied")


async def test_a_request_that_nobody_answers_leaves_nothing_behind(unserved: Bus):
    """
    Cancelled or out of time: a MAD that runs for months must not gather them.
    """
    await unserved.client.hset(keys.CONFIG, "partitions", PARTITIONS)
    given = {"mad": "lonely", "token": a_token("lonely")}
    async with only_grants(unserved.url), connect(unserved.url, **given) as mad:
        asking = asyncio.create_task(mad.get_session("s1"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(ReplyTimeout) as late:
            await mad.get_session("s1", timeout=0.1)

        replies = mad._requests._replies
        assert (replies._expected, replies._ready) == ({}, {})
    assert late.value.command_id == f"{mad.instance}.{unserved.partition('s1')}.2"


async def test_a_spool_that_has_met_its_bus_opens_without_it(tmp_path: Path):
    """
    What is appended while the bus is away outlives the process, and is there, in
    order and once, when another one has found the bus again.
    """
    file, session = tmp_path / "spool.db", "s1"
    async with valkey(tmp_path, aof=True) as server:
        given = {"url": server.url, "mad": "rover", "token": a_token("rover")}
        with pytest.raises(Unavailable, match="everbus manager"):
            async with connect(**given, spool=file, timeout=0.1):
                pass
        async with a_replica(server.url, "one"), connect(**given, spool=file) as mad:
            await mad.create_session("ada", session_id=session)
        await server.kill()

        with pytest.raises(Unavailable):
            async with connect(**given, timeout=0.1):
                pass
        began = time.monotonic()
        for n in range(2):
            async with connect(**given, spool=file, timeout=30) as mad:
                mad.append(session, n)
        assert time.monotonic() - began < 10, "leaving does not wait for the bus"
        await server.restart()
        async with a_replica(server.url, "two"), connect(**given, spool=file) as mad:
            await mad.flush()
            await mad.append_and_wait(session, 2)
            page = await mad.timeline(session)

    assert [entry.entry for entry in page.entries] == [0, 1, 2]


async def test_a_newcomer_writes_nothing_to_a_bus_that_is_not_its_own(tmp_path: Path):
    """
    What is numbered for other partitions would be lost there.
    """
    file = tmp_path / "spool.db"
    async with valkey(tmp_path, aof=False) as server:
        token = a_token("rover")
        given = {"url": server.url, "mad": "rover", "token": token, "spool": file}
        async with (
            only_grants(server.url),
            redis.asyncio.from_url(server.url) as client,
        ):
            await client.hset(keys.CONFIG, "partitions", 4)
            async with connect(**given):
                pass
            await client.delete(keys.CONFIG)
            await client.flushall()

            async with connect(**given, timeout=0.1) as mad:
                mad.append("s1", "hi")
                await client.hset(keys.CONFIG, "partitions", 2)
                with pytest.raises(Unavailable, match="this bus has 2 partitions"):
                    await mad.flush(timeout=1)
                assert await client.keys("eb:{*}:in:rover") == [
                    keys.ingress(keys.PRESENCE, "rover").encode()
                ]

                await client.hset(keys.CONFIG, "partitions", 4)
                await mad.flush()
                assert mad.waiting == 0
                assert await client.hexists(keys.MADS, "rover")


@pytest.mark.parametrize("spooled", [False, True])
async def test_without_a_token_nobody_connects(bus: Bus, tmp_path: Path, spooled: bool):
    """
    Nobody could send what lies in the spool, since no token and no grant does.
    """
    spool = tmp_path / "s.db" if spooled else None
    with pytest.raises(Unauthenticated, match="no token"):
        async with connect(bus.url, mad="rover", token="", spool=spool):
            pass


async def _listeners(bus: Bus) -> int:
    found: list[Any] = await bus.client.pubsub_channels("eb:wake:deafened:*")
    await asyncio.sleep(0)
    return len(found)


def _as(url: str, user: str, password: str) -> str:
    return url.replace("redis://", f"redis://{user}:{password}@")
