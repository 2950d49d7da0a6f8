"""
The judge of `everbus bench`: each thing that can be wrong turns the verdict red, and
what nobody was answered does not.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose.bench.books import Marks, SessionBook
from compose.bench.judge import (
    ChangesJudge,
    Present,
    Sequence,
    TimelineJudge,
    judge_length,
    judge_state,
)
from compose.bench.verdict import TOLD, Findings

# Made, and everybody let in.
VERSION = 2


def a_book(*, appends=0, updates=0, mads=1):
    """
    A session's book with so many acknowledged appends and updates of each MAD.
    """
    book, version = SessionBook("s1", VERSION), VERSION
    for mad in range(mads):
        for _ in range(appends):
            marks = book.appends_of(mad)
            marks.keep(marks.give())
        for _ in range(updates):
            marks, version = book.updates_of(mad), version + 1
            marks.keep(marks.give())
            book.tell(version)
    return book


def unanswered(marks):
    return marks.give()


def refused(marks):
    n = marks.give()
    marks.refuse(n)
    return n


def timeline(book, *marks):
    """
    What is found in a timeline of these marks.
    """
    findings = Findings()
    judge = TimelineJudge(book, findings)
    for seq, mark in enumerate(marks, 1):
        judge.see(seq, {"bench": list(mark), "text": ""})
    judge.end()
    return dict(findings.counts)


def changes(book, *marks):
    """
    What is found in updates of these marks.
    """
    findings = Findings()
    judge = ChangesJudge(book, findings)
    for version, (mad, n) in enumerate(marks, VERSION + 1):
        judge.see(version, {f"bench{mad}": n})
    judge.end()
    return dict(findings.counts)


def state(book, version, *, last=None, known=False):
    """
    What is found in a session at *version* with the last marks *last*.
    """
    findings = Findings()
    summary = {f"bench{mad}": n for mad, n in (last or {}).items()}
    present = Present(version, 0, summary)
    judge_state(book, present, findings, changes_known=known)
    return dict(findings.counts)


def length(book, last_seq):
    findings = Findings()
    judge_length(book, Present(VERSION, last_seq, {}), findings)
    return dict(findings.counts)


@pytest.mark.parametrize("judged", [timeline, changes])
@pytest.mark.parametrize(
    ("marks", "found"),
    [
        (((0, 1), (0, 2), (0, 3)), {}),
        (((0, 1), (0, 3)), {"lost": 1}),
        (((0, 1), (0, 2)), {"lost": 1}),
        ((), {"lost": 3}),
        (((0, 1), (0, 2), (0, 2), (0, 3)), {"duplicated": 1}),
        (((0, 1), (0, 2), (0, 3), (0, 1)), {"duplicated": 1}),
        (((0, 1), (0, 3), (0, 2)), {"out_of_order": 1}),
        (((0, 2), (0, 3), (0, 1)), {"out_of_order": 1}),
        (((0, 1), (0, 2), (0, 3), (0, 4)), {"strange": 1}),
        (((0, 1), (0, 2), (0, 3), (7, 1)), {"strange": 1}),
        (((0, 1), (0, 2), (0, 3), (0, 0)), {"strange": 1}),
    ],
)
def test_marks_have_to_be_there_once_and_in_order(judged, marks, found):
    """
    A lost mark, a duplicate, a swap and a stranger are each told from the others.
    """
    assert judged(a_book(appends=3, updates=3), *marks) == found


@pytest.mark.parametrize("judged", [timeline, changes])
def test_two_mads_may_mix_as_they_like(judged):
    book = a_book(appends=2, updates=2, mads=2)

    assert judged(book, (1, 1), (0, 1), (0, 2), (1, 2)) == {}


@pytest.mark.parametrize("there", [True, False])
def test_what_was_never_answered_may_be_there_once(there):
    book = a_book(appends=2)
    mark = (0, unanswered(book.appends_of(0)))

    assert timeline(book, (0, 1), (0, 2), *[mark] * there) == {}
    assert timeline(book, (0, 1), (0, 2), mark, mark) == {"duplicated": 1}


def test_what_was_refused_must_not_be_there():
    book = a_book(appends=2)
    mark = (0, refused(book.appends_of(0)))

    assert timeline(book, (0, 1), (0, 2)) == {}
    assert timeline(book, (0, 1), (0, 2), mark) == {"undone": 1}


def test_a_hole_in_the_numbers_is_found_though_all_marks_are_there():
    book, findings = a_book(appends=2), Findings()
    judge = TimelineJudge(book, findings)

    judge.see(1, {"bench": [0, 1]})
    judge.see(3, {"bench": [0, 2]})
    judge.end()

    assert dict(findings.counts) == {"strange": 1}


@pytest.mark.parametrize(
    "entry", [None, "x", {}, {"bench": 1}, {"bench": [1]}, {"bench": ["a", 1]}]
)
def test_what_others_say_in_the_session_is_strange(entry):
    book, findings = a_book(appends=0), Findings()

    TimelineJudge(book, findings).see(1, entry)

    assert dict(findings.counts) == {"strange": 1}


@pytest.mark.parametrize(
    ("version", "found"),
    [(5, {}), (4, {"lost": 1}), (2, {"lost": 3}), (6, {"duplicated": 1})],
)
def test_versions_count_the_updates(version, found):
    assert state(a_book(updates=3), version, last={0: 3}) == found


def test_an_update_that_nobody_answered_may_have_moved_the_version():
    book = a_book(updates=3)
    n = unanswered(book.updates_of(0))

    assert state(book, 5, last={0: 3}) == {}
    assert state(book, 6, last={0: n}) == {}
    assert state(book, 7, last={0: n}) == {"duplicated": 1}


@pytest.mark.parametrize(
    ("last", "found"),
    [
        ({0: 3}, {}),
        ({0: 2}, {"out_of_order": 1}),
        ({}, {"lost": 1}),
        ({0: 4}, {"strange": 1}),
        ({0: "x"}, {"strange": 1}),
    ],
)
def test_the_last_update_of_a_mad_is_the_one_that_shows(last, found):
    assert state(a_book(updates=3), 5, last=last) == found


def test_a_refused_update_that_shows_was_not_undone():
    book = a_book(updates=2)
    n = refused(book.updates_of(0))

    assert state(book, 4, last={0: n}) == {"undone": 1}


def test_a_version_that_was_told_and_is_above_the_last_is_lost():
    assert state(a_book(updates=3), 4, known=True) == {"lost": 1}


def test_two_updates_are_not_told_the_same_version():
    book = a_book(updates=1)

    assert book.tell(VERSION + 1) is False
    assert book.tell(VERSION + 2) is True


def test_a_conflict_is_true_if_somebody_was_told_the_next_version():
    book = a_book(updates=2)
    refused(book.updates_of(0))

    book.expect(VERSION + 1)

    assert state(book, VERSION + 2, last={0: 2}) == {}


def test_a_conflict_is_false_if_nobody_made_the_next_version():
    """
    A replica that had lost an update, or had applied this one twice, would say so.
    """
    book = a_book(updates=2)
    refused(book.updates_of(0))

    book.expect(VERSION + 2)

    assert state(book, VERSION + 2, last={0: 2}) == {"false_conflicts": 1}


def test_whom_nobody_answered_may_have_made_the_next_version():
    book = a_book(updates=2)
    n = unanswered(book.updates_of(0))
    book.expect(VERSION + 2)

    assert state(book, VERSION + 3, last={0: n}) == {}

    book.expect(VERSION + 3)
    assert state(book, VERSION + 3, last={0: n}) == {"false_conflicts": 1}


@pytest.mark.parametrize(
    ("last_seq", "found"),
    [(3, {}), (4, {}), (2, {"lost": 1}), (5, {"duplicated": 1})],
)
def test_a_timeline_that_cannot_be_read_is_judged_by_its_length(last_seq, found):
    book = a_book(appends=3)
    unanswered(book.appends_of(0))

    assert length(book, last_seq) == found


def test_a_seq_that_was_told_is_there():
    book = a_book(appends=1)
    book.highest_seq = 3

    assert length(book, 1) == {"lost": 2}


def test_the_verdict_names_the_first_few_and_counts_all():
    findings = Findings()

    assert findings.line() == "verdict: clean"
    for n in range(7):
        findings.note("lost", "s1", f"append {n}")
    findings.note("false_conflicts", "s2", "x", 2)

    assert findings.line() == "verdict: NOT clean: 7 lost, 2 false conflicts"
    assert not findings.clean
    assert [one.what for one in findings.first] == ["lost"] * TOLD + ["false_conflicts"]
    assert str(findings.first[0]) == "lost: session s1: append 0"


def test_findings_of_a_whole_timeline_are_taken_over_together():
    part, all_of_it = Findings(), Findings()
    for n in range(7):
        part.note("lost", "s1", f"append {n}")

    all_of_it.note("lost", "s0", "append 1")
    all_of_it.add(part)

    assert all_of_it.counts == {"lost": 8}
    assert len(all_of_it.first) == TOLD


ways = st.sampled_from(["kept", "refused", "doubtful"])


@given(st.lists(ways, max_size=40), st.data())
def test_a_sequence_finds_what_a_plain_comparison_finds(fates, data):
    """
    Whatever comes, lost is what was kept and is absent; nothing else is.
    """
    marks = Marks()
    for fate in fates:
        n = marks.give()
        if fate == "kept":
            marks.keep(n)
        if fate == "refused":
            marks.refuse(n)
    sequence = Sequence(marks)
    numbers = st.integers(1, max(len(fates), 1))
    came = data.draw(st.lists(numbers, max_size=60)) if fates else []

    whats = [sequence.see(n) for n in came]

    kept = {n for n, fate in enumerate(fates, 1) if fate == "kept"}
    assert sequence.lost() == sorted(kept - set(came))
    assert whats.count("duplicated") == len(came) - len(set(came))
    assert marks.kept == len(kept)
    assert marks.highest_kept() == max(kept, default=0)


def test_what_was_acknowledged_takes_no_memory():
    book = a_book(appends=1000, updates=1000)

    assert not book.appends_of(0).doubtful
    assert not book.updates_of(0).refused
    assert len(book._versions) == 1001
