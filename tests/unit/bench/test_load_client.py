"""
A client of the bench records each answer in its expectation.
"""

from types import SimpleNamespace

import pytest

from everbus.bus.errors import (
    Defect,
    EverbusError,
    Expired,
    Overloaded,
    ReplyTimeout,
    Unavailable,
    VersionConflict,
)
from everbus.compose.bench import load_client as client_module
from everbus.compose.bench.load_client import LoadClient
from everbus.compose.bench.plan import CALLS, UNANSWERED, BenchPlan
from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.verify.violations import Violations

WRITES = [call for call in CALLS if call not in ("get_session", "timeline")]


class FakeMad:
    """
    Answers as its attributes say; without them, it answers well.
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


def a_client(mad, *, expect=False):
    violations = Violations()
    plan = BenchPlan(mix={"append": 1}, expect=expect)
    return LoadClient(mad, 0, plan, violations), SessionExpectation("s1", 2), violations


def marks_of(expectation, call):
    return expectation.updates_of(0) if "update" in call else expectation.appends_of(0)


@pytest.mark.parametrize("call", WRITES)
async def test_an_acknowledged_write_must_be_there(call):
    client, expectation, violations = a_client(FakeMad())

    await client.call(call, expectation)

    assert marks_of(expectation, call).acknowledged == 1
    assert violations.clean
    assert (expectation.unsettled == {0}) is (call in UNANSWERED)


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize(
    "error", [Overloaded("full"), Expired("late"), Unavailable("not sent")]
)
async def test_a_refused_write_must_not_be_there(call, error):
    mad = FakeMad()
    client, expectation, _ = a_client(mad)
    mad.error = error

    with pytest.raises(EverbusError):
        await client.call(call, expectation)

    assert marks_of(expectation, call).refused == {1}
    assert marks_of(expectation, call).acknowledged == 0


@pytest.mark.parametrize("call", ["update_session", "append_and_wait"])
@pytest.mark.parametrize(
    "error",
    [
        ReplyTimeout("no reply", command_id="i"),
        Defect("the client broke"),
        Unavailable("too few replicas", applied=True),
    ],
)
async def test_an_unanswered_write_may_be_there(call, error):
    mad = FakeMad()
    client, expectation, _ = a_client(mad)
    mad.error = error

    with pytest.raises(EverbusError):
        await client.call(call, expectation)

    assert marks_of(expectation, call).doubtful == {1}
    assert expectation.open_clients() == {0}


@pytest.mark.parametrize("call", sorted(UNANSWERED))
async def test_a_write_that_is_not_on_the_bus_in_time_is_doubtful(call):
    mad = FakeMad()
    client, expectation, _ = a_client(mad)
    mad.flush_error = Unavailable("away")

    with pytest.raises(Unavailable):
        await client.call(call, expectation)

    assert marks_of(expectation, call).doubtful == {1}


async def test_two_updates_that_are_answered_one_version_are_a_fork():
    client, expectation, violations = a_client(FakeMad(version=3))

    await client.call("update_session", expectation)
    await client.call("update_session", expectation)

    assert dict(violations.counts) == {"forked": 1}


async def test_an_answer_that_shows_another_update_is_out_of_order():
    mad = FakeMad()
    client, expectation, violations = a_client(mad)
    mad.shown = {"bench0": 7}

    await client.call("update_session", expectation)

    assert dict(violations.counts) == {"out_of_order": 1}


@pytest.mark.parametrize(
    ("current", "found"), [(2, {"false_refusal": 1}), (1, {"false_refusal": 1})]
)
async def test_a_conflict_on_the_current_version_is_false(current, found):
    mad = FakeMad()
    client, expectation, violations = a_client(mad, expect=True)
    mad.error = VersionConflict("no", current_version=current)

    with pytest.raises(VersionConflict):
        await client.call("update_session", expectation)

    assert mad.expected == [2]
    assert dict(violations.counts) == found


async def test_a_conflict_with_a_newer_version_is_checked_at_the_end():
    mad = FakeMad()
    client, expectation, violations = a_client(mad, expect=True)
    mad.error = VersionConflict("no", current_version=5)

    with pytest.raises(VersionConflict):
        await client.call("update_session", expectation)

    assert violations.clean
    assert list(expectation.unexplained_refusals()) == [2]
    # From now on that one is expected.
    assert expectation.highest == 5


async def test_a_conflict_without_an_expected_version_is_false():
    mad = FakeMad()
    client, expectation, violations = a_client(mad)
    mad.error = VersionConflict("no", current_version=5)

    with pytest.raises(VersionConflict):
        await client.call("update_session", expectation)

    assert mad.expected == [None]
    assert dict(violations.counts) == {"false_refusal": 1}


@pytest.mark.parametrize("call", ["get_session", "timeline"])
async def test_a_read_without_an_answered_write_is_stale(call):
    mad = FakeMad(version=3, seq=4)
    client, expectation, violations = a_client(mad)
    expectation.highest_seq = 4

    await client.call(call, expectation)
    assert violations.clean

    expectation.highest_seq = 5
    await client.call(call, expectation)
    assert dict(violations.counts) == {"stale": 1}


async def test_a_mad_does_not_run_far_ahead_of_the_managers(monkeypatch):
    monkeypatch.setattr(client_module, "AHEAD", 3)
    mad = FakeMad()
    client, expectation, _ = a_client(mad)

    for _ in range(7):
        await client.catch_up(expectation)

    assert mad.asked == 2
