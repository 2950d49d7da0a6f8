"""
Commands that are taken back, that are too late, and that come on behalf of others.
"""

import asyncio

import pytest
import pytest_asyncio
import uuid_utils

from everbus.bus import Expired, keys
from everbus.bus.messages import CommandOutcome, OnBehalf, command_id, unpack
from everbus.handlers.routes import HANDLERS, append_timeline
from tests.builders import an_envelope
from tests.integration.conftest import a_grant, a_replica
from tests.replicas import a_grant as an_admins_grant
from tests.replicas import a_mad, replica_here
from tests.servers import valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Sender:
    """
    Numbers the commands of one MAD on one session, as the SDK does.
    """

    def __init__(self, bus, session, mad="ada"):
        self.bus, self.session, self.mad = bus, session, mad
        self.partition = bus.partition(session)
        self._instance = uuid_utils.uuid7().hex
        self._n = 0

    def grant(self, name, role):
        return a_grant(name, role, mad=self.mad, instance=self._instance)

    def command(self, kind, body=None, *, reply=True, session=None, **fields):
        self._n += 1
        identifier = command_id(self._instance, self.partition, self._n)
        given = {"id": identifier, "grant": self.grant(self.mad, "mad")}
        return an_envelope(
            kind,
            session=self.session if session is None else session,
            body=body,
            reply=reply,
            **given | fields,
        )

    def append(self, entry, **fields):
        return self.command("timeline.append", {"entry": entry}, **fields)

    def cancel(self, envelope, **fields):
        asked = {"command_id": envelope.id}
        return self.command("request.cancel", asked, session="", **fields)

    async def publish(self, *commands):
        await self.bus.publish(self.mad, self.partition, *commands)

    async def reply(self, envelope):
        return await self.bus.reply(self.mad, self.partition, envelope.id)

    async def outcome(self, envelope):
        reply = await self.reply(envelope)
        assert reply.code == "ok", reply
        return unpack(reply.body, CommandOutcome)


@pytest_asyncio.fixture(loop_scope="module")
async def sender(bus, manager):
    session = str(uuid_utils.uuid7())
    await bus.register("ada")
    made = Sender(bus, session)
    await made.publish(command := made.command("session.create", {"user_id": "ada"}))
    assert (await made.reply(command)).code == "ok"
    return made


class TestACancellation:
    async def test_of_a_command_that_is_read_with_it_comes_in_time(self, sender, bus):
        quiet, loud = sender.append("quiet", reply=False), sender.append("loud")
        kept = sender.append("kept")
        cancels = [sender.cancel(quiet), sender.cancel(loud)]

        await sender.publish(quiet, loud, kept, *cancels)

        told = [await sender.outcome(cancel) for cancel in cancels]
        assert [(one.state, one.code) for one in told] == [
            ("cancelled", "cancelled")
        ] * 2
        assert (await sender.reply(loud)).code == "cancelled"
        assert (await sender.reply(kept)).code == "ok"
        assert [e.entry for e in await bus.entries(sender.session)] == ["kept"]
        # Its sender took it back: that is no dead letter.
        assert await bus.letters("ada") == []

    async def test_of_one_that_was_applied_is_too_late(self, sender):
        done = sender.append("done")
        await sender.publish(done)
        await sender.reply(done)

        await sender.publish(cancel := sender.cancel(done))

        assert (await sender.outcome(cancel)).state == "applied"

    async def test_is_the_same_the_second_time(self, sender):
        taken = sender.append("taken back", reply=False)
        first, second = sender.cancel(taken), sender.cancel(taken)
        await sender.publish(taken, first)
        await sender.publish(second)

        for cancel in (first, second):
            assert (await sender.outcome(cancel)).state == "cancelled"

    async def test_of_one_that_never_came_is_told_as_unknown(self, sender):
        sender.append("never sent")
        never = sender.append("nor this")
        await sender.publish(cancel := sender.cancel(never))

        assert (await sender.outcome(cancel)).state == "unknown"

    async def test_by_another_principal_does_nothing(self, sender, bus):
        """
        Users share the ingress of the MAD that serves them.
        """
        hers = sender.append("hers")
        cancel = sender.cancel(hers, grant=sender.grant("bob", "user"))

        await sender.publish(hers, cancel)

        assert (await sender.outcome(cancel)).state == "applied"
        assert [e.entry for e in await bus.entries(sender.session)] == ["hers"]

    async def test_without_a_good_grant_does_nothing(self, sender, bus):
        hers = sender.append("hers")
        cancel = sender.cancel(hers, grant=b"")

        await sender.publish(hers, cancel)

        assert (await sender.reply(cancel)).code == "unauthenticated"
        assert [e.entry for e in await bus.entries(sender.session)] == ["hers"]


async def test_a_command_that_waits_can_be_taken_back(tmp_path):
    """
    It failed and waits to be tried again; those behind it go on at once.
    """
    tried = asyncio.Event()

    def defective(session, command, now):
        if unpack(command.body.entry, str) == "ill":
            tried.set()
            raise ZeroDivisionError("a defect of ours")
        return append_timeline(session, command, now)

    ordinary = HANDLERS["timeline.append"]
    routes = {**HANDLERS, "timeline.append": ordinary._replace(handler=defective)}
    async with (
        valkey(tmp_path, aof=False) as server,
        replica_here(server.url, routes=routes, partitions=1) as replica,
        a_mad(server.url) as mad,
    ):
        session = (await mad.create_session("ada")).id
        ill = mad.append(session, "ill")
        mad.append(session, "well")
        await tried.wait()

        told = await mad.cancel(ill)
        page = await mad.timeline(session)
        outcome = await mad.outcome(ill)
        # One that is refused itself, since it comes too late, is not kept either.
        with pytest.raises(Expired):
            await mad._requests._reply_to(
                mad._requests._envelope(
                    "request.cancel", "", {"command_id": ill}, deadline_ms=0, reply=True
                ),
                0,
                10,
            )
        kept = replica.lanes[0]._decider.revocation.cancelled

    assert (told.state, outcome.state) == ("cancelled", "cancelled")
    assert [e.entry for e in page.entries] == ["well"]
    assert kept == {}


