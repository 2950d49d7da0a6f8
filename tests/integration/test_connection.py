"""
Connecting and leaving: credentials, the environment, a bus that says no.
"""

import asyncio
from typing import Any

import pytest

from bus import Forbidden, Unauthenticated, Unavailable, connect, keys
from tests.integration.conftest import Bus, MadFactory, a_token, until

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

    assert session.acl == ("rover",)
    assert "rover" in {client["name"].removeprefix("mad-") for client in clients}


async def test_a_wrong_password_is_told_at_once(bus: Bus):
    await bus.client.acl_setuser("locked", enabled=True, passwords=["+right"])

    with pytest.raises(Unauthenticated, match="refuses the credentials"):
        async with connect(_as(bus.url, "locked", "wrong"), mad="locked", token=""):
            pass


async def test_a_mad_without_its_rights_is_told_by_every_call(bus: Bus):
    """
    It may look, but not publish: what waits ends at once, and so does the next.
    """
    await bus.client.acl_setuser(
        "mute",
        enabled=True,
        passwords=["+secret"],
        commands=["+hmget", "+xread", "+subscribe", "+ping"],
        keys=["*"],
        channels=["*"],
    )
    url = _as(bus.url, "mute", "secret")

    async def use() -> None:
        async with connect(url, mad="mute", token=a_token("mute")) as mad:
            with pytest.raises(Forbidden):
                await mad.create_session("ada")
            with pytest.raises(Forbidden):
                mad.append("s1", "hi")

    # The flush at the end of the block says so as well.
    with pytest.raises(Forbidden, match="Rights of a MAD"):
        await use()


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
            async with connect(bus.url, mad="modern", token=""):
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


async def _listeners(bus: Bus) -> int:
    found: list[Any] = await bus.client.pubsub_channels("eb:wake:deafened:*")
    await asyncio.sleep(0)
    return len(found)


def _as(url: str, user: str, password: str) -> str:
    return url.replace("redis://", f"redis://{user}:{password}@")
