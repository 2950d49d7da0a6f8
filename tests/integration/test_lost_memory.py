"""
Redis comes back with less than it had: a cut AOF, an older copy, nothing at all.

On Valkey and SecantusDB, through the SDK. What MongoDB holds counts then, nothing is
given twice, and what is not settled is sent again.
"""

import asyncio
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from everbus.bus.errors import NotFound, Unavailable
from everbus.bus.keys import partition_of
from everbus.gateway.store import key_names
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import NOTED
from tests.conversations import Conversation
from tests.replicas import until
from tests.stack import PARTITIONS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def durable(stack, *conversations):
    for one in conversations:
        await one.mad.durable(one.id, wait=True)


def aof_of(stack) -> Path:
    return next((stack.folder / "valkey").rglob("*.incr.aof"))


class Memory:
    """
    How a bus loses the newest part of its memory; `note` what it shall come back with.
    """

    def __init__(self, stack, how):
        self.stack, self.how = stack, how
        self.folder = stack.folder / "valkey"
        self.copy = stack.folder / "copy"
        self.size = 0

    async def note(self):
        self.size = aof_of(self.stack).stat().st_size
        shutil.rmtree(self.copy, ignore_errors=True)
        if self.how == "an older copy":
            shutil.copytree(self.folder, self.copy)

    async def lose(self):
        if self.how == "FLUSHALL":
            await self.stack.client.flushall()
            return
        await self.stack.bus.kill()
        if self.how == "an older copy":
            shutil.rmtree(self.folder)
            shutil.copytree(self.copy, self.folder)
        else:
            # In the middle of a command, as a crash of the host cuts it.
            os.truncate(aof_of(self.stack), self.size + 20)
        await self.stack.bus.restart()


LOSSES = pytest.mark.parametrize("how", ["a cut tail", "an older copy", "FLUSHALL"])


@LOSSES
async def test_what_mongodb_holds_is_there_and_nothing_is_given_twice(stack, how):
    """
    Also in sessions that nobody asks for at once, that rest, or that are new.
    """
    memory = Memory(stack, how)
    began = metrics.LINEAGES._value.get()
    went_back = NOTED.totals()["hot_tier_went_back"]
    NOTED._noticed_at.pop("hot_tier_went_back", None)  # by an earlier test
    async with stack.served() as (mad, hands), hands.draining():
        known = [await Conversation.begin(mad) for _ in range(3)]
        for one in known:
            await one.say(5)
            await one.change()
        await known[2].suspend()
        await durable(stack, *known)
        await memory.note()
        new = [await Conversation.begin(mad) for _ in range(2)]
        for one in (*known, *new):
            await one.say(12)
            await one.change()
        await known[1].suspend()
        await new[1].suspend()
        await durable(stack, *known, *new)

        await memory.lose()

        await known[0].say(2)
        await new[0].change()
        for one in (*known, *new):
            await one.check()
            await one.say(3)
            await one.change()
            await one.check()
            held = await mad.durable(one.id, wait=True)
            assert (held.version, held.seq) == (one.version, len(one.entries))
            await one.suspend()
            await stack.until_cold(one.id)
            await one.check()
        assert metrics.LINEAGES._value.get() > began
        if how != "FLUSHALL":  # which `hot_tier_emptied` tells
            assert NOTED.totals()["hot_tier_went_back"] == went_back + 1
        assert not await stack.client.xlen(key_names.dead(0))
        assert not await stack.client.xlen(key_names.dead(1))


async def test_what_was_not_settled_is_sent_again_behind_newer_commands(stack):
    """
    The bus is emptied under a connection that stays: the MAD sends newer commands
    before it learns of that.
    """
    async with stack.served() as (mad, hands), hands.draining():
        resting = await mad.create_session("ada")
        await mad.append_and_wait(resting.id, "before")
        await mad.suspend_session(resting.id)
        await stack.until_cold(resting.id)
        stack.mongo.pause()
        try:
            for n in range(50):
                mad.append(resting.id, n)
            await mad.flush()
            await stack.client.flushall()
            here = partition_of(resting.id, PARTITIONS)
            near = next(
                f"near-{n}" for n in range(99) if partition_of(f"near-{n}", 2) == here
            )
            later = mad.append(near, "nowhere")
        finally:
            stack.mongo.resume()
        await until(lambda: is_refused(mad, later), 20)
        with pytest.raises(NotFound):
            await mad.flush(settled=True, timeout=20)
        page = await mad.timeline(resting.id)
        assert [one.entry for one in page.entries] == ["before", *range(50)]


async def is_refused(mad, command_id):
    return (await mad.outcome(command_id)).state == "rejected"


class Held:
    """
    The archiver's next operation on one collection, held before MongoDB has it.
    """

    def __init__(self, hands, collection):
        self._mongo = hands.warm.tier._mongo
        self._bulk = self._mongo.bulk
        self._collection = collection
        self.on_its_way, self.go = asyncio.Event(), asyncio.Event()

    async def _held(self, collection, operations, **options):
        if collection == self._collection and operations:
            self.on_its_way.set()
            await self.go.wait()
        return await self._bulk(collection, operations, **options)

    def __enter__(self):
        self._mongo.bulk = self._held
        return self

    def __exit__(self, *_):
        self._mongo.bulk = self._bulk


