"""
A replica that lags is promoted: what was lost is told or sent again, nothing is twice.

On two servers of Redis and one SecantusDB. Managers, archiver and MAD reach the bus
through doors, which lead to the replica once it is promoted.
"""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest
import pytest_asyncio

from everbus.bus import connect
from everbus.bus.errors import AlreadyExists, NotFound, ReplyTimeout, Unavailable
from tests.bus_pair import BusPair, bus_pair
from tests.replicas import a_token, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory):
    async with bus_pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def pair(servers: BusPair) -> BusPair:
    await servers.empty()
    return servers


class Failover:
    """
    A bus that will fail over, and a MAD whose replies can be lost before.

    Attributes:
        mad: reaches the bus by a door of its own.
        eye: a MAD that hears everything.
    """

    def __init__(self, pair, house, mine, mad, eye, draining):
        self.pair, self.house, self.mine = pair, house, mine
        self.mad, self.eye = mad, eye
        self._hands = draining
        self._draining = AsyncExitStack()

    async def drain(self):
        """
        Let the archiver work until `lag`.
        """
        await self._draining.enter_async_context(self._hands.draining())

    async def lag(self):
        """
        Neither the replica nor MongoDB learns of what comes from now on.
        """
        await self.pair.followed()
        await self.house.drained()
        await self._draining.aclose()
        await self.pair.part()

    def deafen(self):
        """
        Let requests of `mad` take effect, and their answers be lost.
        """
        self.mine.bus.proxy.drop_replies()

    async def held(self, session_id, **fields):
        async with asyncio.timeout(20):
            await self.house.until_document(session_id, **fields)

    async def happen(self):
        await self.pair.promote()
        self.house.bus.lead_to(self.pair.two)
        self.mine.bus.lead_to(self.pair.two)

    async def texts(self, session_id):
        found, after = [], 0
        while after is not None:
            page = await self.eye.timeline(session_id, after=after, timeout=20)
            found += [one.entry for one in page.entries]
            after = page.next
        return found


@asynccontextmanager
async def failing_over(pair, *, spool=None, **settings):
    house, mine = await pair.door(pair.one), await pair.door(pair.one)
    async with (
        house.replica(**settings),
        house.hands(**settings) as hands,
        house.mad("eye") as eye,
        connect(mine.bus.url, mad="m", token=a_token(), spool=spool) as mad,
    ):
        it = Failover(pair, house, mine, mad, eye, hands)
        await it.drain()
        try:
            yield it
        finally:
            await it._draining.aclose()


async def sent_again(it, sessions, count=5, suspended=False):
    """
    The timelines after a failover between the effect of appends and their answers.
    """
    made = [await it.mad.create_session("ada") for _ in range(sessions)]
    for one in made:
        await it.mad.append_and_wait(one.id, "before", durability="warm")
    await it.pair.followed()
    await it.pair.part()
    it.deafen()
    for n in range(count):
        for one in made:
            it.mad.append(one.id, n)
    for one in made:
        await it.held(one.id, last_seq=count + 1)
        if suspended:
            await it.eye.suspend_session(one.id, durability="warm")
    await it.happen()
    await it.mad.flush(settled=True)
    return [await it.texts(one.id) for one in made]


@pytest.mark.parametrize("suspended", [False, True])
async def test_what_is_sent_again_is_applied_once(pair, suspended):
    async with failing_over(pair) as it:
        found = await sent_again(it, sessions=3, suspended=suspended)
    assert found == [["before", *range(5)]] * 3


async def test_what_is_sent_again_from_a_spool_is_applied_once(pair, tmp_path):
    async with failing_over(pair, spool=tmp_path / "spool.db") as it:
        found = await sent_again(it, sessions=2)
    assert found == [["before", *range(5)]] * 2


async def test_of_several_mads_each_keeps_its_own_numbers(pair):
    async with (
        failing_over(pair) as it,
        connect(it.mine.bus.url, mad="other", token=a_token()) as other,
    ):
        session = await it.mad.create_session("ada", durability="warm")
        await other.get_session(session.id)
        await it.pair.followed()
        await it.pair.part()
        it.deafen()
        for n in range(6):
            (it.mad, other)[n % 2].append(session.id, n)
        await it.held(session.id, last_seq=6)
        await it.happen()
        for n in range(6, 10):
            (it.mad, other)[n % 2].append(session.id, n)
        for mad in (it.mad, other):
            await mad.flush(settled=True)
        found = await it.texts(session.id)
    assert sorted(found) == list(range(10))
    assert [n for n in found if n % 2] == [1, 3, 5, 7, 9]
    assert [n for n in found if not n % 2] == [0, 2, 4, 6, 8]


