"""
Token buckets and counters of one edge, on a clock of the test's.
"""

import pytest

from everbus.bus.errors import Overloaded
from everbus.gateway.edge import limits as module
from everbus.gateway.edge.context import EdgeLimits
from everbus.gateway.edge.limits import Buckets, Limiter
from everbus.gateway.identity.principal import Principal


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def somebody(name: str = "ada", tenant: str = "") -> Principal:
    return Principal(name, "user", 1e12, tenant)


def let_in(limiter: Limiter, who: Principal, times: int) -> int:
    """
    How many of so many requests are let in.
    """
    count = 0
    for _ in range(times):
        try:
            limiter.check_rate(who)
        except Overloaded:
            continue
        count += 1
    return count


def test_a_burst_is_twice_the_rate_and_fills_up_again():
    clock = Clock()
    limiter = Limiter(EdgeLimits(rate=10), clock)

    assert let_in(limiter, somebody(), 100) == 20
    clock.now_s += 0.5
    assert let_in(limiter, somebody(), 100) == 5
    clock.now_s += 3600
    assert let_in(limiter, somebody(), 100) == 20


def test_whoever_waits_as_long_as_told_is_let_in():
    clock = Clock()
    limiter = Limiter(EdgeLimits(rate=10), clock)
    let_in(limiter, somebody(), 20)
    with pytest.raises(Overloaded) as refusal:
        limiter.check_rate(somebody())

    clock.now_s += refusal.value.details["retry_after_s"]

    limiter.check_rate(somebody())


def test_what_is_refused_costs_nothing():
    """
    Else whoever keeps asking would never get in again, and would use up the tenant's.
    """
    clock = Clock()
    limiter = Limiter(EdgeLimits(rate=1, tenant_rate=10), clock)
    assert let_in(limiter, somebody("ada"), 1000) == 2

    assert let_in(limiter, somebody("bob"), 1000) == 2


def test_a_name_in_two_tenants_is_two_principals():
    limiter = Limiter(EdgeLimits(rate=1), Clock())

    assert [let_in(limiter, somebody("ada", t), 9) for t in ("a", "b")] == [2, 2]


def test_buckets_are_forgotten_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(module, "MAX_BUCKETS", 3)
    buckets = Buckets(0.001, 1, Clock())
    for name in "abcd":
        buckets.take(name)

    assert [buckets.wait_s(name) > 0 for name in "abcd"] == [False, True, True, True]


def test_counters_end_with_the_work_also_when_it_fails():
    limiter = Limiter(EdgeLimits(concurrency=1, tenant_concurrency=2), Clock())

    with limiter.in_flight(somebody()):
        with pytest.raises(Overloaded), limiter.in_flight(somebody()):
            pass
        with pytest.raises(ZeroDivisionError), limiter.in_flight(somebody("bob")):
            raise ZeroDivisionError
        assert limiter.busy == 1

    assert limiter.busy == 0
    assert not limiter._tenants_busy
