import asyncio

import pytest
import structlog
from prometheus_client import REGISTRY

from everbus.bus.errors import EverbusError, NotFound, Unavailable
from everbus.gateway.store.breaker import TierBreaker, guarded
from everbus.gateway.store.tiers import ColdTier, Corrupted
from everbus.gateway.store.warm_roles import WarmTier

AGES = 3600.0


@pytest.fixture
def breaker(clock):
    return TierBreaker("warm", failures=3, open_s=2.0, clock=clock)


async def fine():
    return "answer"


async def away():
    raise Unavailable("no route")


async def tried(breaker, call, deadline_s=AGES):
    """
    What a call came to: its result, or the error.
    """
    try:
        return await breaker.run(call, deadline_s)
    except (EverbusError, ValueError) as error:
        return error


async def opened(breaker):
    for _ in range(3):
        await tried(breaker, away)
    assert breaker.state == "open"


def told(name, **labels):
    return REGISTRY.get_sample_value(name, labels)


async def test_a_closed_breaker_returns_what_the_call_returns(breaker):
    assert await breaker.run(fine, AGES) == "answer"
    assert breaker.state == "closed"


async def test_it_opens_after_so_many_failures_in_a_row(breaker):
    for _ in range(2):
        await tried(breaker, away)
    await tried(breaker, fine)
    for _ in range(2):
        await tried(breaker, away)
    assert breaker.state == "closed"

    await tried(breaker, away)

    assert breaker.state == "open"


async def test_open_it_refuses_at_once_and_tells_when_to_ask_again(breaker, clock):
    await opened(breaker)
    calls = []
    clock.now += 0.5

    async def call():
        calls.append(1)

    error = await tried(breaker, call)

    assert isinstance(error, Unavailable)
    assert error.details == {"retry_after_s": 1.5}
    assert not calls


async def test_a_probe_that_is_answered_closes_it(breaker, clock):
    await opened(breaker)
    clock.now += 2.0

    assert await breaker.run(fine, AGES) == "answer"

    assert breaker.state == "closed"


async def test_each_failed_probe_doubles_the_pause_up_to_thirty_seconds(breaker, clock):
    await opened(breaker)
    pauses = []
    for _ in range(6):
        error = await tried(breaker, fine)
        pauses.append(error.details["retry_after_s"])
        clock.now += pauses[-1]
        await tried(breaker, away)

    assert pauses == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


async def test_once_closed_the_pause_is_short_again(breaker, clock):
    await opened(breaker)
    clock.now += 2.0
    await tried(breaker, away)
    clock.now += 4.0
    await tried(breaker, fine)

    await opened(breaker)

    error = await tried(breaker, fine)
    assert error.details == {"retry_after_s": 2.0}


async def test_while_the_probe_is_under_way_others_are_refused(breaker, clock):
    await opened(breaker)
    clock.now += 2.0
    answered = asyncio.Event()

    async def probe():
        await answered.wait()
        return "answer"

    probing = asyncio.create_task(breaker.run(probe, 10.0))
    await asyncio.sleep(0)
    clock.now += 1.0
    error = await tried(breaker, fine)

    assert breaker.state == "half_open"
    assert error.details == {"retry_after_s": 9.0}
    answered.set()
    assert await probing == "answer"
    assert await tried(breaker, fine) == "answer"


async def test_a_cancelled_probe_leaves_its_place_to_the_next_call(breaker, clock):
    await opened(breaker)
    clock.now += 2.0
    probing = asyncio.create_task(breaker.run(asyncio.Event().wait, AGES))
    await asyncio.sleep(0)

    probing.cancel()
    await asyncio.wait([probing])

    assert probing.cancelled()
    assert await tried(breaker, fine) == "answer"
    assert breaker.state == "closed"


async def test_cancelled_calls_are_no_failures(breaker):
    for _ in range(5):
        call = asyncio.create_task(breaker.run(asyncio.Event().wait, AGES))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

    assert breaker.state == "closed"


async def test_a_call_beyond_its_deadline_is_unavailable_and_a_failure(breaker):
    for _ in range(3):
        error = await tried(breaker, asyncio.Event().wait, deadline_s=0.001)
        assert isinstance(error, Unavailable)
        assert "0.001 s" in error.message

    assert breaker.state == "open"


@pytest.mark.parametrize("error", [NotFound("x"), Corrupted("x"), ValueError("x")])
async def test_a_tier_that_answers_is_not_away_whatever_it_says(breaker, clock, error):
    async def call():
        raise error

    for _ in range(5):
        assert await tried(breaker, call) is error
    assert breaker.state == "closed"

    await opened(breaker)
    clock.now += 2.0
    assert await tried(breaker, call) is error
    assert breaker.state == "closed"


async def test_calls_from_before_it_opened_do_not_count_when_they_end(breaker, clock):
    """
    Else a burst of slow calls would double the pause, or close it unprobed.
    """
    go = asyncio.Event()

    async def late_failure():
        await go.wait()
        raise Unavailable("late")

    late = [asyncio.create_task(tried(breaker, late_failure)) for _ in range(5)]
    late.append(asyncio.create_task(tried(breaker, go.wait)))
    await asyncio.sleep(0)
    await opened(breaker)

    go.set()
    await asyncio.gather(*late)

    assert breaker.state == "open"
    error = await tried(breaker, fine)
    assert error.details == {"retry_after_s": 2.0}


async def test_each_change_is_logged_once_and_told_to_the_metrics(breaker, clock):
    labels = {"tier": "warm", "outcome": "refused"}
    before = told("everbus_tier_calls_total", **labels) or 0.0
    with structlog.testing.capture_logs() as logs:
        await opened(breaker)
        assert told("everbus_breaker_state", tier="warm") == 2
        await tried(breaker, fine)
        await tried(breaker, fine)
        clock.now += 2.0
        await tried(breaker, fine)

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("breaker.opened", "warning"),
        ("breaker.closed", "info"),
    ]
    assert told("everbus_breaker_state", tier="warm") == 0
    assert told("everbus_tier_calls_total", **labels) == before + 2


class Store:
    """
    A tier that notes what it is asked.
    """

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        async def method(*args, **kwargs):
            self.asked.append((name, args, kwargs))
            return name

        return method

    def close(self):
        self.asked.append("close")


def methods_of(protocol):
    return sorted(
        name
        for name in dir(protocol)
        if not name.startswith("_") and name not in ("close", "register")
    )


@pytest.mark.parametrize("protocol", [WarmTier, ColdTier])
async def test_a_guarded_tier_passes_every_method_of_the_protocol_on(protocol, breaker):
    store = Store()
    tier = guarded(store, breaker, AGES)
    before = told("everbus_tier_calls_total", tier="warm", outcome="ok") or 0

    for name in methods_of(protocol):
        assert await getattr(tier, name)("a", b="c") == name
    tier.close()

    names = methods_of(protocol)
    wanted = [(name, ("a",), {"b": "c"}) for name in names]
    after = told("everbus_tier_calls_total", tier="warm", outcome="ok")
    assert len(names) == (24 if protocol is WarmTier else 4)
    assert store.asked == [*wanted, "close"]
    assert after - before == len(names)


async def test_a_guarded_tier_is_refused_while_its_breaker_is_open(breaker):
    await opened(breaker)
    store = Store()

    with pytest.raises(Unavailable):
        await guarded(store, breaker, AGES).sessions(["s1"])

    assert store.asked == []
