"""
A MAD with a spool, and one without, while the bus is away: killed, cut off, deaf.

What is in a timeline is read from the server's own keys.
"""

import asyncio
import shutil
import time
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
import uuid_utils

import everbus as sdk
from everbus.bus import keys
from everbus.bus.lease import Lease
from everbus.bus.messages import command_id
from everbus.bus.publisher import Publisher
from everbus.bus.spool import Spool
from tests.builders import an_envelope, an_unsent
from tests.integration.conftest import (
    PARTITIONS,
    Bus,
    a_grant,
    a_replica,
    a_token,
    in_order,
    until,
)
from tests.proxy import Proxy
from tests.unit.fake_bus import FakeCredential

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPEN_AFTER_S = 0.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting(server):
    """
    A bus that comes back with all it had, and a replica that outlives it.
    """
    made = Bus(server)
    async with made.client, a_replica(server.url, "one"):
        await made.until_served()
        yield made


@pytest.fixture(autouse=True)
def _soon_open(monkeypatch):
    monkeypatch.setattr("everbus.bus.bus_breaker.OPEN_AFTER_S", OPEN_AFTER_S)
    # What only costs time: how long a deaf bus is waited for.
    monkeypatch.setattr(
        "everbus.bus.wire.Wire.exchange.__kwdefaults__", {"timeout_s": 0.5}
    )


def a_mad(url, name, path=None, **options):
    return sdk.connect(
        url, mad=name, token=a_token(name), spool=path, lease=False, **options
    )


@asynccontextmanager
async def killed(bus):
    """
    For the time of the block there is no bus.
    """
    await bus.server.kill()
    try:
        yield
    finally:
        await bus.server.restart()
        await bus.client.connection_pool.disconnect()


async def refused_at_once(mad, session):
    """
    What a request is told, within a moment.
    """
    began = time.monotonic()
    with pytest.raises(sdk.Unavailable) as refused:
        await mad.update_session(session, {"tags": ["x"]}, timeout=30)
    assert time.monotonic() - began < 0.2
    return refused.value


async def is_away(mad):
    publisher = mad._requests._publisher

    async def claim():
        return publisher.away_s > OPEN_AFTER_S

    await until(claim, "the bus is known to be away")


async def test_an_update_that_nobody_waits_for_survives_with_its_place(
    lasting, tmp_path
):
    """
    Its process dies while the bus is away; the next one sends what it had left.
    """
    async with a_mad(lasting.url, "later", tmp_path / "dead") as mad:
        session = (await mad.create_session("ada")).id
        async with killed(lasting):
            for n in range(3):
                mad.append(session, n)
                mad.update_later(session, {"work_in_progress": {"n": n}})
            # What a SIGKILL leaves on the disk; this one lives on, and sends as well.
            for end in ("", "-wal"):
                shutil.copy(f"{tmp_path}/dead{end}", f"{tmp_path}/heir{end}")
    async with a_mad(lasting.url, "later", tmp_path / "heir") as mad:
        await mad.flush()
        await lasting.until_settled("later")
        after = await mad.get_session(session)

    assert (after.version, after.work_in_progress) == (4, {"n": 2})
    assert await appended(lasting, "later", session) == [0, 1, 2]


async def appended(bus, mad, session):
    await bus.until_settled(mad)
    return in_order(await bus.entries(session), mad)


@pytest.mark.parametrize("spooled", [True, False])
async def test_what_is_appended_while_the_bus_is_dead_is_there_once_and_in_order(
    lasting, tmp_path, spooled
):
    """
    Requests hear of it at once, those that waited before get their reply after all.
    """
    path = tmp_path / "m" if spooled else None
    name = f"killed-{spooled}"
    async with a_mad(lasting.url, name, path) as mad:
        session = (await mad.create_session(name)).id
        for n in range(100):
            mad.append(session, n)
        async with killed(lasting):
            assert not lasting.server.alive
            for n in range(100, 200):
                mad.append(session, n)
            early = asyncio.create_task(mad.get_session(session, timeout=20))
            await is_away(mad)
            told = await refused_at_once(mad, session)
            for n in range(200, 300):
                mad.append(session, n)
        await mad.flush()
        found = await early
        assert mad._requests._publisher.away_s == 0
        await mad.update_session(session, {"tags": ["back"]})

    assert "the bus is away since" in told.message
    assert "will not be applied" in told.message
    assert found.last_seq == 200
    assert await appended(lasting, name, session) == [*range(300)]
    assert await lasting.state(session) == (2, 300)
    assert await lasting.letters(name) == []


FAULTS = {
    "black hole": lambda proxy: proxy.black_hole(),
    "answers swallowed": lambda proxy: proxy.drop_replies(),
    "stalled": lambda proxy: proxy.stall(),
}


