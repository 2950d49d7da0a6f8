"""
When a run is said to be worse than the committed one.
"""

import json

import pytest

from tests.bench import regress
from tests.bench.regress import COMMITTED, MARGIN, Known, Line

KNOWN = Known(median=10.0, least=8.0, most=12.0, n=10)


def a_line(*today: float, higher: bool = True, known: Known | None = KNOWN) -> Line:
    return Line("rate : yardstick", higher, list(today), known)


@pytest.mark.parametrize(
    ("today", "higher", "verdict"),
    [
        ((9.0, 10.0, 11.0), True, "within"),
        ((7.5, 7.0, 7.2), True, "within"),
        ((6.9, 6.0, 12.0), True, "worse"),
        ((14.0, 14.0, 6.0), True, "better"),
        ((14.0, 14.0, 6.0), False, "worse"),
        ((13.7, 13.7, 20.0), False, "within"),
        ((6.9, 6.0, 12.0), False, "better"),
    ],
)
def test_the_median_is_judged_by_the_worst_committed_pass(today, higher, verdict):
    assert a_line(*today, higher=higher).verdict == verdict


def test_a_loss_of_a_fifth_below_the_worst_pass_is_seen():
    assert a_line(0.8 * KNOWN.least).verdict == "worse"
    assert a_line(KNOWN.least / MARGIN + 0.01).verdict == "within"


def test_what_cannot_be_compared_is_neither_good_nor_bad():
    lines = [a_line(), a_line(1.0, known=None), a_line(10.0)]

    assert [line.verdict for line in lines] == ["not measured", "new", "within"]
    assert regress.summary(lines).startswith("1 of 3 ratios within")
    assert "2 not comparable; none is worse" in regress.summary(lines)


def test_the_summary_names_what_is_worse():
    assert "WORSE: rate : yardstick" in regress.summary([a_line(1.0), a_line(10.0)])


def test_a_ratio_that_is_no_longer_measured_is_told():
    committed = {"ratios": {"no reply : WATCH": KNOWN._asdict()}}

    [line] = regress.compared({}, committed)

    assert line.verdict == "not measured"


def test_every_ratio_that_is_measured_is_committed():
    """
    Else `make bench` would call it new for ever.
    """
    committed = json.loads(COMMITTED.read_text())

    assert set(committed["ratios"]) == set(regress.directions())
