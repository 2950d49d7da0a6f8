"""
What a loss means to the sessions, and to an instance that wakes up after it.

The commands are published by hand, as presence and SDK publish them.
"""

import pytest
import pytest_asyncio
import uuid_utils

import everbus.gateway.lane.lookup
import everbus.gateway.lane.revocation
from everbus.bus import keys
from everbus.bus.messages import command_id, unpack
from everbus.gateway.store import key_names
from tests.builders import an_envelope
from tests.integration.conftest import (
    PARTITIONS,
    Bus,
    a_grant,
    a_replica,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Instance:
    """
    One instance of a MAD, whose commands are written by hand.
    """

    def __init__(self, bus: Bus, mad: str, epoch: int = 1) -> None:
        self.mad = mad
        self.name = uuid_utils.uuid7().hex
        self.epoch = epoch
        self._bus = bus
        self._counts = [0] * PARTITIONS

    def envelope(self, kind, session, body=None, *, reply=True, **fields):
        partition = self._bus.partition(session)
        self._counts[partition] += 1
        identifier = command_id(self.name, partition, self._counts[partition])
        grant = a_grant(self.mad, instance=self.name)
        given = {"id": identifier, "grant": grant, "epoch": self.epoch}
        return an_envelope(
            kind, session=session, body=body, reply=reply, **given | fields
        )

    async def send(self, kind, session, body=None, **fields):
        """
        Publish a command; its id.
        """
        envelope = self.envelope(kind, session, body, **fields)
        await self._bus.publish(self.mad, self._bus.partition(session), envelope)
        return envelope.id

    async def ask(self, kind, session, body=None, **fields):
        """
        The reply to a command.
        """
        sent = await self.send(kind, session, body, **fields)
        return await self._bus.reply(self.mad, self._bus.partition(session), sent)

    async def join(self, session):
        reply = await self.ask("participant.add", session, {"mad": self.mad})
        assert reply.code == "ok"

    async def is_lost(self, *, epoch=1, left=False, times=1):
        """
        Tell every partition so, as presence does.
        """
        body = {"mad": self.mad, "instance": self.name, "epoch": epoch, "left": left}
        for partition in range(PARTITIONS):
            told = an_envelope(
                "instance.lost",
                session="",
                body=body,
                id=f"lost-{self.name}-{epoch}-{partition}",
                grant=b"",
            )
            for _ in range(times):
                await self._bus.publish(keys.GATEWAY, partition, told)


async def a_session(bus, owner, *, mad="ada"):
    """
    A fresh session of *owner*, in which nobody takes part.
    """
    await bus.register(mad)
    session = str(uuid_utils.uuid7())
    body = {"user_id": owner}
    grant = a_grant(mad)
    reply = await bus.ask(mad, "session.create", session, body=body, grant=grant)
    assert reply.code == "ok"
    return session


async def participants(bus, session):
    """
    Who takes part, and the version.
    """
    read = await bus.ask("ada", "session.get", session, grant=a_grant("ada"))
    told = unpack(read.body, dict)
    return list(told["participants"]), told["version"]


async def attached(bus, session):
    members = await bus.client.zrange(key_names.attached(bus.partition(session)), 0, -1)
    return [m.decode() for m in members if session in m.decode()]


async def until_left(bus, session, mad):
    async def claim():
        return mad not in (await participants(bus, session))[0]

    await until(claim, f"{mad} has left {session}")


@pytest_asyncio.fixture(loop_scope="module")
async def served(bus, manager):
    await bus.register("bo")
    await bus.register("cy")


@pytest.mark.usefixtures("served")
class TestTheSessions:
    async def test_every_session_of_the_lost_hears_of_it_once(self, bus):
        bo, cy = Instance(bus, "bo"), Instance(bus, "cy")
        sessions = [await a_session(bus, "ada") for _ in range(6)]
        for session in sessions:
            await bus.ask(
                *("ada", "participant.add", session),
                body={"mad": "cy"},
                grant=a_grant("ada"),
            )
            await bo_in(bus, bo, session)
            await cy.join(session)

        await bo.is_lost(times=2)

        for session in sessions:
            await until_left(bus, session, "bo")
            assert (await participants(bus, session))[0] == ["cy"]
            assert not any(bo.name in member for member in await attached(bus, session))
        await bus.until_settled(keys.GATEWAY)
        for session in sessions:
            records = await bus.records(session)
            kinds = [event.kind for record in records for event in record.events]
            assert kinds.count("participant.lost") == 1
            versions = await bus.versions(session)
            assert versions == list(range(1, len(versions) + 1))
        assert await bus.letters(keys.GATEWAY) == []

    async def test_more_sessions_than_one_command_follows_up(self, bus, monkeypatch):
        for module in (everbus.gateway.lane.lookup, everbus.gateway.lane.revocation):
            monkeypatch.setattr(module, "CHUNK", 3)
        bo = Instance(bus, "bo")
        sessions = [await a_session(bus, "ada") for _ in range(20)]
        for session in sessions:
            await bo_in(bus, bo, session)

        await bo.is_lost()

        for session in sessions:
            await until_left(bus, session, "bo")

    async def test_who_has_joined_again_since_stays(self, bus):
        """
        Its new self joined before the session has heard of the loss of the old one.
        """
        bo = Instance(bus, "bo")
        session = await a_session(bus, "ada")
        await bo_in(bus, bo, session)
        bo.epoch = 2
        await bo.join(session)

        await bo.is_lost(epoch=1)
        await bus.until_settled(keys.GATEWAY)

        assert "bo" in (await participants(bus, session))[0]
        [*members] = await attached(bus, session)
        assert sorted(members) == sorted(
            [f"i:bo:{bo.name}:{session}:2", f"s:{session}:bo:{bo.name}:2"]
        )

    async def test_a_mad_stays_with_its_other_instance(self, bus):
        one, other = Instance(bus, "bo"), Instance(bus, "bo")
        session = await a_session(bus, "ada")
        await bo_in(bus, one, session)
        await other.join(session)

        await one.is_lost()
        await bus.until_settled(keys.GATEWAY)
        assert (await participants(bus, session))[0] == ["bo"]

        await other.is_lost()
        await until_left(bus, session, "bo")

    async def test_a_goodbye_is_told_to_nobody(self, bus):
        bo = Instance(bus, "bo")
        session = await a_session(bus, "ada")
        await bo_in(bus, bo, session)

        await bo.is_lost(left=True)

        async def claim():
            return await attached(bus, session) == []

        await until(claim, "detached")
        assert (await participants(bus, session))[0] == ["bo"]
        # And what it had sent before counts, though it is read after.
        assert (await bo.ask("session.get", session)).code == "ok"

    @pytest.mark.parametrize("how", ["participant.remove", "session.delete"])
    async def test_nothing_is_left_of_who_was_removed(self, bus, how):
        bo = Instance(bus, "bo")
        session = await a_session(bus, "ada")
        await bo_in(bus, bo, session)
        assert len(await attached(bus, session)) == 2

        body = {"mad": "bo"} if how == "participant.remove" else {}
        reply = await bus.ask("ada", how, session, body=body, grant=a_grant("ada"))

        assert reply.code == "ok"
        assert await attached(bus, session) == []

    async def test_who_comes_and_goes_in_one_batch_leaves_nothing(self, bus):
        bo = Instance(bus, "bo")
        session = await a_session(bus, "bo", mad="bo")
        partition = bus.partition(session)
        body = {"mad": "bo"}
        both = [
            bo.envelope(kind, session, body, reply=False)
            for kind in ("participant.add", "participant.remove", "participant.add")
        ]
        await bus.publish("bo", partition, *both[:2])
        await bus.until_settled("bo")
        assert await attached(bus, session) == []

        bo.epoch = 2
        again = bo.envelope("participant.add", session, body)
        await bus.publish("bo", partition, both[2], again)
        await bus.reply("bo", partition, again.id)
        epochs = {m.rpartition(":")[2] for m in await attached(bus, session)}
        assert epochs == {"1", "2"}

    async def test_only_the_gateway_may_tell_of_a_loss(self, bus):
        bo = Instance(bus, "bo")
        session = await a_session(bus, "ada")
        await bo_in(bus, bo, session)
        lost = {"mad": "bo", "instance": bo.name, "epoch": 1}

        for kind in ("instance.lost", "participant.lost"):
            for role in ("mad", "admin"):
                grant = a_grant("cy", role)
                reply = await bus.ask("cy", kind, session, body=lost, grant=grant)
                assert reply.code == "forbidden"

        assert "bo" in (await participants(bus, session))[0]


@pytest.mark.usefixtures("served")
class TestAZombie:
    async def test_nothing_that_it_sends_late_is_applied_until_it_joins_again(
        self, bus
    ):
        bo = Instance(bus, "bo")
        session = await a_session(bus, "ada")
        await bo_in(bus, bo, session)
        await bo.is_lost()
        await until_left(bus, session, "bo")

        late = await bo.ask("timeline.append", session, {"entry": "late"})
        read = await bo.ask("session.get", session)
        bo.epoch = 2
        anew = await bo.ask("timeline.append", session, {"entry": "anew"})

        assert (late.code, late.details["epoch"]) == ("superseded", 1)
        assert read.code == "superseded"
        assert anew.code == "ok"
        assert [e.entry for e in await bus.entries(session)] == ["anew"]

    async def test_an_instance_that_no_lane_has_seen_is_refused_as_well(self, bus):
        bo = Instance(bus, "bo")
        session = await a_session(bus, "bo", mad="bo")
        await bo.is_lost()
        await bus.until_settled(keys.GATEWAY)

        assert (await bo.ask("session.get", session)).code == "superseded"

    async def test_others_of_the_same_mad_do_not_notice(self, bus):
        bo, other = Instance(bus, "bo"), Instance(bus, "bo")
        session = await a_session(bus, "bo", mad="bo")
        await bo.is_lost()
        await bus.until_settled(keys.GATEWAY)

        assert (await other.ask("session.get", session)).code == "ok"


async def test_what_came_in_time_counts_and_a_successor_keeps_the_fence(unserved):
    """
    Nobody reads while it publishes and is declared lost: all came before that.
    """
    bus = unserved
    async with a_replica(bus.url, "one"):
        await bus.until_served()
        await bus.register("bo")
        session = await a_session(bus, "bo", mad="bo")
    bo = Instance(bus, "bo")
    for n in range(5):
        await bo.send("timeline.append", session, {"entry": n}, reply=False)
    await bo.is_lost()
    async with a_replica(bus.url, "two"):
        await bus.until_settled("bo", keys.GATEWAY)
        told = await bo.ask("timeline.append", session, {"entry": "late"})
        assert told.code == "superseded"
    async with a_replica(bus.url, "three"):
        told = await bo.ask("timeline.append", session, {"entry": "later"})
        assert told.code == "superseded"

    assert [e.entry for e in await bus.entries(session)] == [0, 1, 2, 3, 4]


async def bo_in(bus, instance, session):
    """
    Let *instance* into the session, by ada, and have it join.
    """
    body = {"mad": instance.mad}
    grant = a_grant("ada")
    await bus.ask("ada", "participant.add", session, body=body, grant=grant)
    await instance.join(session)
