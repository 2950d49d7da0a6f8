"""
A hot copy stays until MongoDB holds it, and then for a while; what is durable.

On Valkey, SecantusDB and nanio, through the SDK; the archiver is in the test's hands,
so that what a test says happens first has happened.
"""

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import pytest

from everbus.bus import Mad, Unavailable
from everbus.bus.keys import partition_of
from everbus.compose.retried_calls import read_retrying
from everbus.gateway.store import key_names
from tests.conversations import Conversation
from tests.lineages import lost_writes
from tests.replicas import until
from tests.stack import PARTITIONS, Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestHotCopies:
    async def test_one_expires_only_when_mongodb_holds_it(self, stack):
        """
        With the archiver stopped it has no end; once confirmed, it has one; the next
        write takes that away again.
        """
        async with stack.served(hot_ttl_s=600) as (mad, hands):
            one = await Conversation.begin(mad)
            await one.say(30)
            assert await ends_in_ms(stack, one) == [-1, -1]

            async with hands.draining(hot_ttl_s=600):
                await stack.drained()
                assert all(0 < ms <= 600_000 for ms in await ends_in_ms(stack, one))
            await one.say(1)
            assert await ends_in_ms(stack, one) == [-1, -1]

    async def test_a_write_that_mongodb_does_not_hold_is_not_expired_by_the_one_before(
        self, stack
    ):
        """
        The archiver confirms what it read before; behind that, there is more.
        """
        passed, go_on = asyncio.Event(), asyncio.Event()

        async with (
            stack.served(hot_ttl_s=600) as (mad, hands),
            AsyncExitStack() as ends,
        ):
            one = await Conversation.begin(mad)
            write = hands.warm.write

            async def slowly(records):
                refused = await write(records)
                passed.set()
                await go_on.wait()
                return refused

            hands.warm.write = slowly
            await ends.enter_async_context(hands.draining(hot_ttl_s=600))
            await passed.wait()
            await one.say(1)
            hands.warm.write = never
            go_on.set()
            await until(lambda: confirmed_once(stack, one), what="the first confirmed")

            assert await ends_in_ms(stack, one) == [-1, -1]
            hands.warm.write = write

    async def test_an_expired_one_comes_back_by_itself(self, stack):
        async with stack.served(hot_ttl_s=0.2) as (mad, hands):
            one = await Conversation.begin(mad)
            await one.say(45)
            await one.change()
            async with hands.draining(hot_ttl_s=0.2):
                await one.check()
                await stack.until_cold(one.id)

                await one.check()
                await stack.until_cold(one.id)
                await one.say(5)
                await one.check()

    async def test_one_that_is_newer_than_mongodb_is_not_overwritten(self, stack):
        """
        A replica of the bus was promoted: hot copies are compared with MongoDB, which
        is behind.
        """
        async with AsyncExitStack() as ends:
            async with stack.replica():
                mad = await ends.enter_async_context(stack.mad())
                hands = await ends.enter_async_context(stack.hands())
                one = await Conversation.begin(mad)
                async with hands.draining():
                    await one.say(5)
                    await stack.drained()
                await one.change()
                await one.say(5)
            for p in range(PARTITIONS):
                await lost_writes(stack.client, p)
            async with stack.replica():
                await one.say(5)
                assert await ends_in_ms(stack, one) == [-1, -1]
                async with hands.draining():
                    await stack.drained()
                    await one.check()
                    await stack.client.flushall()
                    await one.check()


async def never(records):
    raise Unavailable("MongoDB is away")


async def ends_in_ms(stack: Stack, one: Conversation) -> list[int]:
    """
    How long its hot keys stay; -1: without end; those that are not there left out.
    """
    p = partition_of(one.id, PARTITIONS)
    keys = key_names.session(p, one.id), key_names.recent(p, one.id)

    return [ms for key in keys if (ms := await stack.client.pttl(key)) != -2]


async def confirmed_once(stack: Stack, one: Conversation) -> bool:
    p = partition_of(one.id, PARTITIONS)
    key = key_names.session(p, one.id)

    return bool(await stack.client.hexists(key, "durable_version"))


