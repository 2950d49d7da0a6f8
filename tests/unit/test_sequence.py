"""
How far a publisher is settled, against a plain set of the settled numbers.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.gateway.lane.sequence import MAX_RUNS, ProducerWindow

orders = st.permutations(range(1, 30))
# Jumps that leave runs behind, also wide ones.
numbers = st.one_of(st.integers(1, 60), st.integers(1, 10**6))


@given(orders, st.integers(0, 29))
def test_whatever_the_order_of_settling_each_number_counts_from_then_on(order, upto):
    """
    A session that waits lets others overtake it; none is lost, none counts early.
    """
    window = ProducerWindow.starting_at(1)

    for n in order[:upto]:
        window.settle(n, 7)

    assert [n for n in range(1, 40) if window.settled(n)] == sorted(order[:upto])


@given(orders)
def test_a_publisher_whose_numbers_are_all_settled_leaves_one_mark(order):
    window = ProducerWindow.starting_at(1)

    for n in order:
        window.settle(n, 7)

    assert window.pack() == "29,7"


@given(st.lists(numbers, max_size=40))
def test_a_window_is_a_plain_set_of_the_settled_numbers(settles):
    """
    It forgets none that is open, and takes none that is settled for a new one.
    """
    window = ProducerWindow.starting_at(1)

    for n in settles:
        window.settle(n, 7)

    asked = {m for n in settles for m in (n - 1, n, n + 1)} - {0}
    assert {n for n in asked if window.settled(n)} == set(settles)
    assert window.runs == runs_of(settles)


def runs_of(settles):
    """
    The numbers between the settled ones, as runs.
    """
    known = sorted({0, *settles})

    return [(a + 1, b - 1) for a, b in pairwise(known) if a + 1 < b]


@given(st.lists(numbers, max_size=40), st.integers(0, 2**40))
def test_it_survives_the_way_into_the_bus_and_back(settles, now_s):
    window = ProducerWindow.starting_at(3)
    for n in settles:
        window.settle(n, now_s)

    again = ProducerWindow.parse(window.pack().encode())

    assert (again.high_water, again.runs) == (window.high_water, window.runs)
    assert (again.seen_s, again.floor) == (window.seen_s, 2)
    assert again.pack() == window.pack()


@given(st.sets(st.integers(1, 80), max_size=40))
def test_the_record_of_an_older_version_still_counts(gaps):
    """
    It lists single numbers, be they adjacent or not.
    """
    packed = ",".join(map(str, (81, 7, *sorted(gaps))))

    window = ProducerWindow.parse(packed.encode())

    assert {n for n in range(1, 82) if not window.settled(n)} == gaps


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"7",
        b"rubbish",
        b"\xff,1",
        b"9,1,8-3",
        b"9,1,12-14",
        b"9,1,5-7,2",
        b"9,1,0",
    ],
)
def test_a_record_that_does_not_decode_knows_nothing_and_is_no_empty_one(packed):
    window = ProducerWindow.read(packed)

    assert window.undecodable
    assert not window.settled(1)


def test_a_burst_to_a_session_that_waits_is_one_short_run():
    window = ProducerWindow.starting_at(1)

    window.settle(100_001, 7)

    assert window.pack() == "100001,7,1-100000"


def full():
    """
    A window that takes no further run: each second number is open.
    """
    window = ProducerWindow.starting_at(1)
    for n in range(2, 2 * MAX_RUNS + 1, 2):
        assert window.takes(n)
        window.settle(n, 7)
    return window


def test_a_full_window_takes_only_what_adds_no_run():
    window = full()
    top = 2 * MAX_RUNS

    assert window.takes(top + 1)
    assert not window.takes(top + 2)
    # One that is open, and one that is settled already.
    assert window.takes(5)
    assert window.takes(6)


def test_settling_inside_a_run_needs_room_and_at_its_ends_none():
    window = ProducerWindow.starting_at(1)
    window.settle(12, 7)
    for n in range(14, 2 * MAX_RUNS + 11, 2):
        window.settle(n, 7)

    assert len(window.runs) == MAX_RUNS
    assert [n for n in range(1, 12) if window.takes(n)] == [1, 11]


def test_room_comes_back_with_each_open_number_that_is_settled():
    window = full()

    window.settle(1, 7)

    assert window.takes(2 * MAX_RUNS + 2)


def test_a_dropped_run_counts_as_settled_and_nobody_knows_how():
    window = full()

    window.drop_oldest()

    assert window.settled(1)
    assert window.floor == 1
    assert not window.settled(3)


def test_a_publisher_first_seen_late_counts_all_before_as_gone():
    """
    They cannot be told from settled ones any more, and twice is worse than never.
    """
    window = ProducerWindow.starting_at(5)

    assert [window.settled(n) for n in (1, 4, 5, 6)] == [True, True, False, False]
    assert window.floor == 4


def test_settling_a_number_twice_changes_nothing_but_the_time():
    window = ProducerWindow.starting_at(1)
    window.settle(3, 7)

    window.settle(3, 8)

    assert window.pack() == "3,8,1,2"
