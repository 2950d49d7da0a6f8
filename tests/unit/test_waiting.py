"""
Sessions that wait: their commands stay in order, nobody else waits with them.
"""

from hypothesis import given
from hypothesis import strategies as st

from everbus.gateway.lane.delivery import Delivery, Entry
from everbus.gateway.lane.waiting import WaitingSessions
from tests.builders import an_envelope
from tests.unit.conftest import Clock


def a_delivery(session="s1", index=0):
    envelope = an_envelope("timeline.append", session=session)

    return Delivery(Entry("fiedler", "1-0"), index, b"", envelope)


def test_only_commands_of_a_waiting_session_join_it():
    waiting = WaitingSessions(Clock())
    waiting.block(a_delivery("s1"), 1.0)

    joined = [
        waiting.enqueue_behind(a_delivery(session)) for session in ("s1", "s2", "s1")
    ]

    assert joined == [True, False, True]
    assert waiting.held.count == 3


def test_nothing_is_released_before_it_is_due():
    clock = Clock()
    waiting = WaitingSessions(clock)
    waiting.block(a_delivery(), 1.0)
    clock.now += 0.999

    assert waiting.release() == []
    assert waiting.held.count == 1


def test_a_due_session_comes_back_whole_and_in_order():
    """
    The one that made it wait comes first, then what came after it.
    """
    clock = Clock()
    waiting = WaitingSessions(clock)
    deliveries = [a_delivery(index=n) for n in range(4)]
    waiting.block(deliveries[0], 1.0)
    for delivery in deliveries[1:]:
        waiting.enqueue_behind(delivery)
    clock.now += 1.0

    assert waiting.release() == deliveries
    assert waiting.held.count == 0
    assert not waiting.enqueue_behind(a_delivery())


def test_a_session_that_waits_again_keeps_its_order():
    """
    Its first failed once more while the rest waited already.
    """
    clock = Clock()
    waiting = WaitingSessions(clock)
    first, second, third = (a_delivery(index=n) for n in range(3))
    waiting.block(first, 1.0)
    waiting.enqueue_behind(second)
    clock.now += 1.0
    released = waiting.release()
    waiting.block(released[0], 2.0)
    joined = [waiting.enqueue_behind(delivery) for delivery in (released[1], third)]
    clock.now += 2.0

    assert joined == [True, True]
    assert waiting.release() == [first, second, third]


def test_the_command_that_blocks_last_comes_first():
    """
    It is what its session waits for; those that joined came after it.
    """
    clock = Clock()
    waiting = WaitingSessions(clock)
    first, second, third = (a_delivery(index=n) for n in range(3))
    waiting.block(second, 1.0)
    waiting.enqueue_behind(third)
    waiting.block(first, 1.0)
    clock.now += 1.0

    assert waiting.release() == [first, second, third]


def test_it_tells_when_the_next_session_is_due():
    clock = Clock()
    waiting = WaitingSessions(clock)
    assert waiting.due_in_s() is None
    waiting.block(a_delivery("s1"), 3.0)
    waiting.block(a_delivery("s2"), 1.0)

    soon = waiting.due_in_s()
    clock.now += 5.0

    assert soon == 1.0
    assert waiting.due_in_s() == 0.0


def test_what_is_forgotten_waits_no_longer():
    waiting = WaitingSessions(Clock())
    waiting.block(a_delivery(), 1.0)

    waiting.clear()

    assert waiting.held.count == 0
    assert waiting.due_in_s() is None
    assert not waiting.enqueue_behind(a_delivery())


class Servant:
    """
    Serves as a lane does: a failed command blocks its session, others queue behind.
    """

    def __init__(self):
        self.clock = Clock()
        self.waiting = WaitingSessions(self.clock)
        self.done = []

    def serve(self, delivery, fails):
        if self.waiting.enqueue_behind(delivery):
            return
        if fails:
            self.waiting.block(delivery, 1.0)
        else:
            self.done.append((delivery.envelope.session, delivery.index))

    def retry(self, failing=""):
        self.clock.now += 1.0
        for delivery in self.waiting.release():
            self.serve(delivery, fails=delivery.envelope.session == failing)


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(("serve", "fail", "retry"))),
    max_size=60,
)


@given(steps)
def test_per_session_the_order_of_arrival_survives_any_interleaving(steps):
    """
    Whatever parks, joins and is released in between.
    """
    servant = Servant()
    arrived = {"a": 0, "b": 0, "c": 0}

    for session, what in steps:
        if what == "retry":
            servant.retry(failing=session)
        else:
            servant.serve(a_delivery(session, arrived[session]), fails=what == "fail")
            arrived[session] += 1
    servant.retry()

    for session, count in arrived.items():
        assert [n for s, n in servant.done if s == session] == list(range(count))


def test_a_held_session_waits_until_it_is_woken():
    clock = Clock()
    waiting = WaitingSessions(clock)
    first, second = a_delivery(index=0), a_delivery(index=1)
    waiting.block(first)
    waiting.enqueue_behind(second)
    clock.now += 10**6

    assert waiting.release() == []
    assert waiting.due_in_s() is None
    waiting.unblock("s1")
    assert waiting.due_in_s() == 0
    assert waiting.release() == [first, second]
    assert waiting.held.count == 0


def test_what_is_withdrawn_goes_and_the_rest_waits_on_in_order():
    waiting = WaitingSessions(Clock())
    deliveries = [a_delivery(index=n) for n in range(5)]
    waiting.block(deliveries[0])
    for delivery in deliveries[1:]:
        waiting.enqueue_behind(delivery)

    taken = waiting.withdraw("s1", lambda delivery: delivery.index % 2 == 1)
    waiting.unblock("s1")

    assert taken == [deliveries[1], deliveries[3]]
    assert waiting.release() == [deliveries[0], deliveries[2], deliveries[4]]


def test_a_session_of_which_all_is_withdrawn_waits_no_more():
    waiting = WaitingSessions(Clock())
    delivery = a_delivery()
    waiting.block(delivery)
    waiting.withdraw("s1", lambda _: True)

    assert not waiting.enqueue_behind(a_delivery(index=1))
    assert (waiting.held.count, waiting.held.bytes) == (0, 0)


@given(st.lists(st.sampled_from(["block", "join", "release", "withdraw", "clear"])))
def test_what_waits_is_counted_right(steps):
    clock = Clock()
    waiting = WaitingSessions(clock)
    count = 0
    for index, step in enumerate(steps):
        envelope = an_envelope("timeline.append", session="s1")
        delivery = Delivery(Entry("fiedler", "1-0"), index, b"12345", envelope)
        if step == "block":
            waiting.block(delivery, 0.0)
            count += 1
        elif step == "join":
            count += waiting.enqueue_behind(delivery)
        elif step == "release":
            count -= len(waiting.release())
        elif step == "withdraw":
            count -= len(waiting.withdraw("s1", lambda w: w.index % 2 == 0))
        else:
            waiting.clear()
            count = 0
        assert (waiting.held.count, waiting.held.bytes) == (count, 5 * count)
