"""
Rates of a MAD and of a tenant: who is above is told when to come again, or waits.
"""

import pytest

from everbus.bus.errors import Overloaded
from everbus.bus.keys import EDGE, GATEWAY
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.decision import Decision
from everbus.gateway.lane.delivery import received_in
from everbus.gateway.lane.rates import CommandRates
from tests.lane_parts import (
    ARRIVED_MS,
    a_batch,
    a_decider,
    an_append,
    an_update,
    packed,
)

ADA = Principal("ada", "mad", 1e12)


def of(mad):
    [one] = received_in(mad, f"{ARRIVED_MS}-1", [b"c", packed("session.get")], 0, 1)
    return one


def a_clock():
    now = [100.0]
    return now, lambda: now[0]


def test_a_mad_above_its_rate_is_told_when_to_come_again():
    now, clock = a_clock()
    rates = CommandRates(mad_rate=2, clock=clock)
    for _ in range(2):
        rates.take(of("ada"), ADA)

    with pytest.raises(Overloaded) as refused:
        rates.take(of("ada"), ADA)

    assert refused.value.details == {"limit": "mad_rate", "retry_after_s": 0.5}
    rates.take(of("bea"), ADA)
    now[0] += 0.5
    rates.take(of("ada"), ADA)


def test_a_tenants_rate_counts_all_its_mads_and_callers():
    _, clock = a_clock()
    rates = CommandRates(tenant_rate=2, clock=clock)
    rates.take(of("ada"), ADA)
    rates.take(of(EDGE), ADA)

    with pytest.raises(Overloaded):
        rates.take(of("bea"), ADA)
    rates.take(of("bea"), Principal("bea", "mad", 1e12, "other"))


def test_the_gateways_own_commands_have_no_rate():
    rates = CommandRates(mad_rate=1, tenant_rate=1)

    for _ in range(5):
        rates.take(of(GATEWAY), ADA)


def test_by_default_nothing_is_counted():
    assert CommandRates().unlimited
    assert a_decider(rates=CommandRates())._rates is None


def test_a_request_above_the_rate_is_refused_and_an_append_waits():
    rates = CommandRates(mad_rate=1, clock=lambda: 0.0)
    decider, batch = a_decider(rates=rates), a_batch()
    rates.take(of("ada"), ADA)

    assert decider.decide(an_append(1), batch) is Decision.DEFERRED
    assert decider.decide(an_update(2), batch) is Decision.SETTLED
    assert batch.outcomes == {("session.update", "overloaded"): 1}
