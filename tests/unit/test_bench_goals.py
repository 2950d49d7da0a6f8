"""
Ratios and verdicts of the benches.
"""

from tests.bench import goals
from tests.bench.goals import Goal, Ratio

FIGURES = {"a": [10.0, 30.0, 20.0], "b": [1.0, 10.0, 4.0]}


def test_ratios_are_of_the_same_pass():
    """
    A fast and a slow phase of the machine must not be compared with each other.
    """
    found = goals.ratios(FIGURES, {"a : b": Ratio("a", "b")})

    assert found == {"a : b": [10.0, 3.0, 5.0]}


def test_a_ratio_of_what_was_not_measured_is_left_out():
    assert goals.ratios(FIGURES, {"a : c": Ratio("a", "c")}) == {}


def test_a_goal_is_judged_by_the_median():
    told = goals.verdicts(
        FIGURES,
        (Goal("a", 20), Goal("a", 25), Goal("a", 19, at_least=False), Goal("c", 1)),
    ).splitlines()

    assert told[2].endswith("| ≥ 20 | 20.00 [10.00-30.00] | yes |")
    assert told[3].endswith("| **no** |")
    assert told[4].endswith("| **no** |")
    assert told[5].endswith("| not measured here | |")
