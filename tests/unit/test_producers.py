"""
Producers whose window is full: they wait, in order, and always get on in the end.
"""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.messages import Ordinal
from everbus.gateway.lane import sequence
from everbus.gateway.lane.cache import LaneCache
from everbus.gateway.lane.delivery import Delivery, Entry
from everbus.gateway.lane.sequence import ProducerWindow, WaitingProducers
from everbus.gateway.lane.waiting import WaitingSessions
from tests.builders import an_envelope
from tests.unit.conftest import Clock

FEW_RUNS = 3
PUBLISHER = "ann:i"


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch):
    monkeypatch.setattr(sequence, "MAX_RUNS", FEW_RUNS)
    monkeypatch.setattr(sequence, "MAX_RUNS", FEW_RUNS)


def a_delivery(n, session):
    envelope = an_envelope("timeline.append", id=f"i.0.{n}", session=session)
    delivery = Delivery(Entry("ann", "1-0"), 0, b"x", envelope)
    delivery.ordinal, delivery.publisher = Ordinal("i", 0, n), PUBLISHER

    return delivery


class Scene:
    """
    A lane in small: sessions that wait until they are freed, and one producer.

    Attributes:
        settled: the settled commands as (session, number), in order.
    """

    def __init__(self, sessions):
        self.queue = deque(a_delivery(n, s) for n, s in enumerate(sessions, 1))
        self.sessions = WaitingSessions(Clock())
        self.window = ProducerWindow.starting_at(1)
        cache = LaneCache()
        cache.windows[PUBLISHER] = self.window
        self.producers = WaitingProducers(cache.windows, self.sessions.held, self.queue)
        self.asleep = set()
        self.settled = []

    def turn(self):
        """
        Decide what is there, as `Lane` does.
        """
        self.queue.extendleft(reversed(self.sessions.release()))
        self.queue.extendleft(reversed(self.producers.release()))
        batch = [self.queue.popleft() for _ in range(len(self.queue))]
        self.producers.batch = batch
        for one in batch:
            if not self._waits(one):
                self.window.settle(one.ordinal.n, 7)
                self.settled.append((one.session, one.ordinal.n))
                assert len(self.window.runs) <= FEW_RUNS

    def _waits(self, one):
        if self.producers.enqueue_behind(one) or self.sessions.enqueue_behind(one):
            return True
        if one.session in self.asleep:
            self.sessions.block(one)
            return True
        return self.producers.block(one)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.data())
def test_each_command_is_settled_once_and_each_session_keeps_its_order(order, data):
    """
    Whatever sessions wait, and in whatever order they are freed.
    """
    scene = Scene(order)
    scene.asleep = set(data.draw(st.sets(st.sampled_from("abcd"))))
    for freed in data.draw(st.permutations(sorted(scene.asleep))):
        scene.turn()
        scene.asleep.discard(freed)
        scene.sessions.unblock(freed)
    for _ in range(len(order) + 1):
        scene.turn()

    assert sorted(n for _, n in scene.settled) == [*range(1, len(order) + 1)]
    for session in "abcd":
        numbers = [n for s, n in scene.settled if s == session]
        assert numbers == sorted(numbers)
    assert scene.window.runs == []
    assert scene.sessions.held.count == 0


def test_numbers_that_never_arrived_hold_up_nobody_for_ever():
    """
    A thousand losses in a publisher's life must not end it.
    """
    scene = Scene([])
    scene.queue.extend(a_delivery(n, "s") for n in range(2, 20, 2))

    scene.turn()

    assert [n for _, n in scene.settled] == [*range(2, 20, 2)]
    assert scene.window.runs == [(13, 13), (15, 15), (17, 17)]
    assert scene.window.floor == 11


def test_a_number_that_the_lane_has_is_never_dropped():
    scene = Scene("ab" * 10)
    scene.asleep = {"a"}

    scene.turn()

    assert scene.window.floor == 0
    assert scene.window.runs == [(1, 1), (3, 3), (5, 5)]
    assert [n for _, n in scene.settled] == [2, 4, 6]
    # Seven of b wait behind their producer, and ten of a behind their session.
    assert scene.sessions.held.count == 17


def test_a_cancelled_command_leaves_the_queue_of_its_producer():
    scene = Scene("ab" * 10)
    scene.asleep = {"a"}
    scene.turn()

    taken = scene.producers.withdraw(lambda one: one.ordinal.n == 10)

    assert [one.ordinal.n for one in taken] == [10]
    assert scene.sessions.held.count == 16
