"""
When commands are due, and from when their latency counts.
"""

import asyncio

import pytest

from everbus.bus.errors import Forbidden, Overloaded
from everbus.compose.bench import load as load_module
from everbus.compose.bench.figures import MOST_BINS, Figures
from everbus.compose.bench.load import Load, Schedule
from everbus.compose.bench.plan import BenchPlan
from everbus.compose.verify.expectation import SessionExpectation


class Clock:
    """
    Time that only passes when somebody sleeps or works.
    """

    def __init__(self):
        self.at = 1000.0

    def now(self):
        return self.at

    async def sleep(self, seconds):
        self.at += seconds
        await asyncio.sleep(0)


def a_schedule(clock, rate=10.0, seconds=1.0, limit=1000):
    return Schedule(rate, seconds, limit, clock.now, clock.sleep)


async def turns(schedule, work=lambda due: None):
    due = []
    while (at := await schedule.turn()) is not None:
        due.append(round(at, 6))
        work(at)
    return due


async def test_with_a_rate_commands_are_due_evenly_until_the_end():
    clock = Clock()
    schedule = a_schedule(clock)

    assert await turns(schedule) == [n / 10 for n in range(10)]
    assert schedule.never_sent == 0


async def test_a_stall_is_felt_by_all_that_were_due_in_it():
    """
    Coordinated omission: a load that waits for a stalled bus, and measures from when it
    sends, sees one slow command where there were six.
    """
    clock = Clock()
    schedule = a_schedule(clock)
    latencies = []

    def work(due_s):
        # The third takes half a second, all others nothing.
        clock.at += 0.5 if len(latencies) == 2 else 0.0
        latencies.append(round(schedule.now_s - due_s, 6))

    await turns(schedule, work)

    assert latencies == [0, 0, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0]


async def test_what_was_due_and_not_sent_is_told():
    clock = Clock()
    schedule = a_schedule(clock)

    def work(_):
        clock.at += 0.3

    assert await turns(schedule, work) == [0, 0.1, 0.2, 0.3]
    assert schedule.never_sent == 6


async def test_without_a_rate_a_turn_is_due_at_once():
    clock = Clock()
    schedule = a_schedule(clock, rate=None)

    def work(_):
        clock.at += 0.25

    assert await turns(schedule, work) == [0, 0.25, 0.5, 0.75]


async def test_the_limit_ends_the_load_and_says_so():
    schedule = a_schedule(Clock(), limit=3)

    assert len(await turns(schedule)) == 3
    assert schedule.ended == "--limit 3 is reached"
    assert schedule.never_sent == 0


async def test_an_end_is_heard_by_those_who_wait_for_their_turn():
    clock = Clock()
    schedule = a_schedule(clock, rate=0.01, seconds=1000)
    await schedule.turn()
    waiting = asyncio.create_task(schedule.turn())
    for _ in range(3):
        await asyncio.sleep(0)

    schedule.end("interrupted")
    schedule.end("something later")

    assert await waiting is None
    assert schedule.now_s < 1
    assert schedule.ended == "interrupted"


class FakeCaller:
    """
    Ends each call as it is told to.
    """

    def __init__(self, error=None):
        self.error = error
        self.under_way = 0
        self.most = 0

    async def call(self, name, expectation):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if self.error is not None:
            raise self.error

    async def catch_up(self, expectation):
        pass


def a_load(caller, **plan):
    plan = BenchPlan(mix={"get_session": 1}, warm_up_s=0, **plan)
    figures = Figures(plan.warm_up_s, plan.seconds)
    expectations = [SessionExpectation("s1", 1, 1)]
    return Load(plan, [caller], expectations, figures, 2), figures


async def test_no_more_are_under_way_than_are_allowed():
    caller = FakeCaller()
    load, figures = a_load(caller, in_flight=5, limit=50)

    await load.run()

    assert caller.most == 5
    assert figures.calls["get_session"].count == 50
    assert load.under_way == [0, 0]


async def test_a_refusal_is_counted_and_is_no_latency(monkeypatch):
    monkeypatch.setattr(load_module, "PAUSE_S", 0)
    load, figures = a_load(FakeCaller(Overloaded("full")), in_flight=1, limit=7)

    await load.run()

    assert figures.refusals == {("get_session", "overloaded"): 7}
    assert figures.calls == {}


async def test_as_many_refusals_as_are_remembered_end_the_load(monkeypatch):
    monkeypatch.setattr(load_module, "PAUSE_S", 0)
    monkeypatch.setattr(load_module, "MOST_DOUBTS", 3)
    load, _ = a_load(FakeCaller(Overloaded("full")), in_flight=1)

    await load.run()

    assert load.schedule.ended.startswith("3 refusals")


async def test_a_mad_that_is_turned_away_ends_the_load():
    load, _ = a_load(FakeCaller(Forbidden("no")), in_flight=4)

    with pytest.raises(Forbidden):
        await load.run()


def test_the_warm_up_is_in_the_charts_and_not_in_the_figures():
    figures = Figures(1.0, 2.0)

    figures.note("append", 0.5, 0.5, 0.6, "ok")
    figures.note("append", 1.5, 1.6, 1.75, "ok")

    assert figures.calls["append"].count == 1
    assert figures.calls["append"].max_us == 250_000
    assert figures.late.max_us == 100_000
    assert sum(one.latencies.count for one in figures.bins) == 2


@pytest.mark.parametrize("seconds", [1, 30, 3600, 24 * 3600])
def test_charts_have_so_many_columns_and_no_more(seconds):
    figures = Figures(0, seconds)

    figures.note("append", seconds, seconds, seconds, "ok")

    assert MOST_BINS / 10 < len(figures.bins) <= MOST_BINS + 1 or seconds == 1