@pytest.mark.parametrize("collection", ["timeline", "events", "sessions"])
async def test_a_write_on_its_way_over_a_flush_takes_nothing_from_what_comes_after(
    stack, collection
):
    """
    Before it, between its entries and its events, or before the document.
    """
    async with stack.served() as (mad, hands):
        async with hands.draining():
            session = (await mad.create_session("ada", durability="warm")).id
        for n in range(3):
            await mad.append_and_wait(session, f"old-{n}")
        await mad.update_session(session, {"tags": ["old"]})
        with Held(hands, collection) as held:
            async with hands.draining():
                await asyncio.wait_for(held.on_its_way.wait(), 20)
                await stack.client.flushall()
                told = [
                    await mad.append_and_wait(session, f"new-{n}", timeout=20)
                    for n in range(2)
                ]
                after = await mad.update_session(session, {"tags": ["new"]})
                held.go.set()
                await mad.durable(session, wait=True, timeout=20)

                page = await mad.timeline(session)
                found = {one.seq: one.entry for one in page.entries}
                assert sorted(found) == list(range(1, len(found) + 1))
                assert [found[seq] for seq in told] == ["new-0", "new-1"]
                assert after.version == (await mad.get_session(session)).version
                await mad.suspend_session(session)
                await stack.until_cold(session)
                cold = (await mad.timeline(session)).entries
                assert {one.seq: one.entry for one in cold} == found
                assert (await mad.get_session(session)).tags == ("new",)
        kept = stack.held["events"].find({"session": session})
        versions = [one["version"] async for one in kept]
        assert len(versions) == len(set(versions))


async def test_a_session_in_doubt_waits_while_mongodb_is_away(stack):
    """
    Its requests are told `unavailable`, appends wait; both are told and then go on.
    """
    doubted = metrics.DOUBTFUL.labels("wait")
    before = doubted._value.get()
    async with stack.served(warm_timeout_s=0.5) as (mad, hands), hands.draining():
        one = await Conversation.begin(mad)
        await one.say(3)
        await durable(stack, one)
        stack.mongo.pause()
        try:
            await stack.bus.kill()
            await stack.bus.restart()
            with pytest.raises(Unavailable):
                await mad.update_session(one.id, {"tags": ["x"]}, timeout=20)
            mad.append(one.id, one._next())
            await mad.flush(timeout=20)
            assert doubted._value.get() > before
        finally:
            stack.mongo.resume()
        await mad.flush(settled=True, timeout=20)
        await one.check()


@LOSSES
async def test_a_session_in_doubt_is_served_if_the_operator_wants_it(stack, how):
    """
    Then MongoDB decides when it is back: what it held later wins, and is told.
    """
    memory = Memory(stack, how)
    served = metrics.DOUBTFUL.labels("serve")
    before = served._value.get()
    settings = {"warm_timeout_s": 0.5, "doubt": "serve"}
    async with stack.served(**settings) as (mad, hands), hands.draining():
        one = await Conversation.begin(mad)
        await one.say(3)
        await one.change()
        await durable(stack, one)
        await memory.note()
        await one.say(2)
        await one.change()
        await durable(stack, one)
        await mad.flush(settled=True)
        stack.mongo.pause()
        try:
            await memory.lose()
            if how == "FLUSHALL":  # nothing is hot: nothing can be served
                with pytest.raises(Unavailable):
                    await mad.append_and_wait(one.id, "doubtful", timeout=20)
            else:
                seq = await mad.append_and_wait(one.id, "doubtful", timeout=20)
                assert seq == 4
                assert served._value.get() > before
        finally:
            stack.mongo.resume()

        async def compared():
            return (await mad.get_session(one.id, timeout=20)).version == one.version

        await until(compared, 20)
        await one.check()
        await one.say(2)
        await one.check()
        await durable(stack, one)
        if how != "FLUSHALL":
            p = partition_of(one.id, PARTITIONS)
            letters = await stack.client.xrange(key_names.dead(p))
            assert [fields[b"cause"] for _, fields in letters] == [b"diverged"]


async def test_emptied_after_a_clock_was_ahead_it_serves_once_the_operator_says_so(
    stack,
):
    """
    The new lineage is lower than those in MongoDB, as an older side's would be: nobody
    can tell them apart, so it is refused, and the refusal names what helps.
    """
    async with stack.served() as (mad, hands), hands.draining():
        for p in range(PARTITIONS):
            ahead = round(time.time() * 1000) + 3_600_000
            await stack.client.hset(key_names.lineage(p), "lineage", ahead)
            await stack.client.delete(key_names.owner(p))

        async def settles_ahead():
            made = await mad.create_session("ada", durability="warm", timeout=20)
            found = await stack.document(made.id)
            return found["lineage"] >= ahead and made.id

        session = await until(settles_ahead, 20)
        await mad.append_and_wait(session, "before", durability="warm", timeout=20)
        await stack.client.flushall()

        async def refused():
            try:
                await mad.get_session(session, timeout=20)
            except Unavailable as error:
                return error.details.get("stale_side") and error
            return None

        error = await until(refused, 20)
        [key, field, lineage] = re.search(
            r"`HSET (\S+) (\S+) (\S+)`", error.message
        ).groups()
        for p in range(PARTITIONS):
            await stack.client.hset(key.replace("{p}", f"{{{p}}}"), field, lineage)
        await stack.bus.restart()

        assert await mad.append_and_wait(session, "after", timeout=20) == 2
        held = await mad.durable(session, wait=True, timeout=20)
        assert held.seq == 2
