"""
The checks of one session: each kind of violation is planted and found, and an
unanswered write is none.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.compose.verify.expectation import ClientMarks, SessionExpectation
from everbus.compose.verify.sequences import MarkSequence, Numbering
from everbus.compose.verify.session_checks import (
    LogCheck,
    ObservedSession,
    check_length,
    check_log_end,
    check_state,
)
from everbus.compose.verify.violations import Violations

# Created, and all clients added.
VERSION = 2


def an_expectation(*, appends=0, updates=0, clients=1, exact=False):
    """
    So many acknowledged appends and updates of each client to one session.
    """
    made, version = SessionExpectation("s1", VERSION, exact=exact), VERSION
    for client in range(clients):
        for _ in range(appends):
            marks = made.appends_of(client)
            n = marks.give()
            marks.acknowledge(n, n)
        for _ in range(updates):
            marks, version = made.updates_of(client), version + 1
            marks.acknowledge(marks.give(), version)
            made.answer(version)
    return made


def unanswered(marks):
    return marks.give()


def refused(marks):
    n = marks.give()
    marks.refuse(n)
    return n


def timeline(expectation, *marks):
    """
    The violations of a timeline of these marks.
    """
    return _in_log(expectation, "append", enumerate(marks, 1))


def changes(expectation, *marks):
    """
    The violations of updates with these marks.
    """
    return _in_log(expectation, "update", enumerate(marks, VERSION + 1))


def _in_log(expectation, call, numbered):
    violations = Violations()
    check = LogCheck(expectation, violations, call)
    for number, mark in numbered:
        check.see(number, mark)
    check.end()
    return dict(violations.counts)


def state(expectation, version, *, last=None, known=False):
    """
    The violations of a session at *version* with the last marks *last*.
    """
    violations = Violations()
    observed = ObservedSession(version, 0, last or {})
    check_state(expectation, observed, violations, log_checked=known)
    return dict(violations.counts)


def length(expectation, last_seq):
    violations = Violations()
    check_length(expectation, ObservedSession(VERSION, last_seq, {}), violations)
    return dict(violations.counts)


@pytest.mark.parametrize("check", [timeline, changes])
@pytest.mark.parametrize(
    ("marks", "found"),
    [
        (((0, 1), (0, 2), (0, 3)), {}),
        (((0, 1), (0, 3)), {"lost": 1}),
        (((0, 1), (0, 2)), {"lost": 1}),
        ((), {"lost": 3}),
        (((0, 1), (0, 2), (0, 2), (0, 3)), {"doubled": 1}),
        (((0, 1), (0, 2), (0, 3), (0, 1)), {"doubled": 1}),
        (((0, 1), (0, 3), (0, 2)), {"out_of_order": 1}),
        (((0, 2), (0, 3), (0, 1)), {"out_of_order": 1}),
        (((0, 1), (0, 2), (0, 3), (0, 4)), {"foreign": 1}),
        (((0, 1), (0, 2), (0, 3), (7, 1)), {"foreign": 1}),
        (((0, 1), (0, 2), (0, 3), (0, 0)), {"foreign": 1}),
    ],
)
def test_marks_have_to_be_there_once_and_in_order(check, marks, found):
    """
    A lost mark, a doubled, a swapped and a foreign one are told from each other.
    """
    assert check(an_expectation(appends=3, updates=3), *marks) == found


@pytest.mark.parametrize("check", [timeline, changes])
def test_the_marks_of_two_clients_may_interleave(check):
    expectation = an_expectation(appends=2, updates=2, clients=2)

    assert check(expectation, (1, 1), (0, 1), (0, 2), (1, 2)) == {}


@pytest.mark.parametrize("there", [True, False])
def test_an_unanswered_append_may_be_there_once(there):
    expectation = an_expectation(appends=2)
    mark = (0, unanswered(expectation.appends_of(0)))

    assert timeline(expectation, (0, 1), (0, 2), *[mark] * there) == {}
    assert timeline(expectation, (0, 1), (0, 2), mark, mark) == {"doubled": 1}


def test_a_refused_append_must_not_be_there():
    expectation = an_expectation(appends=2)
    mark = (0, refused(expectation.appends_of(0)))

    assert timeline(expectation, (0, 1), (0, 2)) == {}
    assert timeline(expectation, (0, 1), (0, 2), mark) == {"applied_though_refused": 1}


@pytest.mark.parametrize(
    ("seqs", "found"),
    [
        ((1, 2, 3), {}),
        ((1, 2, 4), {"gap": 1}),
        ((1, 2, 2), {"forked": 1}),
        ((1, 3, 2), {"gap": 1, "out_of_order": 1}),
        ((2, 3, 4), {"gap": 1}),
        ((1, 2, 1), {"forked": 1}),
    ],
)
def test_seqs_follow_each_other_even_if_all_marks_are_there(seqs, found):
    expectation = an_expectation(appends=3)
    marks = [(0, 1), (0, 2), (0, 3)]

    assert _in_log(expectation, "append", zip(seqs, marks, strict=True)) == found


def test_a_gap_can_be_filled_once():
    numbering = Numbering()

    kinds = [numbering.see(n) for n in (1, 5, 3, 3, 2, 4, 4, 6)]

    late = "out_of_order"
    assert kinds == [None, "gap", late, "forked", late, late, "forked", None]


def test_an_update_that_stands_at_another_version_than_its_answer_is_a_fork():
    expectation = an_expectation(updates=2, clients=2, exact=True)

    assert changes(expectation, (0, 1), (0, 2), (1, 1), (1, 2)) == {}
    assert changes(expectation, (0, 1), (1, 1), (0, 2), (1, 2)) == {"forked": 2}


def test_an_entry_that_stands_at_another_seq_than_its_answer_is_a_fork():
    expectation = an_expectation(appends=1, clients=2, exact=True)

    assert timeline(expectation, (0, 1), (1, 1)) == {"forked": 1}


def test_an_answer_without_a_number_fits_any_place():
    expectation = SessionExpectation("s1", VERSION, exact=True)
    marks = expectation.updates_of(0)
    marks.acknowledge(marks.give())

    assert changes(expectation, (0, 1)) == {}


def test_an_entry_without_a_mark_is_foreign():
    assert timeline(an_expectation(), None) == {"foreign": 1}


def test_a_violation_names_session_number_and_command():
    expectation, violations = an_expectation(appends=1), Violations()
    check = LogCheck(expectation, violations, "append")

    check.see(1, (0, 1), "i.0.7")
    check.see(2, (0, 1), "i.0.8")

    [found] = violations.first
    assert (found.kind, found.session) == ("doubled", "s1")
    assert (found.number, found.command_id) == (2, "i.0.8")


def test_a_state_that_is_not_where_its_logs_end_is_unequal():
    expectation, violations = an_expectation(appends=1, updates=1), Violations()
    logs = [LogCheck(expectation, violations, call) for call in ("update", "append")]
    logs[0].see(VERSION + 1, (0, 1))
    logs[1].see(1, (0, 1))

    check_log_end(
        expectation, ObservedSession(VERSION + 1, 1, {}), tuple(logs), violations
    )
    assert violations.clean

    check_log_end(
        expectation, ObservedSession(VERSION + 2, 1, {}), tuple(logs), violations
    )
    assert dict(violations.counts) == {"unequal": 1}


@pytest.mark.parametrize(
    ("version", "found"),
    [(5, {}), (4, {"lost": 1}), (2, {"lost": 3}), (6, {"doubled": 1})],
)
def test_versions_count_the_updates(version, found):
    assert state(an_expectation(updates=3), version, last={0: 3}) == found


def test_an_unanswered_update_may_have_moved_the_version():
    expectation = an_expectation(updates=3)
    n = unanswered(expectation.updates_of(0))

    assert state(expectation, 5, last={0: 3}) == {}
    assert state(expectation, 6, last={0: n}) == {}
    assert state(expectation, 7, last={0: n}) == {"doubled": 1}


@pytest.mark.parametrize(
    ("last", "found"),
    [
        ({0: 3}, {}),
        ({0: 2}, {"out_of_order": 1}),
        ({}, {"lost": 1}),
        ({0: 4}, {"foreign": 1}),
        ({0: "x"}, {"foreign": 1}),
    ],
)
def test_the_state_shows_the_last_update_of_a_client(last, found):
    assert state(an_expectation(updates=3), 5, last=last) == found


def test_a_refused_update_that_shows_was_applied():
    expectation = an_expectation(updates=2)
    n = refused(expectation.updates_of(0))

    assert state(expectation, 4, last={0: n}) == {"applied_though_refused": 1}


def test_an_answered_version_above_the_last_is_lost():
    assert state(an_expectation(updates=3), 4, known=True) == {"lost": 1}


def test_two_updates_are_not_answered_the_same_version():
    expectation = an_expectation(updates=1)

    assert expectation.answer(VERSION + 1) is False
    assert expectation.answer(VERSION + 2) is True


def test_a_refusal_is_true_if_an_update_made_the_next_version():
    expectation = an_expectation(updates=2)
    refused(expectation.updates_of(0))

    expectation.refuse_expecting(VERSION + 1)

    assert state(expectation, VERSION + 2, last={0: 2}) == {}


def test_a_refusal_is_false_if_no_update_made_the_next_version():
    """
    A replica that has lost an update, or applied this one twice, refuses so.
    """
    expectation = an_expectation(updates=2)
    refused(expectation.updates_of(0))

    expectation.refuse_expecting(VERSION + 2)

    assert state(expectation, VERSION + 2, last={0: 2}) == {"false_refusal": 1}


def test_an_unanswered_update_may_have_made_the_next_version():
    expectation = an_expectation(updates=2)
    n = unanswered(expectation.updates_of(0))
    expectation.refuse_expecting(VERSION + 2)

    assert state(expectation, VERSION + 3, last={0: n}) == {}

    expectation.refuse_expecting(VERSION + 3)
    assert state(expectation, VERSION + 3, last={0: n}) == {"false_refusal": 1}


@pytest.mark.parametrize(
    ("last_seq", "found"),
    [(3, {}), (4, {}), (2, {"lost": 1}), (5, {"doubled": 1})],
)
def test_a_timeline_that_cannot_be_read_is_judged_by_its_length(last_seq, found):
    expectation = an_expectation(appends=3)
    unanswered(expectation.appends_of(0))

    assert length(expectation, last_seq) == found


def test_an_answered_seq_is_there():
    expectation = an_expectation(appends=1)
    expectation.highest_seq = 3

    assert length(expectation, 1) == {"lost": 2}


ways = st.sampled_from(["acknowledged", "refused", "doubtful"])


@given(st.lists(ways, max_size=40), st.data())
def test_a_sequence_finds_what_a_plain_comparison_finds(fates, data):
    """
    Lost are the acknowledged marks that are absent, and no others.
    """
    marks = ClientMarks()
    for fate in fates:
        n = marks.give()
        if fate == "acknowledged":
            marks.acknowledge(n)
        if fate == "refused":
            marks.refuse(n)
    sequence = MarkSequence(marks)
    numbers = st.integers(1, max(len(fates), 1))
    came = data.draw(st.lists(numbers, max_size=60)) if fates else []

    whats = [sequence.see(n) for n in came]

    acknowledged = {n for n, fate in enumerate(fates, 1) if fate == "acknowledged"}
    assert sequence.lost() == sorted(acknowledged - set(came))
    assert whats.count("doubled") == len(came) - len(set(came))
    assert marks.acknowledged == len(acknowledged)
    assert marks.highest_acknowledged() == max(acknowledged, default=0)


def test_an_acknowledged_write_takes_no_memory():
    expectation = an_expectation(appends=1000, updates=1000)

    assert not expectation.appends_of(0).doubtful
    assert not expectation.updates_of(0).refused
    assert len(expectation._versions) == 1001


def test_what_a_level_may_lose_is_counted_and_no_violation():
    expected, violations = an_expectation(appends=3, clients=2), Violations()
    check = LogCheck(expected, violations, "append")
    check.see(1, (0, 1))
    check.see(2, (1, 1))

    assert check.end(excused={0}) == {0: 2}
    assert violations.counts == {"lost": 2}


def test_what_is_sent_again_may_be_late_where_the_bus_forgot_it():
    expected, violations = an_expectation(appends=3, clients=2), Violations()
    check = LogCheck(expected, violations, "append", may_be_late={0})
    for seq, mark in enumerate([(0, 3), (0, 1), (1, 2), (1, 1)], 1):
        check.see(seq, mark)

    assert check.late == 1
    assert violations.counts == {"out_of_order": 1}
