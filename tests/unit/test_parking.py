"""
Sessions that wait: their commands stay in order, nobody else waits with them.
"""

from hypothesis import given
from hypothesis import strategies as st

from gateway.delivery import Entry, Work
from gateway.parking import Parking
from tests.builders import an_envelope
from tests.unit.conftest import Clock


def a_work(session="s1", index=0):
    work = Work(Entry("fiedler", "1-0"), index, b"")
    work.envelope = an_envelope("timeline.append", session=session)
    work.session = session
    return work


def test_only_commands_of_a_waiting_session_join_it():
    parking = Parking(Clock())
    parking.park(a_work("s1"), 1.0)

    joined = [parking.joins(a_work(session)) for session in ("s1", "s2", "s1")]

    assert joined == [True, False, True]
    assert len(parking) == 3


def test_nothing_is_released_before_it_is_due():
    clock = Clock()
    parking = Parking(clock)
    parking.park(a_work(), 1.0)
    clock.now += 0.999

    assert parking.release() == []
    assert len(parking) == 1


def test_a_due_session_comes_back_whole_and_in_order():
    """
    The one that made it wait comes first, then what came after it.
    """
    clock = Clock()
    parking = Parking(clock)
    works = [a_work(index=n) for n in range(4)]
    parking.park(works[0], 1.0)
    for work in works[1:]:
        parking.joins(work)
    clock.now += 1.0

    assert parking.release() == works
    assert len(parking) == 0
    assert not parking.joins(a_work())


def test_a_session_that_waits_again_keeps_its_order():
    """
    Its first failed once more while the rest was parked already.
    """
    clock = Clock()
    parking = Parking(clock)
    first, second, third = (a_work(index=n) for n in range(3))
    parking.park(first, 1.0)
    parking.joins(second)
    clock.now += 1.0
    released = parking.release()
    parking.park(released[0], 2.0)
    joined = [parking.joins(work) for work in (released[1], third)]
    clock.now += 2.0

    assert joined == [True, True]
    assert parking.release() == [first, second, third]


def test_the_one_that_is_parked_last_comes_first():
    """
    It is what its session waits for; those that joined came after it.
    """
    clock = Clock()
    parking = Parking(clock)
    first, second, third = (a_work(index=n) for n in range(3))
    parking.park(second, 1.0)
    parking.joins(third)
    parking.park(first, 1.0)
    clock.now += 1.0

    assert parking.release() == [first, second, third]


def test_it_tells_when_the_next_session_is_due():
    clock = Clock()
    parking = Parking(clock)
    assert parking.due_in_s() is None
    parking.park(a_work("s1"), 3.0)
    parking.park(a_work("s2"), 1.0)

    soon = parking.due_in_s()
    clock.now += 5.0

    assert soon == 1.0
    assert parking.due_in_s() == 0.0


def test_what_is_forgotten_waits_no_longer():
    parking = Parking(Clock())
    parking.park(a_work(), 1.0)

    parking.clear()

    assert len(parking) == 0
    assert parking.due_in_s() is None
    assert not parking.joins(a_work())


def test_what_could_not_be_decoded_waits_for_no_session():
    parking = Parking(Clock())
    parking.park(a_work("s1"), 1.0)
    undecodable = Work(Entry("fiedler", "2-0"), 0, b"\xc1")

    assert not parking.joins(undecodable)


class Servant:
    """
    Serves as a lane does: parks what fails, lets others queue behind it.
    """

    def __init__(self):
        self.clock = Clock()
        self.parking = Parking(self.clock)
        self.done = []

    def serve(self, work, fails):
        if self.parking.joins(work):
            return
        if fails:
            self.parking.park(work, 1.0)
        else:
            self.done.append((work.envelope.session, work.index))

    def retry(self, failing=""):
        self.clock.now += 1.0
        for work in self.parking.release():
            self.serve(work, fails=work.envelope.session == failing)


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
            servant.serve(a_work(session, arrived[session]), fails=what == "fail")
            arrived[session] += 1
    servant.retry()

    for session, count in arrived.items():
        assert [n for s, n in servant.done if s == session] == list(range(count))


def test_a_held_session_waits_until_it_is_woken():
    clock = Clock()
    parking = Parking(clock)
    first, second = a_work(index=0), a_work(index=1)
    parking.hold(first)
    parking.joins(second)
    clock.now += 10**6

    assert parking.release() == []
    assert parking.due_in_s() is None
    parking.wake("s1")
    assert parking.due_in_s() == 0
    assert parking.release() == [first, second]
    assert len(parking) == 0


def test_what_is_withdrawn_goes_and_the_rest_waits_on_in_order():
    parking = Parking(Clock())
    works = [a_work(index=n) for n in range(5)]
    parking.hold(works[0])
    for work in works[1:]:
        parking.joins(work)

    taken = parking.withdraw("s1", lambda work: work.index % 2 == 1)
    parking.wake("s1")

    assert taken == [works[1], works[3]]
    assert parking.release() == [works[0], works[2], works[4]]


def test_a_session_of_which_all_is_withdrawn_waits_no_more():
    parking = Parking(Clock())
    work = a_work()
    parking.hold(work)
    parking.withdraw("s1", lambda _: True)

    assert not parking.joins(a_work(index=1))
    assert (len(parking), parking.bytes) == (0, 0)


@given(st.lists(st.sampled_from(["park", "join", "release", "withdraw", "clear"])))
def test_what_waits_is_counted_right(steps):
    clock = Clock()
    parking = Parking(clock)
    waiting = 0
    for index, step in enumerate(steps):
        work = Work(Entry("fiedler", "1-0"), index, b"12345")
        work.envelope = an_envelope("timeline.append", session="s1")
        work.session = "s1"
        if step == "park":
            parking.park(work, 0.0)
            waiting += 1
        elif step == "join":
            waiting += parking.joins(work)
        elif step == "release":
            waiting -= len(parking.release())
        elif step == "withdraw":
            waiting -= len(parking.withdraw("s1", lambda w: w.index % 2 == 0))
        else:
            parking.clear()
            waiting = 0
        assert (len(parking), parking.bytes) == (waiting, 5 * waiting)
