"""
What rests leaves Redis and MongoDB, and comes back from below as it was.

On Valkey, SecantusDB and nanio, through the SDK; the archiver is in the test's hands,
so that what a test says happens first has happened.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from everbus.bus import NotFound, Unavailable
from everbus.bus.keys import partition_of
from everbus.bus.requests import Requests
from everbus.gateway.lane.cache import MISSING_S
from everbus.gateway.store.mongo.documents import PLACEHOLDER_S, TOMBSTONE_DAYS
from tests.conversations import Conversation
from tests.proxy import Proxy
from tests.replicas import until
from tests.stack import PARTITIONS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_look_for_a_session_that_nobody_has_leaves_nothing_for_long(stack):
    """
    Anybody can ask for any id: Redis keeps nothing of it, and MongoDB's placeholder
    goes with the index that removes tombstones, PLACEHOLDER_S after it came.
    """
    old = "01860000-0000-7000-8000-000000000000"
    async with stack.served() as (mad, _):
        before = datetime.now(UTC)
        with pytest.raises(NotFound):
            await mad.get_session(old)

        left = await stack.client.keys(f"*{old}*")
        placeholder = await stack.held["sessions"].find_one({"_id": old})

    assert left == []
    kept = timedelta(days=TOMBSTONE_DAYS)
    ends = placeholder["deleted_at"].replace(tzinfo=UTC) + kept
    assert MISSING_S < PLACEHOLDER_S <= 300
    most = timedelta(seconds=PLACEHOLDER_S)
    assert before < ends <= datetime.now(UTC) + most


class TestSuspended:
    async def test_it_leaves_redis_and_is_read_as_it_was(self, stack):
        async with stack.served() as (mad, hands), hands.draining():
            one = await Conversation.begin(mad)
            await one.say(45)
            await one.change()
            await one.check()

            # Replied to when MongoDB holds it, and with the reply it is gone.
            await one.suspend()
            assert not await stack.is_hot(one.id)

            await one.check()

    async def test_reading_wakes_nobody_and_the_next_write_does(self, stack):
        async with stack.served() as (mad, hands), hands.draining():
            one = await Conversation.begin(mad)
            await one.say(3)
            await one.suspend()
            await one.check()
            await one.check()

            await one.say(1)

            await one.check()
            steps = (await mad.diff(one.id, 1, one.version)).changes
            assert [c.kind for c in steps] == ["session.suspended", "session.resumed"]

    async def test_commands_that_are_sent_again_wake_nobody(self, stack, monkeypatch):
        ask, silent = Requests.settled_numbers, []

        async def settled_numbers(*asked):
            if silent:
                raise Unavailable("nobody answers now")
            return await ask(*asked)

        monkeypatch.setattr(Requests, "settled_numbers", settled_numbers)
        async with stack.served() as (mad, hands), hands.draining():
            session = (await mad.create_session("ada")).id
            mad.append(session, 0)
            await mad.flush(settled=True, timeout=30)
            silent.append(True)
            for n in (1, 2, 3):
                mad.append(session, n)
            await mad.suspend_session(session)
            await stack.until_cold(session)

            kept = mad._requests._publisher._unsettled
            assert kept.count == 3
            silent.clear()
            # So that the managers' answer names another lineage.
            kept._lineages[partition_of(session, PARTITIONS)] = -1
            await mad.flush(settled=True, timeout=30)

            assert not await stack.is_hot(session)
            page = await mad.timeline(session)
            assert [entry.entry for entry in page.entries] == [0, 1, 2, 3]

    async def test_it_stays_hot_until_mongodb_holds_it(self, stack):
        async with stack.served() as (mad, hands):
            one = await Conversation.begin(mad)
            await one.say(3)
            await one.suspend(durability="hot")
            assert await stack.is_hot(one.id)
            await one.check()

            async with hands.draining():
                await stack.until_cold(one.id)
            await one.check()


class TestArchived:
    async def test_its_older_entries_come_back_behind_it(self, stack):
        """
        Pages are served meanwhile, straight from S3.
        """
        async with stack.served() as (mad, hands), hands.draining():
            one = await stack.archived(mad, hands)
            await one.check()
            assert (await stack.document(one.id))["unrestored"]
            assert await stack.entries_in(one.id) == 0

            await hands.upkeep.restore()

            assert await stack.entries_in(one.id) == 60
            assert not (await stack.document(one.id)).get("unrestored")
            for path in stack.objects(one.id):
                path.unlink()
            await one.check()

    async def test_it_returns_as_it_was_and_goes_on(self, stack):
        """
        Twice, with more said in between; its archives share what did not change.
        """
        async with stack.served() as (mad, hands), hands.draining():
            one = await stack.archived(mad, hands)
            document = await stack.document(one.id)
            assert document["archival_status"] == "S3"
            assert document["s3_pointer"]
            assert document["state"] == "archived"

            await one.check()
            document = await stack.document(one.id)
            assert document["archival_status"] == "ACTIVE"
            await one.say(30)
            await one.change()
            await one.check()
            await one.suspend()
            await stack.until_cold(one.id)
            await hands.archive()
            await hands.upkeep.purge()

            await one.check()
            await hands.upkeep.restore()
            await one.check()
            assert await stack.entries_in(one.id) == 90

    async def test_fifty_readers_at_once_cause_one_return(self, stack):
        async with stack.served() as (mad, hands), hands.draining():
            one = await stack.archived(mad, hands)

            sessions = await asyncio.gather(
                *(mad.get_session(one.id) for _ in range(50))
            )

            assert all(session == sessions[0] for session in sessions)
            returns = {"session": one.id, "kind": "session.rehydrated"}
            assert await stack.held["events"].count_documents(returns) == 1
            # Archived, and returned: one each.
            assert (await stack.document(one.id))["moves"] == 2
            await one.check()

    async def test_a_write_in_the_middle_of_archiving_keeps_it_where_it_is(self, stack):
        """
        The archive is complete in S3 when somebody writes: it is refused.
        """
        struck = asyncio.Event()
        async with (
            stack.served() as (mad, _),
            stack.hands(
                fail=lambda p: p == "archive_verified" and struck.set()
            ) as hands,
            hands.draining(),
        ):
            one = await Conversation.begin(mad)
            await one.say(40)
            await one.suspend()
            await stack.until_cold(one.id)
            send = hands.archiving._send

            async def late(session_id, body):
                await one.say(1)
                await send(session_id, body)

            hands.archiving._send = late
            report = await hands.archive()

            assert struck.is_set()
            assert (report.archived, report.skipped) == (0, 1)
            assert (await stack.document(one.id))["archival_status"] == "ACTIVE"
            await one.check()
            await hands.upkeep.purge()
            assert await stack.entries_in(one.id) == 41

    async def test_two_archivers_at_once_lose_and_fork_nothing(self, stack):
        """
        One may bring back what the other has just archived; whole it is all the same.
        """
        async with (
            stack.served() as (mad, hands),
            stack.hands() as others,
            hands.draining(),
        ):
            made = [await Conversation.begin(mad) for _ in range(4)]
            for one in made:
                await one.say(40)
                await one.suspend()
                await stack.until_cold(one.id)

            for _ in range(2):
                await asyncio.gather(hands.archive(), others.archive())
                await asyncio.gather(hands.upkeep.purge(), others.upkeep.purge())
                await asyncio.gather(hands.upkeep.restore(), others.upkeep.restore())

            assert any(stack.objects(one.id) for one in made)
            for one in made:
                await one.check()

    async def test_a_late_archiver_makes_no_stub_of_what_has_returned(self, stack):
        """
        It read the command of the lane, was paused, and writes when another one has
        done so, and the session is back and has gone on.
        """
        async with stack.served() as (mad, hands), hands.draining():
            written, write = [], hands.warm.write

            async def noted(records):
                written.extend(records)
                return await write(records)

            hands.warm.write = noted
            one = await stack.archived(mad, hands)
            late = [record for record in written if record.archived is not None]
            await one.check()
            await stack.drained()

            await write(late)
            assert (await stack.document(one.id))["archival_status"] == "ACTIVE"
            await one.say(5)
            await one.suspend()
            await write(late)

            assert (await stack.document(one.id))["archival_status"] == "ACTIVE"
            await hands.upkeep.purge()
            await one.check()


async def test_only_the_session_that_waits_for_mongodb_waits(stack):
    """
    Its lane goes on: others in the same partition are answered meanwhile.
    """
    async with (
        Proxy("127.0.0.1", stack.mongo.port) as proxy,
        stack.manager(mongo_url=f"{proxy.url('mongodb')}/?directConnection=true"),
        stack.mad() as mad,
        stack.hands() as hands,
        hands.draining(),
    ):
        resting = await Conversation.begin(mad)
        await resting.say(3)
        await resting.suspend()
        lane = partition_of(resting.id, PARTITIONS)
        other = await Conversation.begin(mad)
        while partition_of(other.id, PARTITIONS) != lane:
            other = await Conversation.begin(mad)
        proxy.stall()

        reading = asyncio.create_task(mad.get_session(resting.id))
        await until(lambda: proxy.requests.held_bytes > 0, what="it is asked for")
        await other.say(50)
        await other.change()
        assert not reading.done()

        proxy.heal()
        assert (await reading).version == resting.version