async def test_requests_between_publish_and_reply_take_effect_once(pair):
    """
    A creation that can be repeated gives its session; the others tell what they know.
    """
    async with failing_over(pair) as it:
        session = await it.mad.create_session("ada", durability="warm")
        await it.pair.followed()
        await it.pair.part()
        it.deafen()
        asked = {
            "append": it.mad.append_and_wait(session.id, "a", timeout=30),
            "update": it.mad.update_session(session.id, {"tags": ["x"]}, timeout=30),
            "create": it.mad.create_session("bob", timeout=30),
            "get_or_create": it.mad.get_or_create_session("eve", timeout=30),
        }
        tasks = {name: asyncio.create_task(one) for name, one in asked.items()}
        await it.held(session.id, last_seq=1, version=2)

        async def all_held():
            return await it.house.held["sessions"].count_documents({}) == 3

        await until(all_held)
        await it.happen()
        done = dict(
            zip(
                tasks,
                await asyncio.gather(*tasks.values(), return_exceptions=True),
                strict=True,
            )
        )
        for name in ("append", "update"):
            assert isinstance(done[name], AlreadyExists)
        found = await it.eye.get_session(session.id)
        assert (found.version, found.last_seq, found.tags) == (2, 1, ("x",))
        assert await it.house.held["sessions"].count_documents({}) == 3
        assert done["get_or_create"].owner_id == "eve"
        assert done["create"].owner_id == "bob"


async def test_what_hot_lost_is_gone_and_what_was_not_settled_is_sent_again(pair):
    """
    Nobody has the newest commands: acknowledged ones are `unknown`, appends come again.
    """
    async with failing_over(pair) as it:
        session = await it.mad.create_session("ada", durability="warm")
        await it.mad.append_and_wait(session.id, "before", durability="warm")
        await it.lag()
        with recorded(it.eye) as sent:
            assert await it.eye.append_and_wait(session.id, "acknowledged") == 2
        it.deafen()
        for n in range(5):
            it.mad.append(session.id, n)
        await until(lambda: has_seq(it.eye, session.id, 7))

        await it.pair.one.bus.kill()
        await it.happen()
        await it.drain()

        await it.mad.flush(settled=True)
        assert await it.texts(session.id) == ["before", *range(5)]
        assert [(await it.eye.outcome(one)).state for one in sent] == ["unknown"]
        assert await it.eye.append_and_wait(session.id, "after", timeout=20) == 7
        held = await it.eye.durable(session.id, wait=True)
        assert held.seq == 7


async def has_seq(mad, session_id, seq):
    return (await mad.get_session(session_id)).last_seq == seq


@contextmanager
def recorded(mad):
    """
    The ids of the commands that *mad* publishes.
    """
    sent, publisher = [], mad._requests._publisher
    publish = publisher.publish

    def noting(*arguments, **options):
        outgoing = publish(*arguments, **options)
        sent.append(outgoing.envelope.id)
        return outgoing

    publisher.publish = noting
    try:
        yield sent
    finally:
        publisher.publish = publish


async def test_outcome_tells_what_mongodb_has_though_nobody_asked_for_the_session(pair):
    """
    Its number was only in the memory that is lost, and the caller never got its reply.
    """
    async with failing_over(pair) as it:
        session = await it.mad.create_session("ada", durability="warm")
        await it.mad.append_and_wait(session.id, "before", durability="warm")
        await it.pair.followed()
        await it.pair.part()
        with recorded(it.eye) as sent:
            await it.eye.append_and_wait(session.id, "applied", durability="warm")
        it.eye._requests._unanswered[sent[0]] = session.id

        await it.happen()

        found = await it.eye.outcome(sent[0], timeout=20)
        assert found.state == "applied"


async def test_a_command_that_comes_again_too_late_is_not_told_as_expired(pair):
    """
    MongoDB has it; to say that it was not applied would have its caller repeat it.
    """
    async with failing_over(pair) as it:
        session = await it.mad.create_session("ada", durability="warm")
        await it.pair.followed()
        await it.pair.part()
        it.deafen()
        with pytest.raises(ReplyTimeout) as told:
            await it.mad.append_and_wait(session.id, "applied", timeout=0.5)
        await it.held(session.id, last_seq=1)
        await it.happen()

        async def settled():
            found = await it.mad.outcome(told.value.command_id, timeout=20)
            return found.state not in ("pending", "unknown") and found

        assert (await until(settled)).state == "applied"
        assert await it.texts(session.id) == ["applied"]


