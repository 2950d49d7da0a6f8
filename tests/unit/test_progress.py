"""
How far a publisher is settled, against a plain set of the settled numbers.
"""

from hypothesis import given
from hypothesis import strategies as st

from gateway.progress import MAX_GAPS, Progress

orders = st.permutations(range(1, 30))
# Jumps that leave gaps behind, also wider ones than are remembered.
numbers = st.one_of(st.integers(1, 60), st.integers(1, 6 * MAX_GAPS))


@given(orders, st.integers(0, 29))
def test_whatever_the_order_of_settling_each_number_counts_from_then_on(order, upto):
    """
    A session that waits lets others overtake it; none is lost, none counts early.
    """
    progress = Progress.starting_at(1)

    for n in order[:upto]:
        progress.settle(n, 7)

    assert [n for n in range(1, 40) if progress.settled(n)] == sorted(order[:upto])


@given(orders)
def test_a_publisher_whose_numbers_are_all_settled_leaves_one_mark(order):
    progress = Progress.starting_at(1)

    for n in order:
        progress.settle(n, 7)

    assert progress.pack() == "29,7"


@given(st.lists(numbers, max_size=40))
def test_no_settled_number_is_ever_taken_for_a_new_one(settles):
    """
    Forgetting old gaps may refuse a command; repeating one is never allowed.
    """
    progress = Progress.starting_at(1)
    model = set()

    for n in settles:
        progress.settle(n, 7)
        model.add(n)

    assert all(progress.settled(n) for n in model)
    unsettled = set(range(1, max(model, default=0) + 1)) - model
    forgotten = {n for n in unsettled if progress.settled(n)}
    remembered = unsettled - forgotten
    assert progress.gaps == remembered
    # What is forgotten is older than all that is remembered.
    assert max(forgotten, default=0) < min(remembered, default=2**62)


@given(st.lists(numbers, max_size=40))
def test_the_gaps_stay_bounded_and_below_the_mark(settles):
    progress = Progress.starting_at(1)

    for n in settles:
        progress.settle(n, 7)

        assert len(progress.gaps) <= MAX_GAPS
        assert all(0 < gap < progress.mark for gap in progress.gaps)


@given(st.lists(numbers, max_size=40), st.integers(0, 2**40))
def test_it_survives_the_way_into_the_bus_and_back(settles, now_s):
    progress = Progress.starting_at(1)
    for n in settles:
        progress.settle(n, now_s)

    again = Progress.parse(progress.pack().encode())

    assert (again.mark, again.gaps) == (progress.mark, progress.gaps)
    assert again.seen_s == progress.seen_s
    assert again.pack() == progress.pack()


def test_as_many_gaps_as_are_allowed_are_all_remembered():
    progress = Progress.starting_at(1)

    progress.settle(MAX_GAPS + 1, 7)

    assert progress.gaps == set(range(1, MAX_GAPS + 1))


def test_a_publisher_first_seen_late_counts_all_before_as_gone():
    """
    They cannot be told from settled ones any more, and twice is worse than never.
    """
    progress = Progress.starting_at(5)

    assert [progress.settled(n) for n in (1, 4, 5, 6)] == [True, True, False, False]


def test_settling_a_number_twice_changes_nothing_but_the_time():
    progress = Progress.starting_at(1)
    progress.settle(3, 7)

    progress.settle(3, 8)

    assert progress.pack() == "3,8,1,2"
