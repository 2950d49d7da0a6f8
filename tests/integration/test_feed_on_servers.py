"""
What happened in a session is told the same from outbox, MongoDB and S3.

On Valkey, SecantusDB and nanio; the archiver is in the test's hands, or killed, so
that what a test says happens first has happened.
"""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from everbus.bus import Mad, Unavailable
from everbus.bus.events import Position, SessionEvent, generation_of, position_of
from everbus.bus.messages import Session, pack, unpack
from everbus.bus.wire import Wire
from everbus.compose.tier_settings import outbox_of
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.reader import Reader
from everbus.handlers.fetch_requests import EventsAfter
from tests.conversations import Conversation
from tests.hands import tiers_here
from tests.integration.test_hot_copies import confirmed_once, ends_in_ms, never
from tests.lineages import lost_writes
from tests.replicas import until
from tests.stack import PARTITIONS, Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Watcher:
    """
    Reads what happened, page by page, as a manager does.
    """

    def __init__(self, reader: Reader, mad: Mad) -> None:
        self._reader = reader
        self._mad = mad

    async def read(
        self, session_id: str, after: Position | None = None, limit: int = 7
    ) -> list[SessionEvent]:
        session = await self._mad.get_session(session_id)

        return await self.read_of(session, after, limit)

    async def read_of(
        self, session: Session, after: Position | None = None, limit: int = 7
    ) -> list[SessionEvent]:
        after = after or Position(generation_of(session.created_at))
        first, through = after.number + 1, position_of(session)
        found: list[SessionEvent] = []
        while after != through:
            wanted = EventsAfter(after=after, through=through, limit=limit)
            page = await self._reader.answer(session, wanted)
            found += page.events
            after = found[-1].position
            assert page.done == (after == through)
        numbers = [event.position.number for event in found]
        assert numbers == list(range(first, through.number + 1))

        return found


@asynccontextmanager
async def watching(stack: Stack, mad: Mad):
    settings = stack.settings()
    warm, vault = tiers_here(settings, lambda _: None)
    outbox = outbox_of(settings)
    reader = Reader(warm, vault, Prices(), outbox=outbox, catch_up_s=2.0)
    try:
        yield Watcher(reader, mad)
    finally:
        await reader.close()
        await outbox.close()
        warm.close()
        vault.close()


async def talk(mad: Mad, one: Conversation, times: int = 3) -> None:
    """
    Something of every kind, some of it several times over.
    """
    for n in range(times):
        await one.say(4)
        await mad.broadcast(one.id, {"n": n, "deep": [None, 1.5]})
        await one.change()
        await mad.broadcast(one.id, n)
        await mad.create_checkpoint(one.id, name=f"c{n}", durability="hot")


def packed(events: list[SessionEvent], *, audit: bool = True) -> list[bytes]:
    """
    For comparing; without what an archive does not keep of an append, if so wanted.
    """
    bare = {} if audit else {"command_id": "", "principal": ""}
    return [
        pack(
            msgspec.structs.replace(event, **bare)
            if event.kind == "timeline.appended"
            else event
        )
        for event in events
    ]


async def test_it_is_the_same_wherever_the_session_lies(stack):
    """
    In the outbox, in MongoDB, archived and returned; each event once, in its place.
    """
    async with (
        stack.served(hot_ttl_s=0.2) as (mad, hands),
        watching(stack, mad) as watcher,
    ):
        one = await Conversation.begin(mad)
        await talk(mad, one)
        await one.suspend(durability="hot")
        committed = await watcher.read(one.id)
        said = [e for e in committed if e.kind == "timeline.appended"]
        assert [unpack(e.entry, dict)["n"] for e in said] == list(range(1, 13))

        async with hands.draining(hot_ttl_s=0.2):
            await stack.drained()
            held = await watcher.read(one.id)
            await stack.until_cold(one.id)
            await hands.archive()
            await hands.upkeep.purge()
            assert (await stack.document(one.id))["archival_status"] == "S3"
            returned = await watcher.read(one.id)
            await hands.upkeep.restore()
            await one.change()
            await stack.drained()
        await mad.broadcast(one.id, "behind")
        spread = await watcher.read(one.id)

    assert packed(held) == packed(committed)
    assert packed(returned, audit=False) == packed(committed, audit=False)
    assert all(e.command_id for e in returned if e.kind != "timeline.appended")
    kinds = [event.kind for event in spread[len(committed) :]]
    assert kinds == ["session.updated", "session.broadcast"]
    assert packed(spread[: len(returned)]) == packed(returned)


async def test_from_any_event_on_while_all_goes_on(stack):
    """
    Commits, write-behind and expiry beside it: no event is missed, none told twice.
    """
    async with (
        stack.served(hot_ttl_s=0.2) as (mad, hands),
        watching(stack, mad) as watcher,
    ):
        one = await Conversation.begin(mad)
        found = await watcher.read(one.id)
        async with hands.draining(hot_ttl_s=0.2), asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(talk(mad, one, 6))
            while not talking.done():
                found += await watcher.read(one.id, found[-1].position)
        found += await watcher.read(one.id, found[-1].position)

        assert packed(found) == packed(await watcher.read(one.id))


async def test_broadcasts_alone_outlast_the_hot_copy(stack):
    """
    Their number is all that they change; it comes back, and goes on.
    """
    async with stack.served(hot_ttl_s=0.2) as (mad, hands):
        one = await Conversation.begin(mad)
        async with hands.draining(hot_ttl_s=0.2), watching(stack, mad) as watcher:
            for n in range(3):
                await mad.broadcast(one.id, n)
                await stack.until_cold(one.id)
                session = await mad.get_session(one.id)
                assert (session.version, session.notices) == (1, n + 1)
                document = await stack.document(one.id)
                assert document["last_active"] == session.last_active
                await stack.until_cold(one.id)

            found = await watcher.read(one.id)
            assert [event.message for event in found] == [None, 0, 1, 2]


