"""
Watching in the SDK: whatever becomes of pushes, each event comes once, in order.
"""

import asyncio
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus import watches as module
from everbus.bus.errors import (
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    ReplyTimeout,
    Superseded,
    Unauthenticated,
    Unavailable,
)
from everbus.bus.events import BEGINNING, EventPage, Position, SessionEvent, position_in
from everbus.bus.requests import ClientAffinity
from everbus.bus.watches import MAX_BUFFERED, MAX_BUFFERED_BYTES, Watches
from tests.builders import NOW


def an_event(n, *, life="a1", kind="session.updated", **fields):
    return SessionEvent(
        id=Position(life, n, 0, 0).id,
        session="s1",
        kind=kind,
        at=NOW,
        version=n,
        seq=0,
        mad="bo",
        principal="bo",
        command_id=f"i.0.{n}",
        **fields,
    )


class Truth:
    """
    What the managers know: events as they were made, asked page by page.
    """

    def __init__(self, count=0):
        self.events = [an_event(n) for n in range(1, count + 1)]
        self.asked = []
        self.refusals = []
        self.limit = 50
        self.asked_often = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    def add(self, **fields):
        self.events.append(an_event(len(self.events) + 1, **fields))
        return self.events[-1]

    async def ask(self, after, push):
        self.asked.append((after, push))
        if len(self.asked) == 5:
            self.asked_often.set()
        await self.open.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        if after is None:
            return EventPage(events=(), next=self.events[-1].id)
        first = 0 if after == BEGINNING else position_in(after).number
        page = self.events[first : first + self.limit]
        done = first + len(page) == len(self.events)
        return EventPage(
            events=tuple(page), next=page[-1].id if page else after, done=done
        )


def pushed(*events, size=100):
    return {"session": "s1", "events": msgspec.to_builtins(list(events))}, size


@pytest.fixture
def watches(monkeypatch):
    """
    Nothing here shall be had only because it was asked for after a while.
    """
    monkeypatch.setattr(module, "ASK_EVERY_S", 60)
    return Watches()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(module, "MAX_WAIT_S", 0.002)


async def some(watch, count):
    async with asyncio.timeout(5):
        return [(await anext(watch)).version for _ in range(count)]


async def none_more(watch):
    """
    Nothing waits to be had; the watch goes on.
    """
    following = asyncio.ensure_future(anext(watch))
    done, _ = await asyncio.wait([following], timeout=0.02)
    assert not done
    return following


async def nothing(watch):
    following = await none_more(watch)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@asynccontextmanager
async def waiting(watches, truth):
    """
    A watch that has had the only event, and what waits for the next one.
    """
    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        yield watch, await none_more(watch)


async def test_from_the_beginning_all_pages_come_in_order(watches):
    truth = Truth(120)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 120) == list(range(1, 121))

    assert [after for after, _ in truth.asked] == ["0", "a1-50.0.0", "a1-100.0.0"]


async def test_a_watch_that_waits_in_another_event_loop_is_refused(watches):
    """
    Its request in flight belongs to the loop in which it began, and is ended there.
    """
    truth, affinity = Truth(1), ClientAffinity()
    watch = watches.watch("s1", truth.ask, "0", affinity.check)
    assert await some(watch, 1) == [1]
    following = await none_more(watch)
    truth.open.clear()
    watches.invalidate_all()
    async with asyncio.timeout(10):
        while len(truth.asked) < 2:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)
    watches.receive(*pushed(truth.add()))
    assert (await following).version == 2

    async def next_one():
        with pytest.raises(Invalid, match="outside the event loop"):
            await anext(watch)

    await asyncio.to_thread(asyncio.run, next_one())


async def test_resuming_begins_behind_the_event(watches):
    truth = Truth(9)

    async with aclosing(watches.watch("s1", truth.ask, "a1-6.0.0")) as watch:
        assert await some(watch, 3) == [7, 8, 9]


async def test_from_now_on_only_what_follows_comes(watches):
    truth = Truth(9)

    async with aclosing(watches.watch("s1", truth.ask, None)) as watch:
        following = await none_more(watch)
        watches.receive(*pushed(truth.add()))
        assert (await following).version == 10

    assert len(truth.asked) == 1


async def test_what_is_pushed_in_order_is_had_without_asking(watches):
    truth = Truth(1)

    async with waiting(watches, truth) as (watch, following):
        watches.receive(*pushed(truth.add(), truth.add()))
        watches.receive(*pushed(truth.add()))
        assert (await following).version == 2
        assert await some(watch, 2) == [3, 4]

    assert len(truth.asked) == 1


async def test_duplicates_are_dropped(watches):
    truth = Truth(3)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 3) == [1, 2, 3]
        following = await none_more(watch)
        watches.receive(*pushed(*truth.events, truth.add()))
        watches.receive(*pushed(*truth.events))
        assert (await following).version == 4
        await nothing(watch)

    assert len(truth.asked) == 1


