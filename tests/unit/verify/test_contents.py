"""
The check by content: every way in which a timeline can differ from its recording, and
the difference of two copies.
"""

from datetime import UTC, datetime

import msgspec
import pytest

from everbus.bus.messages import TimelineEntry
from everbus.compose.recordings import Recording
from everbus.compose.replay import ReplayReport, content_check
from everbus.compose.verify.contents import check_equal
from everbus.compose.verify.violations import KINDS, Violations

AT = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGES = tuple(
    {"role": role, "text": text}
    for role, text in [
        ("user", "hi"),
        ("assistant", "hello"),
        ("tool", "42"),
        ("tool", "43"),
        ("user", "yes"),
        ("assistant", "sure?"),
        ("user", "yes"),  # the same content twice is no doubled entry
    ]
)
RECORDING = Recording("c1", "ada", "c1-x", MESSAGES)


def a_timeline(messages=MESSAGES, first=1):
    return [
        TimelineEntry(seq, AT, message["role"], message)
        for seq, message in enumerate(messages, first)
    ]


def checked(entries, recording=RECORDING):
    violations = Violations(kept=100)
    check = content_check(recording, violations)
    for entry in entries:
        check.see(entry)
    check.end()
    return violations


def found_in(entries, recording=RECORDING):
    first = checked(entries, recording).first
    return [(one.number, one.kind) for one in sorted(first, key=lambda one: one.number)]


def test_a_timeline_as_recorded_has_no_findings():
    assert checked(a_timeline()).clean


@pytest.mark.parametrize("index", range(len(MESSAGES)))
def test_a_lost_entry_is_found(index):
    rest = MESSAGES[:index] + MESSAGES[index + 1 :]

    # Of two with the same content, the later one counts as lost.
    place = 7 if index == 4 else index + 1
    assert (place, "lost") in found_in(a_timeline(rest))


def test_a_lost_entry_that_leaves_a_hole_is_found_with_its_gap():
    timeline = a_timeline()
    del timeline[2]

    assert found_in(timeline) == [(3, "lost"), (4, "gap")]


@pytest.mark.parametrize("index", range(len(MESSAGES)))
def test_a_doubled_entry_is_found(index):
    doubled = (*MESSAGES[: index + 1], *MESSAGES[index:])

    found = [kind for _, kind in found_in(a_timeline(doubled))]

    assert found.count("doubled") == 1
    assert "lost" not in found


def test_a_doubled_entry_is_named_by_its_seq():
    doubled = (*MESSAGES, MESSAGES[1])

    assert found_in(a_timeline(doubled)) == [(8, "doubled")]


def test_two_entries_that_are_swapped_are_found():
    swapped = list(MESSAGES)
    swapped[2:4] = swapped[3], swapped[2]

    [violation] = checked(a_timeline(swapped)).first

    line = "out of order: session c1-x, number 4: entry 3 comes after entry 4"
    assert str(violation) == line


def test_an_entry_that_differs_is_unequal_and_not_lost():
    changed = [*MESSAGES[:1], {"role": "assistant", "text": "HELLO"}, *MESSAGES[2:]]

    [violation] = checked(a_timeline(changed)).first

    assert (violation.number, violation.kind) == (2, "unequal")
    assert '"HELLO"' in violation.detail
    assert '"hello"' in violation.detail


def test_an_unrecorded_entry_is_foreign():
    more = (*MESSAGES, {"role": "user", "text": "forged"})

    assert found_in(a_timeline(more)) == [(8, "foreign")]


def test_a_number_that_changed_its_type_differs():
    recording = Recording("c1", "ada", "c1-x", ({"role": "user", "n": 1},))

    assert found_in(a_timeline([{"role": "user", "n": 1.0}]), recording) == [
        (1, "unequal")
    ]


def test_a_wrong_author_is_found():
    timeline = a_timeline()
    timeline[3] = msgspec.structs.replace(timeline[3], author="user")

    assert found_in(timeline) == [(4, "unequal")]


def test_numbers_that_do_not_begin_at_one_are_found_once():
    assert found_in(a_timeline(first=2)) == [(2, "gap")]


def test_of_an_empty_timeline_everything_is_lost():
    wanted = [(seq, "lost") for seq in range(1, len(MESSAGES) + 1)]

    assert found_in([]) == wanted


def test_a_report_counts_each_kind():
    timeline = a_timeline((*MESSAGES[1:], MESSAGES[1], MESSAGES[1]))
    found = checked(timeline)
    report = ReplayReport(1, 7, 0.5, dict(found.counts), tuple(found.first))

    assert not report.clean
    numbers = {"conversations": 1, "messages": 7, "seconds": 0.5, "messages_per_s": 14}
    counts = dict.fromkeys(KINDS, 0) | {"lost": 1, "doubled": 2}
    assert report.summary() == numbers | counts


def test_two_copies_differ_by_fields():
    violations = Violations()

    check_equal(
        "s1", {"state": "active", "n": 1}, {"n": 1, "state": "active"}, violations
    )
    assert violations.clean

    check_equal("s1", {"state": "active", "n": 1}, {"n": 2, "state": None}, violations)
    assert dict(violations.counts) == {"unequal": 2}
    assert violations.first[0].detail == "n is 2, expected 1"
