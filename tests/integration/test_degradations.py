"""
What everbus does while a tier is away, row by row of the table in the README.

In every row: nothing that was acknowledged is lost, what does not need the tier goes
on, and what was held up goes on by itself when the tier is back.
"""

import asyncio
from functools import partial

import pytest

from everbus.bus import Unavailable
from everbus.bus.errors import EverbusError
from everbus.bus.keys import partition_of
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import letter_of
from tests.closed_load import ClosedLoad
from tests.conversations import Conversation
from tests.hands import Hands
from tests.outages import archived_all, at_rest, served, told_to_prometheus, unconfirmed
from tests.replicas import letters, until
from tests.stack import (
    PARTITIONS,
    Stack,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICKLY = {"archive_every_s": 0.2, "archive_after_days": 0}


class TestMongoDBAway:
    @pytest.mark.parametrize(
        "outage_s",
        [
            2.0,
            pytest.param(60.0, marks=[pytest.mark.campaign, pytest.mark.timeout(240)]),
        ],
    )
    async def test_hot_sessions_go_on_and_all_of_it_is_caught_up_with(
        self, stack, outage_s
    ):
        """
        Killed under load: writes, reads and creations go on; the breaker opens and
        closes, and the gauge that is to wake somebody rises and falls.
        """
        async with served(stack) as (mad, hands):
            sessions = [(await mad.create_session("ada")).id for _ in range(2)]
            load = ClosedLoad([mad], sessions)
            made = []
            async with hands.draining(), load.running():
                await load.more(20)
                await stack.mongo.kill()
                away = asyncio.create_task(asyncio.sleep(outage_s))
                while not away.done():
                    await load.more(5)
                    made.append((await mad.create_session("ada")).id)
                    assert (await mad.get_session(sessions[0])).last_seq > 0
                await until(
                    lambda: hands.warm.breaker.state == "open", 20, "the breaker opens"
                )
                state = told_to_prometheus("everbus_breaker_state", tier="warm")
                failing_s = told_to_prometheus("everbus_drain_failing_seconds")
                backlog = await unconfirmed(stack)
                assert state > 0
                assert failing_s > outage_s / 2
                assert backlog > 0

                await stack.mongo.restart()
                await load.more(20)
                load.stop()
                # After a long outage the breaker may stay open for half a minute.
                await stack.drained(30.0 + outage_s)
                assert hands.warm.breaker.state == "closed"
                assert told_to_prometheus("everbus_breaker_state", tier="warm") == 0
                assert told_to_prometheus("everbus_drain_failing_seconds") == 0
                await check_load(stack, load)
                for session_id in made:
                    assert (await stack.document(session_id))["version"] == 1

    async def test_sessions_that_are_not_hot_are_told_unavailable_and_others_go_on(
        self, stack
    ):
        async with served(stack) as (mad, hands), hands.draining():
            resting = await at_rest(stack, mad)
            other = await Conversation.begin(mad)
            while lane(other) != lane(resting):
                other = await Conversation.begin(mad)
            await other.say(3)
            await stack.mongo.kill()

            reading = asyncio.create_task(mad.get_session(resting.id, timeout=30))
            await other.say(5)
            await other.change()
            with pytest.raises(Unavailable):
                await reading
            with pytest.raises(Unavailable):
                await mad.list_sessions(timeout=30)

            await stack.mongo.restart()
            await resting.check()
            await other.check()

    async def test_a_warm_reply_waits_for_it_and_comes(self, stack):
        async with served(stack) as (mad, hands), hands.draining():
            one = await mad.create_session("ada", durability="warm")
            await stack.mongo.kill()
            waiting, behind = [
                asyncio.create_task(
                    mad.append_and_wait(
                        one.id, {"n": 1}, durability=durability, timeout=40
                    )
                )
                for durability in ("warm", "hot")
            ]
            assert await behind == 2
            assert not waiting.done()

            await stack.mongo.restart()
            assert await waiting == 1


def lane(one: Conversation) -> int:
    return partition_of(one.id, PARTITIONS)


async def check_load(stack: Stack, load: ClosedLoad) -> None:
    """
    MongoDB has every append once and in order, and every acknowledged update.
    """
    assert load.answered
    for session in load.sessions:
        found = stack.held["timeline"].find({"session": session}).sort("seq", 1)
        load.check_timeline(
            session, [(d["seq"], d["author"], d["entry"]) async for d in found]
        )
        wanted = {"session": session, "kind": "session.updated"}
        updates = stack.held["events"].find(wanted).sort("version", 1)
        load.check_updates(
            session, [(d["version"], d["mad"], d["patch"]) async for d in updates]
        )


class TestS3Away:
    async def test_archiving_waits_and_archived_sessions_are_unavailable(self, stack):
        async with served(stack) as (mad, hands), hands.draining():
            away = await at_rest(stack, mad)
            await hands.archive()
            await hands.upkeep.purge()
            resting = [await at_rest(stack, mad) for _ in range(4)]
            await stack.s3.kill()

            report = await hands.archive()
            assert (report.archived, report.failed) == (0, 3)
            assert report.ended
            assert hands.vault._objects._cold.breaker.state == "closed"
            await hands.archive()
            assert hands.vault._objects._cold.breaker.state == "open"
            for one in resting:
                document = await stack.document(one.id)
                assert document["archival_status"] == "ACTIVE"
            stub = await stack.document(away.id)
            with pytest.raises(Unavailable):
                await mad.get_session(away.id)
            assert await stack.document(away.id) == stub
            await resting[0].check()

            await stack.s3.restart()
            await away.check()
            await until(partial(archived_all, stack, hands, resting[1:]), 20)
            for one in resting:
                await one.check()

    async def test_entries_that_are_only_there_are_waited_for(self, stack):
        """
        The session is back and works; its older pages come when S3 does.
        """
        async with served(stack) as (mad, hands), hands.draining():
            one = await at_rest(stack, mad, 60)
            await hands.archive()
            await hands.upkeep.purge()
            await mad.get_session(one.id)
            await stack.s3.kill()

            await one.say(5)
            await one.change()
            newest = await mad.timeline(one.id, after=60)
            assert len(newest.entries) == 5
            with pytest.raises(Unavailable):
                await mad.timeline(one.id, after=0, limit=10)

            await stack.s3.restart()
            await one.check()
            await until(partial(restored, hands, stack, one), 20)


async def restored(hands: Hands, stack: Stack, one: Conversation) -> bool:
    try:
        await hands.upkeep.restore()
    except Unavailable:
        return False
    return "unrestored" not in (await stack.document(one.id))


class TestRedisAway:
    async def test_the_archiver_survives_it_and_goes_on(self, stack):
        """
        The very process; also its own commands to the lanes are answered again.
        """
        async with (
            stack.manager(),
            stack.archiver(**QUICKLY) as archiver,
            stack.mad() as mad,
        ):
            one = await Conversation.begin(mad)
            await one.say(30)
            await one.suspend()
            await stack.until_document(one.id, archival_status="S3")
            await one.check()
            await stack.bus.kill()
            await archiver.logged("lease.not_kept")

            await stack.bus.restart()
            await one.say(10)
            await one.change()
            await one.suspend()
            await stack.until_document(one.id, archival_status="S3", moves=3)
            await one.check()
            assert archiver.alive

    async def test_redis_that_lost_everything_is_filled_from_below(self, stack):
        """
        An empty server in its place: archiver and managers go on, also with what
        they ask of each other.
        """
        async with (
            stack.manager(),
            stack.archiver(**QUICKLY) as archiver,
            stack.mad() as mad,
        ):
            one = await Conversation.begin(mad)
            await one.say(30)
            await one.change()
            await stack.drained()
            await stack.client.flushall()

            await one.check()
            await one.say(10)
            await one.suspend()
            await stack.until_document(one.id, archival_status="S3")
            await one.check()
            assert archiver.alive


class TestConstraintViolated:
    async def test_it_becomes_a_dead_letter_and_the_others_go_on(self, stack):
        """
        By an index that somebody has made: one owner, one session.
        """
        async with served(stack) as (mad, hands):
            await hands.warm.prepare()
            await stack.held["sessions"].create_index("owner_id", unique=True)
            async with hands.draining():
                # Held already, so it is the other one that is refused.
                third = await mad.create_session("bob", durability="warm")
                await stack.drained()
            first = await mad.create_session("ada")
            second = await mad.create_session("ada")
            waiting = asyncio.create_task(
                mad.create_session("bob", durability="warm", timeout=30)
            )
            await until(partial(in_outbox, stack, 3), what="all three are committed")
            async with hands.draining():
                with pytest.raises(EverbusError, match="MongoDB refuses"):
                    await waiting
                # Which of the two came first depends on their partitions.
                held = {d["_id"] async for d in stack.held["sessions"].find()}
                [kept] = {first.id, second.id} & held
                [refused_] = {first.id, second.id} - held
                await mad.append_and_wait(kept, {"n": 1}, durability="warm")
                assert third.id in held
                assert await causes(stack) == ["constraint"] * 2
                # Nor does MongoDB hold what comes later, as there is no session.
                with pytest.raises(EverbusError, match="MongoDB refuses"):
                    await mad.append_and_wait(refused_, {"n": 1}, durability="warm")
                await mad.append_and_wait(refused_, {"n": 2})
                await stack.drained()

            assert await causes(stack) == ["constraint"] * 4
            key = key_names.session(partition_of(refused_, PARTITIONS), refused_)
            assert await stack.client.pttl(key) == -1
            session = await mad.get_session(refused_)
            assert (session.version, session.last_seq) == (1, 2)
            page = await mad.timeline(refused_)
            assert [entry.entry for entry in page.entries] == [{"n": 1}, {"n": 2}]


async def causes(stack: Stack) -> list[str]:
    return [letter_of(x).cause for x in await letters(stack.client, PARTITIONS)]


async def in_outbox(stack: Stack, count: int) -> bool:
    return await unconfirmed(stack) >= count