async def test_a_gap_is_filled_by_asking(watches):
    truth = Truth(1)

    async with waiting(watches, truth) as (watch, following):
        truth.add()
        watches.receive(*pushed(truth.add()))
        assert (await following).version == 2
        assert await some(watch, 1) == [3]

    assert truth.asked == [("0", True), ("a1-1.0.0", True)]


@pytest.mark.parametrize(
    "told",
    [
        {"session": "s1", "events": []},
        {"session": "s1"},
        {"session": "s1", "events": [{"id": 7}]},
    ],
)
async def test_a_hint_without_content_is_reason_to_ask(watches, told):
    truth = Truth(1)

    async with waiting(watches, truth) as (_, following):
        truth.add()
        watches.receive(told, 10)
        assert (await following).version == 2


async def test_what_was_missed_while_nobody_listened_is_asked_for(watches):
    truth = Truth(1)

    async with waiting(watches, truth) as (_, following):
        truth.add()
        watches.invalidate_all()
        assert (await following).version == 2


async def test_where_nothing_is_heard_it_asks_again_and_again(watches, monkeypatch):
    """
    This also renews the pushes, and the right to them.
    """
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)
    truth = Truth(1)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        following = asyncio.ensure_future(anext(watch))
        async with asyncio.timeout(5):
            await truth.asked_often.wait()
        truth.add()
        assert (await following).version == 2


async def test_pushes_are_had_while_an_answer_takes_its_time(watches):
    truth = Truth(1)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        truth.open.clear()
        watches.invalidate_all()
        following = await none_more(watch)
        watches.receive(*pushed(truth.add()))
        assert (await following).version == 2
        following = await none_more(watch)
        truth.add()
        truth.open.set()
        assert (await following).version == 3


async def test_nothing_pushed_counts_before_the_managers_have_let_it_ask(
    watches, impatient
):
    """
    Others of the same instance may watch the session; this one may not.
    """
    truth = Truth(1)
    truth.open.clear()
    async with (
        aclosing(watches.watch("s1", Truth(1).ask, "0")) as allowed,
        aclosing(watches.watch("s1", truth.ask, "a1-1.0.0")) as denied,
    ):
        assert await some(allowed, 1) == [1]
        following = await none_more(denied)
        watches.receive(*pushed(an_event(2)))
        truth.refusals = [Unavailable("no"), Forbidden("no")]
        truth.open.set()
        assert await some(allowed, 1) == [2]
        with pytest.raises(Forbidden):
            await following


async def test_what_is_pushed_beside_the_first_page_is_not_waited_for(watches):
    """
    Page and push come over one channel, so both can be here before either is taken.
    """
    truth = Truth(1)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def ask(after, push):
        page = await truth.ask(after, push)
        asked.set()
        await answered.wait()
        return page

    async with aclosing(watches.watch("s1", ask, None)) as watch:
        following = asyncio.ensure_future(anext(watch))
        await asked.wait()
        watches.receive(*pushed(truth.add()))
        answered.set()
        async with asyncio.timeout(5):
            assert (await following).version == 2


async def test_where_the_acl_changes_the_truth_decides(watches):
    """
    A push is shared by all who watch through an instance; the right is not.
    """
    truth = Truth(1)

    async with waiting(watches, truth) as (_, following):
        change = truth.add(patch={"acl": []})
        truth.refusals = [Forbidden("no longer")]
        watches.receive(*pushed(change, truth.add()))
        with pytest.raises(Forbidden, match="no longer"):
            await following


async def test_watches_of_one_session_share_the_pushes(watches):
    truth = Truth(2)

    async with (
        aclosing(watches.watch("s1", truth.ask, "0")) as one,
        aclosing(watches.watch("s1", truth.ask, "a1-1.0.0")) as other,
        aclosing(watches.watch("s2", Truth(1).ask, "0")) as foreign,
    ):
        assert await some(one, 2) == [1, 2]
        assert await some(other, 1) == [2]
        assert await some(foreign, 1) == [1]
        watches.receive(*pushed(truth.add()))
        assert await some(one, 1) == [3]
        assert await some(other, 1) == [3]
        await nothing(foreign)


async def test_the_end_of_the_session_ends_the_watch(watches):
    truth = Truth(1)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        watches.receive(*pushed(truth.add(kind="session.deleted"), an_event(3)))
        assert [event.kind async for event in watch] == ["session.deleted"]

    assert not watches._watches


async def test_another_life_of_the_session_is_not_mistaken_for_this_one(watches):
    truth = Truth(1)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        truth.refusals = [Invalid("of an earlier one", field="after")]
        watches.receive(*pushed(an_event(2, life="b2")))
        with pytest.raises(Invalid):
            await anext(watch)


