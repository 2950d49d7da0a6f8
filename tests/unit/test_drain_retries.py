"""
How the drain waits when something is away: longer each time, and dropping nothing.
"""

import asyncio

import pytest
import structlog.testing

from archiver import drain as drains
from archiver.drain import Drain
from archiver.failures import BACKOFF
from bus.errors import Unavailable
from bus.wire import WireFailed
from gateway import metrics
from gateway.failpoints import disarmed
from gateway.store.outbox import COUNT_FIELD, VALUE_FIELD, Record, pack_records
from gateway.store.scripts import script
from tests.builders import NOW

A_RECORD = Record(session="s1", created_at=NOW, version=1, last_seq=0, last_active=NOW)
OUTBOX = b"eb:{0}:outbox"
READ = script("read", [])[1]


class FakeBus:
    """
    A bus with one outbox; what was read stays pending until it is confirmed.
    """

    def __init__(self, entries=1):
        self.fresh = list(range(1, entries + 1))
        self.pending = []
        self.confirmed = []
        self.fails = 0

    async def exchange(self, commands, timeout_s=5.0):
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            raise WireFailed("the bus is away")
        return [self._reply(command) for command in commands]

    async def call(self, *command, timeout_s=5.0):
        return bool(self.fresh or self.pending)

    async def close(self):
        return

    def _reply(self, command):
        if command[0] != "EVALSHA":
            return b"OK"
        if command[1] == READ:
            return [1_000, self._read(command[-1])]
        self.confirmed += self.pending
        self.pending = []
        return 0

    def _read(self, after):
        if after == ">":
            found, self.fresh = self.fresh, []
            self.pending += found
        else:
            found = list(self.pending)
        value = pack_records([A_RECORD])
        fields = [VALUE_FIELD, value, COUNT_FIELD, b"1"]
        return [[OUTBOX, [[b"%d-0" % n, fields] for n in found]]]


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

    async def pause(stop, seconds):
        if seconds >= BACKOFF.first_s:
            taken.append((seconds, failing_s()))
        await asyncio.sleep(0)
        return stop.is_set()

    monkeypatch.setattr(drains, "pause", pause)
    return taken


def failing_s():
    return metrics.DRAIN_FAILING._value.get()


async def drained(bus, warm, until):
    """
    Drain until *until* holds.
    """
    drain = Drain("redis://nowhere", 1, warm, "a1", fail=disarmed)
    drain._wire = bus
    drain.lease.owner, drain.lease._until = "1:a1/1", float("inf")
    stop = asyncio.Event()
    running = asyncio.create_task(drain._drain_until(stop))
    async with asyncio.timeout(5):
        while not until():  # noqa: ASYNC110 - what the fakes do has no event
            await asyncio.sleep(0)
    stop.set()
    await running


async def test_it_waits_2_4_8_16_32_and_then_always_32_seconds(waits):
    bus, warm = FakeBus(), Moody(fails=8)

    await drained(bus, warm, lambda: bus.confirmed)

    assert [seconds for seconds, _ in waits] == [2, 4, 8, 16, 32, 32, 32, 32]
    assert bus.confirmed == [1]


async def test_a_failure_that_comes_at_once_shortens_no_wait(waits):
    """
    As of an open breaker, which refuses without asking MongoDB.
    """
    bus, warm = FakeBus(), Moody(fails=3)
    bus.fails = 2

    await drained(bus, warm, lambda: bus.confirmed)

    assert [seconds for seconds, _ in waits] == [2, 4, 8, 16, 32]


async def test_the_first_success_begins_anew(waits):
    bus, warm = FakeBus(), Moody(fails=3)

    await drained(bus, warm, lambda: bus.confirmed)
    warm.fails, bus.fresh, bus.confirmed = 2, [2], []
    await drained(bus, warm, lambda: bus.confirmed)

    assert [seconds for seconds, _ in waits] == [2, 4, 8, 2, 4]


async def test_nothing_is_dropped_and_nothing_confirmed_before_it_is_written(waits):
    bus, warm = FakeBus(entries=3), Moody(fails=4)

    await drained(bus, warm, lambda: warm.fails == 1)
    before = list(bus.confirmed)
    await drained(bus, warm, lambda: bus.confirmed)

    assert before == []
    assert bus.confirmed == [1, 2, 3]
    assert len(warm.written) == 3


async def test_a_failure_tells_the_gauge_and_a_success_clears_it(waits):
    bus, warm = FakeBus(), Moody(fails=2)

    await drained(bus, warm, lambda: bus.confirmed)

    assert all(failing > 0 for _, failing in waits)
    assert failing_s() == 0


async def test_from_the_fifth_failure_on_a_human_is_called(waits):
    bus, warm = FakeBus(), Moody(fails=6)

    with structlog.testing.capture_logs() as logs:
        await drained(bus, warm, lambda: bus.confirmed)

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
