"""
The argument of gateway/README.md about lost memory, checked over every history.

The suite tries one command, one fault or two; the campaign two commands and two
faults, 3.2 million states. `compares_commands` is in the product as well, though no
history of this size needs it beside the other mends.
"""

import pytest

from tests.unit.models.lineage import Rules, State, search

MOST = 400_000
LOST = "a command that was answered `warm` is not in the hot copy"


def test_no_history_with_one_fault_breaks_a_promise():
    found, promise, seen = search(Rules(), State(faults=1, numbers=1), MOST)

    assert (found, promise) == ([], "")
    # A model whose steps are never possible would break nothing either.
    assert seen > 10_000


@pytest.mark.parametrize(
    ("mend", "faults", "promise"),
    [
        ("new_lineage", 1, LOST),
        ("claims", 1, LOST),
        ("gate", 1, LOST),
        ("settles_numbers", 1, "a command was applied twice"),
        ("ancestors", 2, "the hot copy and MongoDB differ, and nothing is on its way"),
        ("refuses_dead", 1, LOST),
        ("repeats", 1, LOST),
    ],
)
def test_without_a_mend_a_history_is_found(mend, faults, promise):
    """
    The old defects come back when what mends them is taken out.
    """
    begin = State(faults=faults, numbers=1)
    found, broke, _ = search(Rules()._replace(**{mend: False}), begin, MOST)

    assert broke == promise
    assert found[0] == "open 0"


@pytest.mark.campaign
def test_no_history_with_two_faults_breaks_a_promise():
    """
    All states, about 3.2 million: two minutes or three, and some GiB of memory.
    """
    found, promise, _ = search(Rules(), State(faults=2), 5_000_000)

    assert (found, promise) == ([], "")