@pytest.mark.parametrize("timeout", [1.0, 30.0])
async def test_a_request_sent_again_while_mongodb_is_away_is_told_truly(pair, timeout):
    """
    Late or in time, nobody knows yet that MongoDB has it: `unavailable` would have its
    caller repeat it, and `outcome` tells of it once MongoDB is back.
    """
    async with failing_over(pair, warm_timeout_s=0.5) as it:
        session = await it.mad.create_session("ada", durability="warm")
        await it.pair.followed()
        await it.pair.part()
        it.deafen()
        asking = asyncio.create_task(
            it.mad.append_and_wait(session.id, "applied", timeout=timeout)
        )
        await it.held(session.id, last_seq=1)
        it.house.mongo.pause()
        try:
            if timeout < 10:
                await asyncio.wait([asking])
            await it.happen()
            with pytest.raises(ReplyTimeout) as told:
                await asking
            with pytest.raises(Unavailable):
                await it.eye.get_session(session.id, timeout=20)
        finally:
            it.house.mongo.resume()

        async def settled():
            found = await it.mad.outcome(told.value.command_id, timeout=20)
            return found.state not in ("pending", "unknown") and found

        assert (await until(settled, 20)).state == "applied"
        assert await it.texts(session.id) == ["applied"]


async def test_changes_of_state_that_are_sent_again_count_once_with_mongodb_away_too(
    pair,
):
    """
    Two failures at once: the session waits in doubt until MongoDB is back.
    """
    async with failing_over(pair, warm_timeout_s=0.5) as it:
        session = await it.mad.create_session("ada", durability="warm")
        await it.pair.followed()
        await it.pair.part()
        it.deafen()
        for n in range(4):
            it.mad.append(session.id, n)
            it.mad.update_later(session.id, {"context_summary": {f"k{n}": n}})
        await it.held(session.id, last_seq=4, version=5)
        it.house.mongo.pause()
        try:
            await it.happen()
            with pytest.raises(Unavailable):
                await it.eye.update_session(session.id, {"tags": ["x"]}, timeout=20)
        finally:
            it.house.mongo.resume()
        for n in range(4, 6):
            it.mad.append(session.id, n)
        await it.mad.flush(settled=True, timeout=20)
        found = await it.eye.get_session(session.id)
        assert (found.version, found.last_seq) == (5, 6)
        assert await it.texts(session.id) == list(range(6))
        held = await it.eye.durable(session.id, wait=True)
        assert (held.version, held.seq) == (5, 6)


async def test_a_session_that_was_deleted_stays_so_though_the_replica_has_it(pair):
    async with failing_over(pair) as it:
        deleted = await it.mad.create_session("ada", durability="warm")
        again = await it.mad.create_session("ada", durability="warm")
        await it.pair.followed()
        await it.pair.part()
        await it.eye.delete_session(deleted.id, durability="warm")
        await it.eye.delete_session(again.id, durability="warm")
        made = await it.eye.create_session(
            "bob", session_id=again.id, durability="warm"
        )
        await it.eye.append_and_wait(again.id, "second life", durability="warm")
        await it.happen()
        with pytest.raises(NotFound):
            await it.eye.get_session(deleted.id, timeout=20)
        found = await it.eye.get_session(again.id, timeout=20)
        assert (found.owner_id, found.created_at) == ("bob", made.created_at)
        assert await it.texts(again.id) == ["second life"]


async def test_it_may_fail_over_again_before_anything_is_settled(pair):
    """
    To the replica, and back to the first server with what it had.
    """
    async with failing_over(pair) as it:
        made = [await it.mad.create_session("ada", durability="warm") for _ in "ab"]
        ids = [one.id for one in made]
        await it.pair.followed()
        await it.pair.part()
        it.deafen()
        for n in range(4):
            for one in ids:
                it.mad.append(one, n)
        for one in ids:
            await it.held(one, last_seq=4)
        await it.happen()
        await it.mad.flush(timeout=20)
        it.deafen()
        for n in range(4, 8):
            for one in ids:
                it.mad.append(one, n)
        for one in ids:
            await it.held(one, last_seq=8)
        await it.pair.one.bus.restart()
        it.house.bus.lead_to(it.pair.one)
        it.mine.bus.lead_to(it.pair.one)
        await it.mad.flush(settled=True, timeout=30)
        for one in ids:
            assert await it.texts(one) == list(range(8))
            assert await it.eye.append_and_wait(one, "on", durability="warm") == 9
