"""
The judge of the measures of scale sees each kind of loss, and nothing else.
"""

from collections import Counter

import pytest

from tests.bench.scale import GOALS, _is_untrue
from tests.bench.scale_accounts import Accounts
from tests.bench.scale_work import Report

WHOLE = [(1, "ann", 1), (2, "bob", 1), (3, "ann", 2)]


def accounts(**fields) -> Accounts:
    """
    What two clients were told: three entries and four changes of s1, two counted.
    """
    first = Report(
        versions=Counter({"s1": 3}),
        counted=Counter({"s1": 2}),
        appended={"s1": {"ann": 2}},
        **fields,
    )
    other = Report(versions=Counter({"s1": 1}), appended={"s1": {"bob": 1}})

    return Accounts([first, other])


def test_what_is_whole_is_not_wrong():
    told = accounts()

    assert told.wrong_entries({"s1": WHOLE}) == 0
    assert told.wrong_versions({"s1": 5}) == 0
    assert told.wrong_counts({"s1": 2}) == 0


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(WHOLE[:2], id="the last is lost"),
        pytest.param([(1, "bob", 1), (2, "ann", 2)], id="the first is lost"),
        pytest.param([*WHOLE, (4, "ann", 2)], id="one is doubled"),
        pytest.param(
            [(1, "ann", 2), (2, "bob", 1), (3, "ann", 1)], id="two are out of order"
        ),
        pytest.param([(1, "ann", 1), (2, "bob", 1), (4, "ann", 2)], id="a hole"),
        pytest.param([*WHOLE, (4, "bob", 2)], id="one that nobody sent"),
        pytest.param([], id="all are lost"),
    ],
)
def test_an_entry_that_is_not_once_and_in_order_is_wrong(found):
    assert accounts().wrong_entries({"s1": found}) > 0


def test_entries_of_a_session_that_is_not_there_are_wrong():
    assert accounts().wrong_entries({}) > 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_change_lost_or_doubled_is_wrong(version):
    assert accounts().wrong_versions({"s1": version}) == 1


def test_a_change_overwritten_by_a_contender_is_wrong():
    assert accounts().wrong_counts({"s1": 1}) == 1


def test_of_what_nobody_was_told_the_end_of_either_is_right():
    told = accounts(unknown=[("s1", "ann", 2)], doubtful=["s1"])

    assert told.wrong_entries({"s1": WHOLE}) == 0
    assert told.wrong_entries({"s1": WHOLE[:2]}) == 0
    assert told.wrong_versions({"s1": 5}) == 0
    assert told.wrong_versions({"s1": 6}) == 0
    assert told.wrong_versions({"s1": 7}) == 1


def test_one_loss_in_any_pass_ends_with_a_failure():
    assert _is_untrue("contended counts wrong", [0, 1])
    assert not _is_untrue("contended counts wrong", [0, 0])
    # A goal of time that is missed is told, but is no loss.
    slow = "hot get at 200/s, p99 ms"
    assert slow in GOALS
    assert not _is_untrue(slow, [1000.0])
