"""
What a MAD of the bench notes of each answer, by which everything is judged.
"""

from types import SimpleNamespace

import pytest

from bus.errors import (
    Defect,
    EverbusError,
    Expired,
    Overloaded,
    ReplyTimeout,
    Unavailable,
    VersionConflict,
)
from compose.bench import caller as caller_module
from compose.bench.books import SessionBook
from compose.bench.caller import Caller
from compose.bench.plan import CALLS, UNANSWERED, Plan
from compose.bench.verdict import Findings

WRITES = [call for call in CALLS if call not in ("get_session", "timeline")]


class FakeMad:
    """
    Answers as it is told to; what it does not know, it answers well.
    """

    def __init__(self, version=3, seq=1):
        self.version, self.seq = version, seq
        self.error = self.flush_error = None
        self.shown = None
        self.expected = []
        self.asked = 0

    async def update_session(self, session_id, patch, *, expected_version, **_):
        self.expected.append(expected_version)
        return self._answer(self.shown or patch["context_summary"])

    async def append_and_wait(self, session_id, entry, **_):
        self._answer()
        return self.seq

    async def get_session(self, session_id, **_):
        self.asked += 1
        return self._answer()

    async def timeline(self, session_id, **_):
        self._answer()
        entries = [SimpleNamespace(seq=seq) for seq in range(1, self.seq + 1)]
        return SimpleNamespace(entries=entries)

    def append(self, session_id, entry, **_):
        self._answer()
        return "id"

    def update_later(self, session_id, patch, **_):
        self._answer()
        return "id"

    async def flush(self, **_):
        if self.flush_error:
            raise self.flush_error

    def _answer(self, summary=None):
        if self.error:
            raise self.error
        return SimpleNamespace(
            version=self.version, last_seq=self.seq, context_summary=summary or {}
        )


def a_caller(mad, *, expect=False):
    findings = Findings()
    plan = Plan(mix={"append": 1}, expect=expect)
    return Caller(mad, 0, plan, findings), SessionBook("s1", 2), findings


def marks_of(book, call):
    return book.updates_of(0) if "update" in call else book.appends_of(0)


@pytest.mark.parametrize("call", WRITES)
async def test_what_is_acknowledged_has_to_be_there(call):
    caller, book, findings = a_caller(FakeMad())

    await caller.call(call, book)

    assert marks_of(book, call).kept == 1
    assert findings.clean
    assert (book.unsettled == {0}) is (call in UNANSWERED)


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize(
    "error", [Overloaded("full"), Expired("late"), Unavailable("not sent")]
)
async def test_what_is_refused_must_not_be_there(call, error):
    mad = FakeMad()
    caller, book, _ = a_caller(mad)
    mad.error = error

    with pytest.raises(EverbusError):
        await caller.call(call, book)

    assert marks_of(book, call).refused == {1}
    assert marks_of(book, call).kept == 0


@pytest.mark.parametrize("call", ["update_session", "append_and_wait"])
@pytest.mark.parametrize(
    "error",
    [
        ReplyTimeout("no reply", command_id="i"),
        Defect("the client broke"),
        Unavailable("too few replicas", applied=True),
    ],
)
async def test_without_an_answer_it_may_be_there_or_not(call, error):
    mad = FakeMad()
    caller, book, _ = a_caller(mad)
    mad.error = error

    with pytest.raises(EverbusError):
        await caller.call(call, book)

    assert marks_of(book, call).doubtful == {1}
    assert book.open_mads() == {0}


@pytest.mark.parametrize("call", sorted(UNANSWERED))
async def test_what_is_not_on_the_bus_in_time_is_in_doubt(call):
    mad = FakeMad()
    caller, book, _ = a_caller(mad)
    mad.flush_error = Unavailable("away")

    with pytest.raises(Unavailable):
        await caller.call(call, book)

    assert marks_of(book, call).doubtful == {1}


async def test_two_updates_that_are_told_one_version_are_a_loss():
    caller, book, findings = a_caller(FakeMad(version=3))

    await caller.call("update_session", book)
    await caller.call("update_session", book)

    assert dict(findings.counts) == {"lost": 1}


async def test_an_answer_that_shows_another_update_is_out_of_order():
    mad = FakeMad()
    caller, book, findings = a_caller(mad)
    mad.shown = {"bench0": 7}

    await caller.call("update_session", book)

    assert dict(findings.counts) == {"out_of_order": 1}


@pytest.mark.parametrize(
    ("current", "found"), [(2, {"false_conflicts": 1}), (1, {"false_conflicts": 1})]
)
async def test_a_conflict_on_the_current_version_is_false(current, found):
    mad = FakeMad()
    caller, book, findings = a_caller(mad, expect=True)
    mad.error = VersionConflict("no", current_version=current)

    with pytest.raises(VersionConflict):
        await caller.call("update_session", book)

    assert mad.expected == [2]
    assert dict(findings.counts) == found


async def test_a_conflict_with_a_newer_version_is_judged_when_all_is_known():
    mad = FakeMad()
    caller, book, findings = a_caller(mad, expect=True)
    mad.error = VersionConflict("no", current_version=5)

    with pytest.raises(VersionConflict):
        await caller.call("update_session", book)

    assert findings.clean
    assert list(book.unexplained()) == [2]
    # From now on that one is expected.
    assert book.highest == 5


async def test_a_conflict_that_nobody_asked_for_is_false():
    mad = FakeMad()
    caller, book, findings = a_caller(mad)
    mad.error = VersionConflict("no", current_version=5)

    with pytest.raises(VersionConflict):
        await caller.call("update_session", book)

    assert mad.expected == [None]
    assert dict(findings.counts) == {"false_conflicts": 1}


@pytest.mark.parametrize("call", ["get_session", "timeline"])
async def test_a_read_that_does_not_show_what_was_told_is_stale(call):
    mad = FakeMad(version=3, seq=4)
    caller, book, findings = a_caller(mad)
    book.highest_seq = 4

    await caller.call(call, book)
    assert findings.clean

    book.highest_seq = 5
    await caller.call(call, book)
    assert dict(findings.counts) == {"stale": 1}


async def test_a_mad_does_not_run_far_ahead_of_the_managers(monkeypatch):
    monkeypatch.setattr(caller_module, "AHEAD", 3)
    mad = FakeMad()
    caller, book, _ = a_caller(mad)

    for _ in range(7):
        await caller.catch_up(book)

    assert mad.asked == 2
