"""
Who leads: the same answer everywhere, announced ahead, and with a way back.
"""

import pytest

from everbus.compose.exit_codes import Failed
from everbus.compose.migration import cutover
from everbus.compose.migration.cutover import (
    HOLD_S,
    LOOK_EVERY_S,
    CutoverFile,
    CutoverPlan,
    Leads,
)

USERS = [f"user-{n}" for n in range(1000)]


def changed(plan, at, **change):
    change = {"users": {}, "percent": None, "ahead_s": 10.0} | change
    return plan.changed(moment_s=at, **change)


def test_a_percentage_only_adds_users_when_it_rises():
    led = [
        {user for user in USERS if Leads(percent=p).of(user) == "everbus"}
        for p in (0, 10, 50, 100)
    ]

    assert led[0] < led[1] < led[2] < led[3] == set(USERS)
    assert 60 < len(led[1]) < 140


def test_a_user_by_name_wins_over_the_percentage():
    assert Leads(100, {"ada": "old"}).of("ada") == "old"
    assert Leads(0, {"ada": "everbus"}).of("ada") == "everbus"


def test_a_change_holds_from_its_moment_and_holds_up_only_who_changes():
    plan = changed(CutoverPlan(), 100.0, users={"ada": "everbus"})

    assert plan.at(109.9).of("ada") == "old"
    assert plan.at(110.0).of("ada") == "everbus"
    assert plan.hold_s("ada", 110.0 - HOLD_S) == 0
    assert plan.hold_s("ada", 109.0) == 1 + HOLD_S
    assert plan.hold_s("ada", 110.0 + HOLD_S) == 0
    assert plan.hold_s("bob", 110.0) == 0


def test_the_way_back_is_the_same_change():
    plan = changed(CutoverPlan(), 100.0, users={"ada": "everbus"}, percent=10)
    back = changed(plan, 200.0, users={"ada": "old"}, percent=0)

    assert back.at(205.0).of("ada") == "everbus"
    assert back.at(210.0) == Leads(0, {"ada": "old"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"at": 111.0}, "the last change holds in 1 s"),
        ({"at": 200.0, "ahead_s": 1.0}, "wanted at least 5 s"),
        ({"at": 200.0, "percent": 101}, "wanted 0 to 100 percent"),
    ],
)
def test_a_change_too_soon_or_out_of_range_is_refused(change, told):
    plan = changed(CutoverPlan(), 100.0, percent=10)

    with pytest.raises(Failed, match=told):
        changed(plan, **change)


def test_the_file_is_read_again_when_it_changed(tmp_path):
    writer, reader = (CutoverFile(tmp_path / "c.json") for _ in range(2))
    assert reader.plan(0.0) == CutoverPlan()

    plan = changed(CutoverPlan(), 100.0, percent=10)
    writer.save(plan)

    assert reader.plan(LOOK_EVERY_S / 2) == CutoverPlan()
    assert reader.plan(LOOK_EVERY_S) == plan


@pytest.mark.parametrize("damage", [None, "{"])
def test_a_file_that_goes_or_breaks_changes_nothing(tmp_path, damage):
    path = tmp_path / "c.json"
    file = CutoverFile(path)
    plan = changed(CutoverPlan(), 100.0, percent=100)
    file.save(plan)
    assert file.plan(0.0) == plan

    path.unlink() if damage is None else path.write_text(damage)

    assert file.plan(10.0) == plan
    assert file.trouble
    with pytest.raises(Failed, match="wanted a cut-over file"):
        file.load()


def test_a_change_is_announced_before_any_process_may_miss_it():
    """
    A process looks each second; what it does not know it cannot wait for.
    """
    assert cutover.LEAST_AHEAD_S > HOLD_S + 2 * LOOK_EVERY_S