def bites(proxy, fault):
    if fault == "stalled":
        return proxy.requests.held_bytes
    return proxy.dropped_bytes


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_deaf_bus_loses_and_doubles_nothing(lasting, tmp_path, fault):
    name = f"deaf-{fault}".replace(" ", "_")
    async with (
        Proxy("127.0.0.1", lasting.server.port) as proxy,
        a_mad(proxy.url(), name, tmp_path / "m") as mad,
    ):
        session = (await mad.create_session(name)).id
        FAULTS[fault](proxy)
        for n in range(100):
            mad.append(session, n)
        await is_away(mad)
        assert bites(proxy, fault) > 0, "the fault did not bite"
        await refused_at_once(mad, session)
        for n in range(100, 200):
            mad.append(session, n)
        proxy.cut()
        proxy.heal()
        await mad.flush(timeout=5)

    assert await appended(lasting, name, session) == [*range(200)]


async def test_resets_between_write_and_reply_double_nothing(lasting, tmp_path):
    """
    Each entry arrives, and its answer does not: it is sent again, and known.
    """
    async with (
        Proxy("127.0.0.1", lasting.server.port) as proxy,
        a_mad(proxy.url(), "reset", tmp_path / "m") as mad,
    ):
        session = (await mad.create_session("reset")).id
        for n in range(10):
            cut = proxy.connections_cut
            proxy.replies.cut_after(0)
            mad.append(session, n)

            async def bit(cut=cut):
                return proxy.connections_cut > cut

            await until(bit, "the answer was cut off")
            await mad.flush(timeout=5)
        stream = keys.ingress(lasting.partition(session), "reset")
        [group] = await lasting.client.xinfo_groups(stream)

    assert group["entries-read"] > 11, "nothing was sent twice"
    assert await appended(lasting, "reset", session) == [*range(10)]


async def test_a_full_spool_refuses_and_takes_again_when_there_is_room(
    lasting, tmp_path
):
    path, taken = tmp_path / "m", 0
    async with a_mad(lasting.url, "full", path, spool_bytes=100_000) as mad:
        session = (await mad.create_session("full")).id
        async with killed(lasting):
            with pytest.raises(sdk.Overloaded) as refused:  # noqa: PT012 - the last
                while True:
                    mad.append(session, [taken, "x" * 500])
                    taken += 1
        await mad.flush()
        mad.append(session, [taken, "there is room"])

    for word in (str(path), "100000 bytes", "flush()"):
        assert word in refused.value.message
    assert taken > 100
    numbers = [n for n, _ in await appended(lasting, "full", session)]
    assert numbers == [*range(taken + 1)]


async def test_the_loss_of_a_dead_process_does_not_refuse_what_it_left(
    lasting, tmp_path
):
    """
    Its instance is fenced; what it had promised to send is applied all the same.
    """
    async with a_mad(lasting.url, "heir") as mad:
        session = (await mad.create_session("heir")).id
    partition = lasting.partition(session)
    dead, heir = [uuid_utils.uuid7().hex for _ in range(2)]

    def publisher(instance, spool):
        credential = FakeCredential(a_grant("heir", instance=instance))
        parts = {"spool": spool, "credential": credential, "lease": Lease(instance)}
        return Publisher(lasting.url, "heir", instance, PARTITIONS, **parts)

    def an_append(n):
        return an_unsent("timeline.append", session=session, body={"entry": n})

    with_dead = Spool.open(tmp_path / "dead", "heir")
    before = publisher(dead, with_dead)
    # One got through, the answer did not; two were never sent.
    for n in range(3):
        before.publish(an_append(n), partition)
    grant = a_grant("heir", instance=dead)
    fields = {"id": command_id(dead, partition, 1), "epoch": 1, "grant": grant}
    await lasting.publish(
        "heir",
        partition,
        an_envelope("timeline.append", session=session, body={"entry": 0}, **fields),
    )
    await lasting.until_settled("heir")
    # What SIGKILL leaves.
    for end in ("", "-wal"):
        shutil.copy(f"{tmp_path}/dead{end}", f"{tmp_path}/heir{end}")
    body = {"mad": "heir", "instance": dead, "epoch": 1, "left": False}
    lost = an_envelope("instance.lost", session="", body=body, id="lost", grant=b"")
    await lasting.publish(keys.GATEWAY, partition, lost)
    await lasting.until_settled(keys.GATEWAY)

    with_heir = Spool.open(tmp_path / "heir", "heir")
    after = publisher(heir, with_heir)
    after.publish(an_append(3), partition)
    running = asyncio.create_task(after.run())
    await asyncio.wait_for(after.flush(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    # It was fenced indeed: what it sends itself now is refused.
    fields["id"] = command_id(dead, partition, 9)
    late = an_envelope("session.get", session=session, reply=True, **fields)
    await lasting.publish("heir", partition, late)
    refused = await lasting.reply("heir", partition, late.id)
    for spool in (with_dead, with_heir):
        spool.close()

    assert refused.code == "superseded"
    assert await appended(lasting, "heir", session) == [*range(4)]
    assert await lasting.letters("heir") == []
