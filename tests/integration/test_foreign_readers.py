"""
Somebody reads the managers' groups by hand: nothing is lost, doubled, out of order.
"""

import asyncio
from functools import partial

import pytest
import structlog

from everbus.bus import keys
from everbus.bus.messages import SCHEMA
from everbus.gateway.lane import foreign_readers
from everbus.gateway.lane.intake import MAX_ID_PART, Intake
from everbus.gateway.telemetry import metrics
from tests.replicas import a_mad, replica_here, settled, until

ADA = keys.ingress(0, "fiedler")
ALONE = {"partitions": 1}
COUNT = 15
# Redis's Lua passes at most 8,000 arguments.
MANY = 8_500


async def read_by_hand(client, *how):
    return await client.execute_command(
        *("XREADGROUP", "GROUP", keys.GROUP, "stranger", *how, "STREAMS", ADA, ">")
    )


async def read_and_wait(client):
    await read_by_hand(client)


async def read_without_acknowledgement(client):
    await read_by_hand(client, "NOACK")


async def read_and_acknowledge(client):
    [[_, entries]] = await read_by_hand(client)
    await client.xack(ADA, keys.GROUP, *(identifier for identifier, _ in entries))


async def set_the_position(client):
    await client.execute_command("XGROUP", "SETID", ADA, keys.GROUP, "$")


async def set_the_position_back(client):
    await client.execute_command("XGROUP", "SETID", ADA, keys.GROUP, "0")


HANDS = pytest.mark.parametrize(
    "hand",
    [
        read_and_wait,
        read_without_acknowledgement,
        read_and_acknowledge,
        set_the_position,
        set_the_position_back,
    ],
)


class Held:
    """
    The lane between two reads, as long as the block runs; nothing is in flight.
    """

    def __init__(self, monkeypatch):
        self.resting, self._go = asyncio.Event(), asyncio.Event()
        look = Intake.look_for_others

        async def held(intake):
            found = await look(intake)
            if not intake.astray and not self._go.is_set():
                self.resting.set()
                await self._go.wait()
            return found

        monkeypatch.setattr(Intake, "look_for_others", held)

    async def __aenter__(self):
        await asyncio.wait_for(self.resting.wait(), 20)

    async def __aexit__(self, *_):
        self._go.set()


async def known_session(mad):
    """
    A session of a MAD that knows the bus's lineage, and so sends nothing twice.
    """
    session = await mad.create_session("ada")
    mad.append(session.id, "known")
    await mad.flush(settled=True, timeout=30)

    return session


async def entries_of(mad, session):
    page = await mad.timeline(session.id, limit=1000)
    first, *others = [one.entry for one in page.entries]
    assert first == "known"

    return others


@HANDS
@pytest.mark.parametrize("behind", [3, 0], ids=["others behind it", "the last ones"])
async def test_what_others_have_read_is_applied_in_order(
    server, client, monkeypatch, hand, behind
):
    taken = metrics.TAKEN._value.get()
    with structlog.testing.capture_logs() as logs:
        async with replica_here(server.url, **ALONE), a_mad(server.url) as mad:
            session = await known_session(mad)
            async with Held(monkeypatch):
                for n in range(5):
                    mad.append(session.id, n)
                await mad.flush()
                await hand(client)
                for n in range(5, 5 + behind):
                    mad.append(session.id, n)
                await mad.flush()
            await mad.flush(settled=True, timeout=30)

            assert await entries_of(mad, session) == [*range(5 + behind)]
            await settled(client)
    if hand is not set_the_position_back:
        assert metrics.TAKEN._value.get() >= taken + 1
        assert any(one["event"] == "entries.taken" for one in logs)


async def test_what_others_read_while_no_manager_lives_is_applied(
    server, client, monkeypatch
):
    """
    Of more entries than one look takes back.
    """
    monkeypatch.setattr(foreign_readers, "CLAIMED", 4)
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    async with a_mad(server.url) as mad:
        async with replica_here(server.url, **ALONE):
            session = await known_session(mad)
        for n in range(COUNT):
            mad.append(session.id, n)
            await mad.flush()
        await read_by_hand(client, "COUNT", 1)
        await read_by_hand(client)

        async with replica_here(server.url, **ALONE):
            await mad.flush(settled=True, timeout=30)

            assert await entries_of(mad, session) == [*range(COUNT)]


