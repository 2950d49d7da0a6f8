"""
Reads of the lower tiers beside a lane, with tiers that a test answers by hand.
"""

import asyncio
import time
from collections import deque

import msgspec
import pytest

from everbus.bus.errors import Unavailable
from everbus.gateway.lane.fetches import LOAD_RETRY_S, Fetches
from everbus.gateway.lane.lookup import Doubt
from everbus.gateway.lane.waiting import WaitingSessions
from everbus.gateway.store.claims import Claim
from everbus.gateway.store.hot_copy import Found
from everbus.gateway.store.tiers import Admissible
from everbus.handlers.fetch_requests import FullContext
from tests.builders import a_session
from tests.lane_parts import NOW, a_decider, an_append, an_update, delivered

DOUBT = Doubt(Claim(session="s1", lineage=1), Found(None))


class Tiers:
    """
    Answers what it has; an Exception is raised.
    """

    def __init__(self, held=(), answer=None):
        self.held = dict(held)
        self.given = answer
        self.asked = []

    async def load_each(self, claims, found, wanted):
        session_ids = [claim.session for claim in claims]
        self.asked.append(session_ids)
        for session_id in session_ids:
            if isinstance(self.held.get(session_id), Exception):
                raise self.held[session_id]
            if session_id in self.held:
                found(session_id, self.held[session_id])

    async def answer(self, session, wanted):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


class Reads:
    """
    The fetches of a lane, and what they act on.
    """

    def __init__(self, **options):
        self.tiers = Tiers(**options)
        self.decider = a_decider()
        self.decider.cache.sessions["s1"] = a_session()
        self.waiting = WaitingSessions(time.monotonic)
        self.queue = deque()
        self.nudged = asyncio.Event()
        self.fetches = Fetches(
            self.tiers, self.decider, self.waiting, self.queue, self.nudged.set
        )

    async def load(self, *deliveries):
        for delivery in deliveries:
            if not self.waiting.enqueue_behind(delivery):
                self.fetches.load(delivery, DOUBT)
        await asyncio.wait_for(self.nudged.wait(), 5)
        await asyncio.gather(*self.fetches._loads)
        return {s: read for s, (_, read) in self.fetches.take_loaded().items()}

    async def read(self, delivery):
        delivery.want(FullContext(version=1), a_session())
        self.fetches.read(delivery)
        await asyncio.gather(*self.fetches.reads)
        return delivery.given


async def test_a_session_is_loaded_once_for_all_its_commands():
    reads = Reads(held={"s1": Admissible(a_session())})

    loaded = await reads.load(an_update(1), an_update(2))

    assert loaded == {"s1": Admissible(a_session())}
    assert reads.tiers.asked == [["s1"]]
    assert len(reads.waiting.queues["s1"]) == 2
    assert reads.fetches.take_loaded() == {}


async def test_commands_go_on_in_order_once_their_session_is_there():
    reads = Reads(held={"s1": Admissible(a_session())})
    first, second = an_update(1), an_update(2)
    await reads.load(first, second)

    reads.fetches.resume("s1", a_session(version=7), NOW)

    assert reads.decider.cache.sessions["s1"].version == 7
    assert reads.waiting.release() == [first, second]


async def test_what_cannot_be_had_answers_requests_and_appends_wait_on():
    """
    Nobody would hear of a refused append.
    """
    error = Unavailable("MongoDB is away")
    reads = Reads(held={"s1": error})
    update, append = an_update(1), an_append(2)
    assert await reads.load(update, append) == {"s1": error}

    reads.fetches.resume("s1", error, NOW)

    assert (list(reads.queue), update.given) == ([update], error)
    assert list(reads.waiting.queues["s1"]) == [append]
    assert 0 < reads.waiting.due_in_s() <= LOAD_RETRY_S


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({}, "no answer"),
        ({"s1": ZeroDivisionError("a defect")}, "failed: ZeroDivisionError"),
    ],
)
async def test_each_load_ends_whatever_the_tiers_do(held, words):
    loaded = await Reads(held=held).load(an_update())

    assert words in loaded["s1"].message


async def test_a_write_that_wants_data_blocks_its_session_until_it_is_there():
    reads = Reads(answer={"a": 1})
    update = an_update()
    update.want(FullContext(version=1), a_session())
    reads.fetches.read(update)
    assert list(reads.waiting.queues) == ["s1"]

    await asyncio.gather(*reads.fetches.reads)

    assert update.given == {"a": 1}
    assert reads.waiting.release() == [update]


async def test_a_read_that_wants_data_blocks_nobody():
    reads = Reads(answer={"a": 1})
    get = delivered("session.get")

    assert await reads.read(get) == {"a": 1}
    assert (list(reads.queue), reads.waiting.queues) == ([get], {})


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError("a defect")])
async def test_a_failed_read_is_given_as_an_error(error):
    given = await Reads(answer=error).read(delivered("session.get"))

    assert isinstance(given, Unavailable)


async def test_data_counts_in_the_budget_until_its_batch_takes_it_over():
    reads = Reads(answer={"a": "x" * 1000})
    get = delivered("session.get")
    await reads.read(get)
    assert reads.fetches._budget._taken == get.given_bytes > 1000

    reads.fetches.release(get)

    assert reads.fetches._budget._taken == get.given_bytes == 0


async def test_a_disturbance_gives_all_of_the_budget_back():
    reads = Reads(answer={"a": "x" * 1000})
    await reads.read(delivered("session.get"))

    reads.fetches.cancel()

    assert reads.fetches._budget._taken == 0


async def test_a_late_write_that_may_have_had_its_effect_waits_for_the_tiers():
    """
    Its caller has gone; an answer now could be untrue, and `outcome` would repeat it.
    """
    error = Unavailable("MongoDB is away")
    reads = Reads(held={"s1": error})
    reads.decider.cache.records_lost = True
    late, in_time = an_update(1), an_update(2)
    late.envelope = msgspec.structs.replace(late.envelope, deadline_ms=1)
    late.entry.arrived_ms = NOW.ms - 2
    get = delivered("session.get")
    await reads.load(late, in_time, get)

    reads.fetches.resume("s1", error, NOW)

    assert list(reads.queue) == [in_time, get]
    assert list(reads.waiting.queues["s1"]) == [late]
