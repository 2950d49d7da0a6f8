"""
How the drain waits when something is away: longer each time, and dropping nothing.
"""

import asyncio

import pytest
import structlog.testing

from everbus.archiver import drain as drains
from everbus.archiver.drain import FIRST_WAIT_S, MAX_BUS_WAIT_S, Drain
from everbus.archiver.lease import NAME as ARCHIVER
from everbus.bus.errors import Unavailable
from everbus.bus.wire import Wire, WireFailed
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import (
    COUNT_FIELD,
    VALUE_FIELD,
    Record,
    pack_records,
)
from everbus.gateway.telemetry import metrics
from tests.builders import NOW
from tests.memory_server import memory_redis

A_RECORD = Record(session="s1", created_at=NOW, version=1, last_seq=0, last_active=NOW)
OUTBOX = key_names.outbox(0)
OWNER = "1:a1/1"


class MoodyWire(Wire):
    """
    A connection that breaks as often as it is told.
    """

    fails = 0

    async def exchange(self, commands, *, timeout_s=5.0):
        if self.fails:
            self.fails -= 1
            raise WireFailed("the bus is away")
        return await super().exchange(commands, timeout_s=timeout_s)


class Outbox:
    """
    One outbox on a server in memory, and the drain's connection to it.
    """

    def __init__(self, redis):
        self.redis = redis
        self.wire = MoodyWire(redis.url)
        redis.call("SET", key_names.owner(ARCHIVER), OWNER)

    def commit(self, entries=1):
        value = pack_records([A_RECORD])
        for _ in range(entries):
            self.redis.call("XADD", OUTBOX, "*", VALUE_FIELD, value, COUNT_FIELD, 1)

    def left(self):
        return self.redis.call("XLEN", OUTBOX)

    def drained(self):
        return self.left() == 0


@pytest.fixture
async def outbox():
    async with memory_redis() as redis:
        found = Outbox(redis)
        yield found
        await found.wire.close()


class Moody:
    """
    A warm tier that fails as often as it is told.
    """

    def __init__(self, fails=0):
        self.fails = fails
        self.written = []

    async def prepare(self):
        return

    async def write(self, records):
        if self.fails:
            self.fails -= 1
            raise Unavailable("MongoDB is away")
        self.written += records
        return []


@pytest.fixture
def waits(monkeypatch):
    """
    The waits of the drain; none takes any time.
    """
    taken = []

    async def set_within(stop, seconds):
        if seconds >= FIRST_WAIT_S:
            taken.append((seconds, failing_s()))
        await asyncio.sleep(0)
        return stop.is_set()

    monkeypatch.setattr(drains, "set_within", set_within)
    return taken


def failing_s():
    return metrics.DRAIN_FAILING._value.get()


async def drained(outbox, warm, until):
    """
    Drain until *until* holds.
    """
    drain = Drain(outbox.redis.url, 1, warm, "a1", fail=disarmed)
    drain._wire = outbox.wire
    drain.lease.owner, drain.lease._until = OWNER, float("inf")
    stop = asyncio.Event()
    running = asyncio.create_task(drain._drain_until(stop))
    async with asyncio.timeout(5):
        while not until():  # noqa: ASYNC110 - what the fakes do has no event
            await asyncio.sleep(0)
    stop.set()
    await running


async def test_it_waits_2_4_8_16_32_and_then_always_32_seconds(waits, outbox):
    outbox.commit()
    warm = Moody(fails=8)

    await drained(outbox, warm, outbox.drained)

    assert [seconds for seconds, _ in waits] == [2, 4, 8, 16, 32, 32, 32, 32]
    assert len(warm.written) == 1


async def test_a_failure_that_comes_at_once_shortens_no_wait(waits, outbox):
    """
    As of an open breaker, which refuses without asking MongoDB.
    """
    outbox.commit()
    warm = Moody(fails=5)

    await drained(outbox, warm, outbox.drained)

    assert [seconds for seconds, _ in waits] == [2, 4, 8, 16, 32]


async def test_a_bus_that_is_away_for_a_moment_costs_no_wait_for_mongodb(waits, outbox):
    """
    A hand-over of the primary is over in a second, and `warm` replies wait for us.
    """
    outbox.commit()
    outbox.wire.fails = 9

    with structlog.testing.capture_logs() as logs:
        await drained(outbox, Moody(), outbox.drained)

    told = [log["wait_s"] for log in logs if log["event"] == "drain.waits"]
    assert len(told) == 9
    assert max(told) <= 1.5 * MAX_BUS_WAIT_S
    assert waits == []


async def test_the_first_success_begins_anew(waits, outbox):
    outbox.commit()
    warm = Moody(fails=3)

    await drained(outbox, warm, outbox.drained)
    warm.fails = 2
    outbox.commit()
    await drained(outbox, warm, outbox.drained)

    assert [seconds for seconds, _ in waits] == [2, 4, 8, 2, 4]


async def test_nothing_is_dropped_and_nothing_confirmed_before_it_is_written(
    waits, outbox
):
    outbox.commit(3)
    warm = Moody(fails=4)

    await drained(outbox, warm, lambda: warm.fails == 1)
    before = outbox.left()
    await drained(outbox, warm, outbox.drained)

    assert (before, outbox.left()) == (3, 0)
    assert len(warm.written) == 3


async def test_a_failure_tells_the_gauge_and_a_success_clears_it(waits, outbox):
    outbox.commit()
    warm = Moody(fails=2)

    await drained(outbox, warm, outbox.drained)

    assert all(failing > 0 for _, failing in waits)
    assert failing_s() == 0


async def test_from_the_fifth_failure_on_a_human_is_called(waits, outbox):
    outbox.commit()
    warm = Moody(fails=6)

    with structlog.testing.capture_logs() as logs:
        await drained(outbox, warm, outbox.drained)

    told = [log["log_level"] for log in logs if log["event"] == "drain.waits"]
    assert told == ["warning"] * 4 + ["error"] * 2


def test_a_large_round_is_followed_by_smaller_ones():
    """
    So that memory is bounded, whatever a commit may hold.
    """
    drain = Drain("redis://nowhere", 1, Moody(), "a1", fail=disarmed)

    counts = []
    for size in (9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 3):
        drain._pace(size * 1024 * 1024)
        counts.append(drain._count)

    assert counts == [16, 8, 4, 2, 1, 1, 1, 2, 4, 8, 16, 32, 32, 32]
