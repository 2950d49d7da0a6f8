"""
Fail points: harmless unless armed, deadly at exactly the armed passing.
"""

import os
import re
import signal
from pathlib import Path

import pytest

from everbus.gateway import failpoints
from everbus.gateway.failpoints import POINTS, armed, disarmed

GATEWAY = Path(failpoints.__file__).parent
ARCHIVER = GATEWAY.parent / "archiver"
BACKUP = GATEWAY.parent / "compose" / "backup"


@pytest.fixture
def kills(monkeypatch):
    """
    The signals that this process would have sent itself.
    """
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize("point", POINTS)
def test_it_dies_at_the_nth_passing_and_not_before(point, kills):
    fail = armed(f"{point}:3")

    fail(point)
    fail(point)
    before = list(kills)
    fail(point)

    assert before == []
    assert kills == [(os.getpid(), signal.SIGKILL)]


def test_other_points_do_not_count(kills):
    fail = armed("after_read:1")

    for point in POINTS:
        if point != "after_read":
            fail(point)

    assert kills == []


def test_a_process_that_is_not_armed_passes_every_point(kills):
    for point in POINTS:
        disarmed(point)

    assert kills == []


@pytest.mark.parametrize(
    "setting", ["", "after_read", "after_read:", "after_read:-1", "nowhere:1", ":1"]
)
def test_what_names_no_point_and_count_is_refused(setting):
    with pytest.raises(ValueError, match="wanted <point>:<n>"):
        armed(setting)


def test_the_known_points_are_exactly_those_that_are_passed():
    """
    A point that nobody passes would make its kill test prove nothing.
    """
    passed = {
        point
        for room in (GATEWAY, ARCHIVER, BACKUP)
        for file in room.rglob("*.py")
        for point in re.findall(r'\b_?fail\("(\w+)"\)', file.read_text())
    }

    assert passed == set(POINTS)