async def test_no_command_of_another_publisher_hides_what_others_have_read(
    server, client, monkeypatch
):
    """
    Nothing is pending, no number is missing, and the group is behind the last entry.
    """
    # So that a trim takes single entries, and a look some.
    await client.config_set("stream-node-max-entries", 1)
    monkeypatch.setattr(foreign_readers, "CLAIMED_BYTES", 1)
    async with (
        replica_here(server.url, **ALONE),
        a_mad(server.url) as one,
        a_mad(server.url) as other,
    ):
        session = await known_session(one)
        await other.append_and_wait(session.id, "before")
        async with Held(monkeypatch):
            for n in range(COUNT):
                one.append(session.id, n)
                await one.flush()
            await read_without_acknowledgement(client)
            later = asyncio.create_task(other.append_and_wait(session.id, "later"))
            await until(partial(is_unread, client), what="the later one")
        await later
        await one.flush(settled=True, timeout=30)

        assert await entries_of(one, session) == ["before", *range(COUNT), "later"]


async def is_unread(client):
    [group] = await client.xinfo_groups(ADA)
    return await client.xrange(ADA, f"({group['last-delivered-id'].decode()}", "+")


async def test_a_lane_opens_whatever_many_others_have_read(server, client):
    """
    More than one call of a script may name.
    """
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    async with a_mad(server.url) as mad:
        async with replica_here(server.url, **ALONE):
            session = await known_session(mad)
        async with client.pipeline(transaction=False) as pipe:
            for n in range(MANY):
                pipe.xadd(ADA, {"c": b""})
                if (n + 1) % foreign_readers.CLAIMED == 0:
                    pipe.xreadgroup(keys.GROUP, f"stranger {n}", {ADA: ">"})
            await pipe.execute()
        names = [one["name"] for one in await client.xinfo_consumers(ADA, keys.GROUP)]
        # Nothing is left to decide about them, only to claim.
        await client.xtrim(ADA, maxlen=0)

        async with replica_here(server.url, **ALONE):
            await mad.append_and_wait(session.id, "served", timeout=30)

    assert len(names) >= MANY / foreign_readers.CLAIMED


async def test_a_lane_serves_although_others_read_before_each_opening(
    server, client, monkeypatch
):
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    make_groups = Intake._make_groups
    async with a_mad(server.url) as mad:
        async with replica_here(server.url, **ALONE):
            session = await known_session(mad)

        async def beaten_to_it(intake, mads):
            mad.append(session.id, "taken")
            await mad.flush()
            await read_by_hand(client)
            await make_groups(intake, mads)

        monkeypatch.setattr(Intake, "_make_groups", beaten_to_it)
        async with replica_here(server.url, **ALONE):
            await mad.append_and_wait(session.id, "served", timeout=30)

            assert {*await entries_of(mad, session)} == {"taken", "served"}


async def test_an_entry_of_the_highest_id_disturbs_no_look(server, client, monkeypatch):
    monkeypatch.setattr(foreign_readers, "LOOK_EVERY_S", 0.0)
    with structlog.testing.capture_logs() as logs:
        async with (
            replica_here(server.url, **ALONE),
            a_mad(server.url),
            a_mad(server.url, "other") as other,
        ):
            session = await other.create_session("ada")
            await client.xadd(ADA, {"c": b""}, id=f"{MAX_ID_PART}-{MAX_ID_PART}")
            await settled(client)
            for n in range(3):
                await other.append_and_wait(session.id, n, timeout=30)

    assert [one for one in logs if one["event"] == "lane.disturbed"] == []


async def test_no_trim_takes_what_others_have_read(server, client, monkeypatch):
    """
    Commands of another instance of the MAD go on and are settled meanwhile.
    """
    # So that a trim takes single entries.
    await client.config_set("stream-node-max-entries", 1)
    looked, look = [], Intake.look_for_others

    async def blind(intake):
        looked.append(intake)
        return False

    async with (
        replica_here(server.url, **ALONE),
        a_mad(server.url) as one,
        a_mad(server.url) as other,
    ):
        session = await known_session(one)
        async with Held(monkeypatch):
            one.append(session.id, "taken")
            await one.flush()
            await read_by_hand(client)
            monkeypatch.setattr(Intake, "look_for_others", blind)
        await other.append_and_wait(session.id, "later")
        await other.append_and_wait(session.id, "later still")
        assert looked
        monkeypatch.setattr(Intake, "look_for_others", look)
        await one.flush(settled=True, timeout=30)

        assert sorted(await entries_of(one, session)) == [
            "later",
            "later still",
            "taken",
        ]
