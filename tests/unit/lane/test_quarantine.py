"""
Suspects and the marks of their trials, without a server.
"""

import pytest

from everbus.gateway.lane.connection import LaneLost
from everbus.gateway.lane.quarantine import Quarantine
from tests.lane_parts import OWNER, FakeWire, an_update


async def recognised(history, *, failed_trials=0):
    update = an_update()
    quarantine = Quarantine(FakeWire(HMGET=[history]), 0, "one")
    for _ in range(failed_trials):
        quarantine.fail_trial()
    await quarantine.recognise([update])

    return update


async def test_a_pending_command_is_a_suspect():
    update = await recognised(None)

    assert update.suspect
    assert update.attempts == []


async def test_each_trier_that_never_noted_an_end_is_a_death():
    """
    A trier counts once, however often it marked the trial.
    """
    update = await recognised(b"two#0 two#0 three#1")

    assert update.attempts == [
        "an owner died with it in a batch",
        "two#0 died while trying it alone",
        "three#1 died while trying it alone",
    ]


async def test_our_own_trial_is_no_death_until_the_lane_breaks_over_it():
    assert (await recognised(b"one#0")).attempts == []
    assert len((await recognised(b"one#0", failed_trials=1)).attempts) == 2


async def test_a_mark_names_the_trier_under_the_lanes_epoch():
    wire = FakeWire(mark=b"OK")
    quarantine = Quarantine(wire, 0, "one")
    quarantine.fail_trial()

    await quarantine.mark(an_update())

    [(_, _, _, owner, name, trier, _)] = wire.sent
    assert (owner, name, trier) == (OWNER, an_update().name, "one#1")


async def test_nothing_is_tried_once_the_lane_has_another_owner():
    quarantine = Quarantine(FakeWire(mark=[b"superseded"]), 0, "one")

    with pytest.raises(LaneLost):
        await quarantine.mark(an_update())