async def test_a_cancellation_by_another_principal_moves_nothing_that_waits(tmp_path):
    """
    What it is about waits behind a command that fails twice, and goes on doing so.
    """
    tries: list[str] = []
    tried = asyncio.Event()

    def failing_twice(session, command, now):
        entry = unpack(command.body.entry, str)
        tries.append(entry)
        tried.set()
        if entry == "first" and tries.count("first") <= 2:
            raise ZeroDivisionError("a defect of ours")
        return append_timeline(session, command, now)

    ordinary = HANDLERS["timeline.append"]
    routes = {**HANDLERS, "timeline.append": ordinary._replace(handler=failing_twice)}
    async with (
        valkey(tmp_path, aof=False) as server,
        replica_here(server.url, routes=routes, partitions=1),
        a_mad(server.url) as mad,
    ):
        session = (await mad.create_session("ada")).id
        mad.append(session, "first")
        second = mad.append(session, "second")
        await tried.wait()

        credential = mad._requests._publisher._credential
        credential.grant = an_admins_grant("bob", instance=mad.instance)
        told = await mad.cancel(second)
        await mad.append_and_wait(session, "third")
        page = await mad.timeline(session)

    assert told.state in ("pending", "unknown")
    assert tries == ["first", "first", "first", "second", "third"]
    assert [e.entry for e in page.entries] == ["first", "second", "third"]


async def test_a_command_past_its_deadline_is_told_so_after_all_lanes_were_down(
    unserved,
):
    """
    Read by an owner that died over it, or by nobody: either way it waited too long.
    """
    bus, session = unserved, str(uuid_utils.uuid7())
    async with a_replica(bus.url, "one"):
        await bus.until_served()
        await bus.register("ada")
        sender = Sender(bus, session)
        create = sender.command("session.create", {"user_id": "ada"})
        await sender.publish(create)
        assert (await sender.reply(create)).code == "ok"
    late = [sender.append("read", deadline_ms=30), sender.append("not", deadline_ms=30)]
    stream = keys.ingress(sender.partition, "ada")
    await sender.publish(late[0])
    # As if the owner had died between reading and committing.
    await bus.client.xreadgroup(keys.GROUP, "lane", {stream: ">"})
    await sender.publish(late[1])
    timely = sender.append("timely", deadline_ms=60_000)
    await sender.publish(timely)
    await asyncio.sleep(0.05)

    async with a_replica(bus.url, "two"):
        codes = [(await sender.reply(one)).code for one in (*late, timely)]
        again = sender.command(
            "request.outcome", {"command_id": late[0].id}, session=""
        )
        await sender.publish(again)
        told = await sender.outcome(again)

    assert codes == ["expired", "expired", "ok"]
    assert (told.state, told.code) == ("rejected", "expired")
    assert [e.entry for e in await bus.entries(session)] == ["timely"]


class TestOnBehalf:
    """
    Commands that the gateway publishes again are judged as their first sender's.
    """

    @staticmethod
    def again(sender, entry, **of):
        behalf = OnBehalf(**{"mad": "ada", "principal": "ada", "role": "mad"} | of)
        return an_envelope(
            "timeline.append",
            session=sender.session,
            body={"entry": entry},
            id=f"redriven-{uuid_utils.uuid7().hex}",
            grant=b"",
            reply=True,
            on_behalf=behalf,
        )

    async def told(self, bus, sender, envelope):
        await bus.publish(keys.GATEWAY, sender.partition, envelope)
        return await bus.reply(keys.GATEWAY, sender.partition, envelope.id)

    async def test_its_author_is_the_first_sender(self, bus, sender):
        reply = await self.told(bus, sender, self.again(sender, "once more"))

        [entry] = await bus.entries(sender.session)
        [*_, record] = await bus.records(sender.session)
        assert reply.code == "ok"
        assert (entry.author, entry.entry) == ("ada", "once more")
        assert (record.events[-1].mad, record.events[-1].principal) == ("ada", "ada")

    async def test_policy_is_asked_about_the_first_sender(self, bus, sender):
        stranger = self.again(sender, "no", mad="eve", principal="eve")
        odd = self.again(sender, "no", role="gateway")

        assert (await self.told(bus, sender, stranger)).code == "forbidden"
        assert (await self.told(bus, sender, odd)).code == "invalid"
        assert await bus.entries(sender.session) == []

    async def test_it_counts_on_the_gateways_ingress_only(self, bus, sender):
        await bus.register("eve")
        forged = self.again(sender, "no")
        await bus.publish("eve", sender.partition, forged)
        reply = await bus.reply("eve", sender.partition, forged.id)

        assert reply.code == "unauthenticated"

    async def test_what_dies_again_is_a_letter_of_its_first_sender(self, bus, sender):
        again = self.again(sender, "no", mad="eve", principal="eve")
        unheard = an_envelope(
            again.kind,
            session=again.session,
            body={"entry": "no"},
            id=f"redriven-{uuid_utils.uuid7().hex}",
            grant=b"",
            on_behalf=again.on_behalf,
        )
        await bus.publish(keys.GATEWAY, sender.partition, unheard)
        await bus.until_settled(keys.GATEWAY)

        [letter] = [x for x in await bus.letters("eve") if x.cause == "forbidden"]
        assert (letter.principal, letter.role) == ("eve", "mad")
