"""
The sessions that a replica's lanes keep in memory are bounded in bytes.
"""

from everbus.gateway.lane.cache import WORST_BYTES, CacheBudget, LaneCache
from everbus.gateway.telemetry import metrics
from tests.builders import a_session


def filled(budget, count, size):
    cache = LaneCache(budget)
    for n in range(count):
        cache.sessions[f"s{n}"] = a_session(id=f"s{n}", fields={"x": "y" * size})
        cache.measure([f"s{n}"])
    return cache


def test_a_cache_beyond_the_budget_forgets_its_oldest_sessions():
    before = metrics.BOUND_REACHED.labels("cache_max_bytes")._value.get()
    budget = CacheBudget(20 * WORST_BYTES)
    cache = filled(budget, 500, 40_000)

    cache.shrink(windows=True)

    assert 20 <= len(cache.sessions) < 30
    assert "s499" in cache.sessions
    assert cache.memory_bytes <= 20 * WORST_BYTES
    assert metrics.BOUND_REACHED.labels("cache_max_bytes")._value.get() == before + 1


def test_small_sessions_stay():
    cache = filled(CacheBudget(20 * WORST_BYTES), 500, 100)

    cache.shrink(windows=True)

    assert len(cache.sessions) > 450


def test_a_lane_below_its_share_pays_for_no_other_one():
    budget = CacheBudget(20 * WORST_BYTES)
    small, large = filled(budget, 5, 100), filled(budget, 500, 40_000)

    small.shrink(windows=True)
    large.shrink(windows=True)

    assert len(small.sessions) == 5
    assert small.memory_bytes + large.memory_bytes <= 20 * WORST_BYTES
