"""
Latencies in bounded memory, against the sorted list of them all.
"""

import math

from hypothesis import given
from hypothesis import strategies as st

from everbus.compose.bench.histogram import Histogram, bucket_of, lower_us, upper_us

HOUR_US = 3600 * 10**6
durations = st.lists(st.integers(0, HOUR_US), min_size=1, max_size=200)
shares = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0])


def histogram_of(times):
    histogram = Histogram()
    for us in times:
        histogram.note(us)
    return histogram


@given(durations, shares)
def test_a_quantile_is_never_too_small_and_at_most_a_64th_too_large(times, share):
    true = sorted(times)[max(1, math.ceil(share * len(times) - 1e-9)) - 1]

    told = histogram_of(times).quantile_us(share)

    assert true <= told <= true + true / 64


@given(st.integers(0, HOUR_US))
def test_a_duration_lies_within_its_bucket(us):
    bucket = bucket_of(us)

    assert lower_us(bucket) <= us <= upper_us(bucket)
    assert bucket_of(upper_us(bucket) + 1) == bucket + 1


def test_below_128_us_it_is_exact():
    assert histogram_of(range(100)).quantile_us(0.5) == 49


def test_the_greatest_is_exact_at_any_size():
    assert histogram_of([1, 1_234_567]).quantile_us(1.0) == 1_234_567


def test_memory_is_bounded_whatever_comes():
    assert bucket_of(HOUR_US) < 2_000


def test_nothing_has_no_quantiles_and_time_never_runs_backwards():
    assert Histogram().quantile_us(0.5) == 0
    assert histogram_of([-5]).max_us == 0
