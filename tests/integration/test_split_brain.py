"""
Two buses believe to be the one bus, with one MongoDB: nobody is told what is not true.

Managers and archivers work on both sides. A `warm` write is in MongoDB, or its caller
hears an error; no place in a session is given twice; what is refused is told.
"""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from everbus.bus.errors import EverbusError
from everbus.gateway.store.dead_letters import letter_of
from everbus.gateway.telemetry import metrics
from tests.bus_pair import BusPair, bus_pair
from tests.replicas import letters
from tests.stack import PARTITIONS

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory):
    async with bus_pair(tmp_path_factory.mktemp("split")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def pair(servers: BusPair) -> BusPair:
    await servers.empty()
    return servers


class Side:
    """
    One side, its MAD, its archiver, and the texts that it was told are in MongoDB.
    """

    def __init__(self, stack, mad, hands, name):
        self.stack, self.mad, self.hands, self.name = stack, mad, hands, name
        self.told = {}
        self.refused = []
        self.ends = AsyncExitStack()

    async def drain(self):
        await self.ends.enter_async_context(self.hands.draining())

    async def say(self, session_id, text):
        try:
            seq = await self.mad.append_and_wait(
                session_id, text, durability="warm", timeout=5
            )
            self.told[session_id, seq] = text
        except EverbusError as error:
            self.refused.append(error)

    async def change(self, session_id, n):
        try:
            found = await self.mad.update_session(
                session_id,
                {"context_summary": {self.name: n}},
                durability="warm",
                timeout=5,
            )
            self.told[session_id, "version", found.version] = (self.name, n)
        except EverbusError as error:
            self.refused.append(error)

    async def causes(self):
        found = await letters(self.stack.client, PARTITIONS)
        return [letter_of(fields).cause for fields in found]


@asynccontextmanager
async def side_of(stack, name):
    async with stack.served() as (mad, hands):
        side = Side(stack, mad, hands, name)
        try:
            yield side
        finally:
            await side.ends.aclose()


async def check(pair, sides):
    """
    Everything that was told is in MongoDB, once and whole.
    """
    held = pair.one.held
    found = {}
    async for entry in held["timeline"].find():
        place = entry["session"], entry["seq"]
        assert place not in found
        found[place] = entry
    events = {}
    async for event in held["events"].find():
        place = event["session"], "version", event["version"]
        assert place not in events
        events[place] = event["patch"]
    documents = {one["_id"]: one async for one in held["sessions"].find()}
    for side in sides:
        for place, what in side.told.items():
            if place[1] == "version":
                name, n = what
                assert place[2] <= documents[place[0]]["version"]
                assert str({name: n})[1:-1] in str(events[place]), place
            else:
                assert place[1] <= documents[place[0]]["last_seq"]
                assert what.encode() in bytes(str(found[place]), "utf-8"), place


async def test_warm_writes_of_both_sides_are_kept_or_refused(pair):
    """
    The old side writes on while the new one takes over, session by session.
    """
    diverged = metrics.BURIED_RECORDS.labels("diverged")._value.get()
    async with side_of(pair.one, "old") as old:
        await old.drain()
        made = [await old.mad.create_session("ada", durability="warm") for _ in "abc"]
        ids = [one.id for one in made]
        for one in ids:
            await old.say(one, "both")
        await pair.followed()
        await pair.part()
        await pair.promote()
        async with side_of(pair.two, "new") as new:
            await new.drain()

            async def work(side, n):
                for one in ids:
                    await side.say(one, f"{side.name}-{n}")
                    await side.change(one, n)

            for n in range(4):
                await asyncio.gather(work(old, n), work(new, n))
            await asyncio.gather(*(side.stack.drained() for side in (old, new)))
            await check(pair, (old, new))
            assert not new.refused
            assert old.refused
            assert {error.code for error in old.refused} == {"unavailable"}
            lost = metrics.BURIED_RECORDS.labels("diverged")._value.get() - diverged
            assert lost == (await old.causes()).count("diverged")


async def test_hot_writes_of_the_old_side_that_come_late_are_told_and_change_nothing(
    pair,
):
    """
    Its archiver comes back when the new side has gone on.
    """
    async with side_of(pair.one, "old") as old:
        await old.drain()
        session = (await old.mad.create_session("ada", durability="warm")).id
        await pair.followed()
        await old.ends.aclose()
        await pair.part()
        await pair.promote()
        for n in range(3):
            await old.mad.append_and_wait(session, f"old-{n}")
            await old.mad.update_session(session, {"tags": [f"old-{n}"]})
        waiting = asyncio.create_task(old.say(session, "old-warm"))
        async with side_of(pair.two, "new") as new:
            await new.drain()
            for n in range(2):
                await new.say(session, f"new-{n}")
                await new.change(session, n)
            await old.drain()
            await asyncio.wait_for(waiting, 20)
            await old.stack.drained()

            await check(pair, (old, new))
            assert [error.details for error in old.refused] == [{"durable": False}]
            assert not old.told
            assert set(await old.causes()) == {"diverged"}
            texts = [one.entry for one in (await new.mad.timeline(session)).entries]
            assert texts == ["new-0", "new-1"]
            with pytest.raises(EverbusError) as error:
                await old.mad.durable(session, wait=True, timeout=5)
            assert error.value.code == "unavailable"