async def test_full_context_is_nowhere_in_redis_and_comes_back(stack):
    """
    Only on its way through: once MongoDB holds it, no key but the MAD's own ingress
    has it.
    """
    mark = "a-word-that-is-nowhere-else"
    async with stack.served() as (mad, hands):
        one = await mad.create_session("ada")
        patch = {"full_context": {"notes": {mark: [mark]}, "gone": 1}}
        await mad.update_session(one.id, patch)
        async with hands.draining():
            await stack.drained()
            await mad.update_session(one.id, {"full_context": {"gone": None, "n": 2}})
            whole = await mad.get_session(one.id, full=True)
            await stack.drained()

            assert whole.full_context == {"notes": {mark: [mark]}, "n": 2}
            assert (await mad.get_session(one.id)).full_context is None
            found = [key async for key in stack.client.scan_iter(count=1000)]
            kept = [key for key in found if b":in:" not in key and b"reply" not in key]
            assert (
                key_names.session(partition_of(one.id, PARTITIONS), one.id).encode()
                in kept
            )
            for key in kept:
                assert mark.encode() not in await told_by(stack, key), key

            await mad.suspend_session(one.id)
            await hands.archive()
            assert (await stack.document(one.id))["archival_status"] == "S3"
            whole = await mad.get_session(one.id, full=True)
            assert whole.full_context == {"notes": {mark: [mark]}, "n": 2}


async def told_by(stack: Stack, key: bytes) -> bytes:
    """
    All that a key of Redis holds.
    """
    read = {
        b"hash": ("HGETALL", key),
        b"list": ("LRANGE", key, 0, -1),
        b"stream": ("XRANGE", key, "-", "+"),
        b"string": ("GET", key),
        b"set": ("SMEMBERS", key),
        b"zset": ("ZRANGE", key, 0, -1),
    }
    command = read[await stack.client.type(key)]

    return repr(await stack.client.execute_command(*command)).encode()


class TestDurability:
    async def test_a_warm_reply_waits_for_mongodb_and_then_survives_the_loss_of_redis(
        self, stack
    ):
        async with stack.served() as (mad, hands):
            one = await mad.create_session("ada")
            *waiting, behind = [
                asyncio.create_task(write)
                for write in (
                    mad.append_and_wait(one.id, {"n": 1}, durability="warm"),
                    mad.update_session(one.id, {"tags": ["x"]}, durability="warm"),
                    mad.append_and_wait(one.id, {"n": 2}),
                )
            ]
            # Behind them in the lane, so they are committed.
            await behind
            assert not any(task.done() for task in waiting)
            assert await stack.document(one.id) is None

            async with hands.draining():
                seq, after = await asyncio.gather(*waiting)
                await stack.drained()
            await stack.client.flushall()

            session = await read_retrying(partial(mad.get_session, one.id))
            assert (seq, after.version) == (1, 2)
            assert (session.version, session.tags) == (2, ("x",))
            page = await read_retrying(partial(mad.timeline, one.id))
            assert [e.entry["n"] for e in page.entries] == [1, 2]

    async def test_everything_acknowledged_warm_survives_the_loss_of_redis_under_load(
        self, stack
    ):
        """
        The bus is emptied in the middle of it; the others may be gone.
        """
        acknowledged: dict[str, int] = {}

        async def writing(mad: Mad, session_id: str) -> None:
            n = 0
            while True:
                n += 1
                await mad.append_and_wait(
                    session_id, {"n": n}, durability="warm", timeout=30
                )
                acknowledged[session_id] = n

        async with stack.served() as (mad, hands), hands.draining():
            made = [
                (await mad.create_session("ada", durability="warm")).id
                for _ in range(8)
            ]
            tasks = [asyncio.create_task(writing(mad, s)) for s in made]
            await until(
                lambda: len(acknowledged) == 8 and min(acknowledged.values()) >= 5,
                20,
                "each has some",
            )
            await stack.client.flushall()
            before = dict(acknowledged)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

            for session_id, count in before.items():
                read = partial(mad.timeline, session_id, limit=1000)
                numbers = [e.entry["n"] for e in (await read_retrying(read)).entries]
                assert numbers[:count] == list(range(1, count + 1))
                assert numbers == list(range(1, len(numbers) + 1))

    async def test_how_much_mongodb_holds_can_be_asked_and_waited_for(self, stack):
        async with stack.served() as (mad, hands):
            one = await mad.create_session("ada")
            await mad.append_and_wait(one.id, {"n": 1})
            now = await mad.durable(one.id)
            assert (now.version, now.seq) == (0, 0)
            waiting = asyncio.create_task(mad.durable(one.id, wait=True))
            await mad.append_and_wait(one.id, {"n": 2})
            assert not waiting.done()

            async with hands.draining():
                then = await waiting
                assert (then.version, then.seq) >= (1, 1)
                await stack.drained()
                last = await mad.durable(one.id)
                assert (last.version, last.seq) == (1, 2)