async def test_a_broadcast_that_mongodb_does_not_hold_keeps_the_hot_copy(stack):
    """
    The archiver confirms what it read before; behind that, something was said.
    """
    passed, go_on = asyncio.Event(), asyncio.Event()

    async with (
        stack.served(hot_ttl_s=600) as (mad, hands),
        AsyncExitStack() as ends,
    ):
        one = await Conversation.begin(mad)
        write = hands.warm.write

        async def slowly(records: Any) -> Any:
            refused = await write(records)
            passed.set()
            await go_on.wait()
            return refused

        hands.warm.write = slowly
        await ends.enter_async_context(hands.draining(hot_ttl_s=600))
        await passed.wait()
        await mad.broadcast(one.id, "behind")
        hands.warm.write = never
        go_on.set()
        await until(lambda: confirmed_once(stack, one), what="the first confirmed")

        assert await ends_in_ms(stack, one) == [-1]
        hands.warm.write = write
        await stack.drained()
        assert all(ms > 0 for ms in await ends_in_ms(stack, one))


async def test_a_promoted_replica_that_lacks_broadcasts_gets_them_back(stack):
    """
    The hot copy is compared with MongoDB, which holds more of them.
    """
    async with AsyncExitStack() as ends:
        async with stack.replica():
            mad = await ends.enter_async_context(stack.mad())
            hands = await ends.enter_async_context(stack.hands())
            one = await Conversation.begin(mad)
            async with hands.draining():
                await mad.broadcast(one.id, 1)
                await mad.broadcast(one.id, 2)
                await stack.drained()
        for p in range(PARTITIONS):
            await lost_writes(stack.client, p)
            key = key_names.session(p, one.id)
            if await stack.client.exists(key):
                await stack.client.hset(key, "notices", 1)
        async with stack.replica(), watching(stack, mad) as watcher:
            await mad.broadcast(one.id, 3)
            async with hands.draining():
                await stack.drained()

            found = await watcher.read(one.id)
            assert [event.message for event in found] == [None, 1, 2, 3]


@pytest.mark.parametrize("point", ["drain_read", "drain_written"])
async def test_an_archiver_that_dies_on_the_way_leaves_no_gap(stack, point):
    """
    Between outbox and MongoDB everything is in one of the two.
    """
    async with stack.served() as (mad, hands), watching(stack, mad) as watcher:
        one = await Conversation.begin(mad)
        await talk(mad, one, 2)
        committed = await watcher.read(one.id)

        async with stack.archiver("dies", fail_point=f"{point}:1") as part:
            assert await part.ended() != 0
        left = await watcher.read(one.id)
        await mad.broadcast(one.id, "meanwhile")
        more = await watcher.read(one.id, left[-1].position)
        async with hands.draining():
            await stack.drained()
        drained = await watcher.read(one.id)

    assert packed(left) == packed(committed)
    assert [event.message for event in more] == ["meanwhile"]
    assert packed(drained) == packed(committed + more)


async def test_with_mongodb_away_what_it_does_not_hold_is_told(stack):
    async with stack.served() as (mad, hands), watching(stack, mad) as watcher:
        one = await Conversation.begin(mad)
        await talk(mad, one, 1)
        async with hands.draining():
            await stack.drained()
        held = position_of(await mad.get_session(one.id))
        await talk(mad, one, 1)
        session = await mad.get_session(one.id)
        await stack.mongo.kill()

        found = await watcher.read_of(session, held)
        with pytest.raises(Unavailable):
            await watcher.read_of(session)
        await stack.mongo.restart()

        assert len(found) == position_of(session).number - held.number
        whole = await until(lambda: _answered(watcher, session), what="MongoDB back")
        assert packed(whole[-len(found) :]) == packed(found)


async def test_reading_uses_the_indexes(stack):
    """
    Of however many sessions MongoDB holds events.
    """
    async with stack.served() as (mad, hands), hands.draining():
        for _ in range(3):
            await talk(mad, await Conversation.begin(mad), 1)
        one = await Conversation.begin(mad)
        await talk(mad, one, 1)
        await stack.drained()
        life = (await mad.get_session(one.id)).created_at
        of = {"session": one.id, "life": life}
        asked = {
            "events": {**of, "version": {"$gt": 0, "$lt": 8}},
            "notices": {**of, "notices": {"$gt": 0, "$lt": 8}},
            "timeline": {**of, "seq": {"$gte": 1, "$lte": 3}},
        }
        for collection, where in asked.items():
            plan = await stack.held[collection].find(where).explain()
            told = str(plan["queryPlanner"]["winningPlan"])
            assert "COLLSCAN" not in told, collection
            assert plan["executionStats"]["totalDocsExamined"] <= 4, collection


async def test_a_hot_copy_of_which_mongodb_lacks_a_broadcast_is_not_evicted(stack):
    async with stack.served() as (mad, hands):
        one = await Conversation.begin(mad)
        wire = Wire(stack.bus.url)
        hot = RedisHot(wire, PARTITIONS)
        try:
            async with hands.draining():
                await stack.drained()
            await mad.broadcast(one.id, "behind")
            assert not await hot.forget(one.id)
            async with hands.draining():
                await stack.drained()
            assert await hot.forget(one.id)
        finally:
            await wire.close()
        assert (await mad.get_session(one.id)).notices == 1


async def _answered(watcher: Watcher, session: Session) -> Any:
    try:
        return await watcher.read_of(session)
    except Unavailable:
        return None