@pytest.mark.parametrize("error", [NotFound, Forbidden, Unauthenticated, Invalid])
async def test_what_is_refused_for_good_ends_the_watch(watches, error):
    """
    What was had before is given first.
    """
    truth = Truth(60)
    truth.refusals = []

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        # A grant may be renewed: the second time it is the token that is refused.
        truth.refusals = [error("no")] * (2 if error is Unauthenticated else 1)
        assert await some(watch, 49) == list(range(2, 51))
        with pytest.raises(error):
            await anext(watch)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("away"),
        ReplyTimeout("late", command_id="i.0.1"),
        Expired("late"),
        Superseded("lost", epoch=1),
    ],
)
async def test_what_passes_is_survived(watches, impatient, error):
    truth = Truth(3)
    truth.refusals = [error] * 4

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 3) == [1, 2, 3]

    assert truth.asked == [("0", True)] * 5


async def test_a_grant_that_counts_no_longer_is_renewed(watches, impatient):
    truth = Truth(60)
    truth.refusals = [Unauthenticated("of an old key")]

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 50) == list(range(1, 51))
        truth.refusals = [Unauthenticated("of an old key")]
        assert await some(watch, 10) == list(range(51, 61))


async def test_where_too_many_watch_already_it_goes_on_by_asking(
    watches, impatient, monkeypatch
):
    monkeypatch.setattr(module, "POLL_EVERY_S", 0.01)
    truth = Truth(1)
    truth.refusals = [Overloaded("too many")]

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        truth.add()
        assert await some(watch, 1) == [2]

    assert [push for _, push in truth.asked] == [True, False, True]


async def test_a_page_with_a_gap_is_never_given(watches, impatient):
    """
    Whoever answers may be behind itself: then it is asked again.
    """
    truth = Truth(5)
    hole = truth.events.pop(2)

    async def ask(after, push):
        page = await truth.ask(after, push)
        if len(truth.asked) == 3:
            truth.events.insert(2, hole)
        return page

    async with aclosing(watches.watch("s1", ask, "0")) as watch:
        assert await some(watch, 5) == [1, 2, 3, 4, 5]

    assert len(truth.asked) > 3


async def test_whoever_answers_with_a_gap_is_given_time(watches):
    truth = Truth(5)
    del truth.events[2]

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 2) == [1, 2]
        await nothing(watch)

    assert len(truth.asked) <= 2


@pytest.mark.parametrize("size", [100, MAX_BUFFERED_BYTES // 10])
async def test_a_slow_consumer_loses_nothing_and_takes_bounded_memory(watches, size):
    truth = Truth(1)

    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        assert await some(watch, 1) == [1]
        [inner] = watches._watches["s1"]
        for _ in range(3 * MAX_BUFFERED):
            watches.receive(*pushed(truth.add(), size=size))
            assert len(inner._buffer) <= MAX_BUFFERED
            assert inner._bytes <= MAX_BUFFERED_BYTES + size or len(inner._buffer) < 2

        rest = await some(watch, 3 * MAX_BUFFERED)

    assert rest == list(range(2, 3 * MAX_BUFFERED + 2))


async def test_who_leaves_is_forgotten_and_asks_no_more(watches):
    truth = Truth(1)
    watch = watches.watch("s1", truth.ask, "0")
    assert await some(watch, 1) == [1]
    truth.open.clear()
    watches.invalidate_all()
    await nothing(watch)

    await watch.aclose()

    assert not watches._watches
    assert len(asyncio.all_tasks()) == 1


async def test_when_the_connection_closes_the_watch_ends(watches):
    truth = Truth(1)

    async with waiting(watches, truth) as (_, following):
        watches.close()
        with pytest.raises(Unavailable, match="closed"):
            await following

    with pytest.raises(Unavailable, match="closed"):
        await anext(watches.watch("s1", truth.ask, "a1-1.0.0"))


async def test_a_resuming_place_that_cannot_be_is_refused_at_once(watches):
    with pytest.raises(Invalid):
        await anext(watches.watch("s1", Truth(1).ask, "nonsense"))


def heard_of(fault, event, late):
    """
    The pushes that come when *event* is made, if this becomes of its own.
    """
    if fault == "late":
        late.append(event)
    told = {
        "push": [pushed(event)],
        "twice": [pushed(event), pushed(event)],
        "hint": [pushed()],
        "belated": [pushed(one) for one in (event, *late)],
    }
    return told.get(fault, [])


faults = st.lists(
    st.sampled_from(["push", "lose", "twice", "late", "belated", "hint", "take"]),
    min_size=1,
    max_size=60,
)


async def _played(chosen):
    watches, truth, got, late = Watches(), Truth(1), [], []
    async with aclosing(watches.watch("s1", truth.ask, "0")) as watch:
        for fault in (*chosen, "take"):
            if fault == "take":
                # Behind what was lost comes a reconnect, or the next question.
                watches.invalidate_all()
                got += await some(watch, len(truth.events) - len(got))
                continue
            for one in heard_of(fault, truth.add(), late):
                watches.receive(*one)
    return got, len(truth.events)


@settings(deadline=None, max_examples=60)
@given(faults)
def test_whatever_becomes_of_the_pushes_each_event_comes_once_and_in_order(chosen):
    got, count = asyncio.run(_played(chosen))

    assert got == list(range(1, count + 1))
