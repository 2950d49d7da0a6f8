"""
The wait after each failure in a row, and its jitter.
"""

import pytest

from everbus.bus.backoff import FULL_JITTER, HALF_JITTER, Backoff, jittered


def test_each_wait_is_twice_the_last_up_to_the_longest():
    backoff = Backoff(0.1, 0.5)

    waits = [backoff.next_s() for _ in range(5)]

    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_reset_begins_with_the_first_wait_again():
    backoff = Backoff(0.1, 0.5)
    backoff.next_s()
    backoff.next_s()

    backoff.reset()

    assert backoff.failures == 0
    assert backoff.next_s() == 0.1


def test_a_run_that_was_long_enough_ends_the_row_of_failures():
    backoff = Backoff(0.1, 1.0, steady_s=2.0)

    waits = [backoff.next_s(ran_s) for ran_s in (0.0, 1.9, 2.0, 2.1, 0.0)]

    assert waits == [0.1, 0.2, 0.4, 0.1, 0.2]


def test_a_wait_after_so_many_failures_counts_none():
    backoff = Backoff(2.0, 32.0)

    assert [backoff.after(n) for n in (1, 2, 6)] == [2.0, 4.0, 32.0]
    assert backoff.failures == 0


def test_failures_without_end_overflow_nothing():
    assert Backoff(0.1, 3.0).after(1_000_000) == 3.0


@pytest.mark.parametrize(
    ("jitter", "lowest", "highest"), [(FULL_JITTER, 0.0, 2.0), (HALF_JITTER, 1.0, 3.0)]
)
def test_jitter_draws_around_the_wait(jitter, lowest, highest):
    least = Backoff(1.0, 2.0, jitter=jitter, draw=lambda low, high: low)
    most = Backoff(1.0, 2.0, jitter=jitter, draw=lambda low, high: high)

    assert least.after(9) == lowest
    assert most.after(9) == highest


def test_one_wait_may_have_jitter_without_a_backoff():
    assert jittered(10.0, (0.8, 1.0), lambda low, high: high) == 10.0
    assert 8.0 <= jittered(10.0, (0.8, 1.0)) <= 10.0


def test_a_wait_without_end_stays_without_end():
    assert jittered(float("inf"), HALF_JITTER) == float("inf")
