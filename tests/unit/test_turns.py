"""
Turns: entries and a patch of one session, all of it or nothing.
"""

import copy
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.errors import Forbidden, Invalid, Rejection, TooLarge, VersionConflict
from everbus.bus.messages import CommittedTurn, Session, TimelineEntry, pack
from everbus.handlers.fetch_requests import FullContext
from everbus.handlers.history import state_of
from everbus.handlers.outcomes import Event
from everbus.handlers.patches import CONTEXT_BYTES, HOT_BYTES, RECENT_ENTRIES, merge
from everbus.handlers.routes import routes_with
from everbus.handlers.turns import MAX_ENTRIES
from tests.builders import NOW, a_session
from tests.unit.commands import (
    LATER,
    a_talk,
    after,
    append,
    handle,
    hot_bytes,
    seqs,
    turn,
    update,
)

TAGS = {"tags": ["sea"]}


def entries_in(encoded: tuple[bytes, ...]) -> list[TimelineEntry]:
    return [msgspec.msgpack.decode(one, type=TimelineEntry) for one in encoded]


def test_a_turn_is_one_step_of_the_version_with_all_its_entries():
    there = a_session(version=7, last_seq=4)

    outcome = handle(there, turn("a", {"n": 1}, patch=TAGS, id="i1.0.9", mad="bo"))

    assert entries_in(outcome.entries) == [
        TimelineEntry(5, LATER, "bo", "a", "i1.0.9"),
        TimelineEntry(6, LATER, "bo", {"n": 1}, "i1.0.9"),
    ]
    assert outcome.reply == CommittedTurn(turn="i1.0.9", version=8, seqs=(5, 6))
    assert outcome.session == a_session(
        version=8,
        last_seq=6,
        last_active=LATER,
        tags=("sea",),
        recent_timeline=outcome.entries,
    )


def test_the_events_of_a_turn_end_with_its_own():
    """
    Each moves one count by one, so that a subscriber sees what it misses.
    """
    there = a_session(version=7, last_seq=4, notices=2)

    events = handle(there, turn("a", "b", patch=TAGS, id="i1.0.9", mad="bo")).events

    who: dict[str, Any] = {"command_id": "i1.0.9", "mad": "bo", "principal": "ada"}
    said: dict[str, Any] = {"kind": "timeline.appended", "version": 7, "notices": 2}
    assert events == (
        Event(**said, **who, seq=5),
        Event(**said, **who, seq=6),
        Event(
            **who,
            kind="session.turned",
            version=8,
            seq=6,
            notices=2,
            at=LATER,
            patch=TAGS,
            turn="i1.0.9",
        ),
    )


@pytest.mark.parametrize("patch", [{}, {"tags": ["old"]}], ids=["none", "the same"])
def test_a_turn_without_a_change_of_the_state_is_a_version_too(patch):
    """
    Or two turns could expect the same version, and both be taken.
    """
    there = a_session(version=7, tags=("old",))

    outcome = handle(there, turn("a", patch=patch, expected_version=7))

    assert outcome.events[-1].patch == {}
    assert (outcome.events[-1].version, outcome.session.version) == (8, 8)
    assert outcome.session.tags == ("old",)


def test_a_turn_may_have_a_patch_alone():
    outcome = handle(a_session(version=7, last_seq=4), turn(patch=TAGS))

    assert [event.kind for event in outcome.events] == ["session.turned"]
    assert outcome.reply == CommittedTurn(turn="i1.0.1", version=8, seqs=())


def test_a_turn_of_nothing_is_refused():
    with pytest.raises(Invalid, match="without entries and patch") as refused:
        handle(a_session(), turn())

    assert refused.value.details == {"field": "entries"}


@pytest.mark.parametrize("patch", [{}, TAGS])
def test_a_turn_wakes_a_dormant_session_in_its_one_step(patch):
    there = a_session(version=7, state="dormant")

    outcome = handle(there, turn("a", patch=patch))

    assert (outcome.session.state, outcome.session.version) == ("active", 8)
    assert outcome.events[-1].patch == {**patch, "state": "active"}


def test_a_turn_may_carry_an_id_of_the_callers():
    outcome = handle(a_session(), turn("a", "b", turn="run-7"))

    assert {one.turn for one in entries_in(outcome.entries)} == {"run-7"}
    assert (outcome.reply.turn, outcome.events[-1].turn) == ("run-7", "run-7")


@pytest.mark.parametrize("name", ["a b", "x" * 81, "ä", ".a"])
def test_an_id_that_is_none_is_refused(name):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), turn("a", turn=name))

    assert refused.value.details == {"field": "turn"}


def test_an_entry_by_itself_is_of_no_turn_and_looks_as_before():
    [packed] = handle(a_session(), append("hi")).entries

    assert set(msgspec.msgpack.decode(packed)) == {"seq", "at", "author", "entry"}
    assert entries_in((packed,))[0].turn == ""


@pytest.mark.parametrize(
    "expected",
    [
        {"expected_version": 6},
        {"expected_last_seq": 3},
        {"expected_version": 7, "expected_last_seq": 5},
        {"expected_version": 8, "expected_last_seq": 4},
    ],
    ids=str,
)
def test_a_turn_that_expects_something_else_is_a_conflict(expected):
    there = a_session(version=7, last_seq=4)

    with pytest.raises(VersionConflict) as refused:
        handle(there, turn("a", patch=TAGS, **expected))

    assert refused.value.details == {"current_version": 7, "current_last_seq": 4}


def test_a_turn_that_expects_what_is_there_is_taken():
    there = a_session(version=7, last_seq=4)

    there = after(there, turn("a", "b", expected_version=7, expected_last_seq=4))

    assert (there.version, there.last_seq) == (8, 6)


def test_of_many_turns_that_expect_one_state_one_is_taken():
    there = a_session(version=7)
    there = after(there, turn("a", expected_version=7))

    with pytest.raises(VersionConflict):
        handle(there, turn("b", expected_version=7))


def test_who_may_append_and_not_share_patches_no_acl():
    patch = {"acl": ["eve"]}

    with pytest.raises(Forbidden):
        handle(a_session(), turn("a", patch=patch))
    assert after(a_session(), turn("a", patch=patch, may_share=True)).acl == ("eve",)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (turn("a", msgspec.Raw(pack({"$set": 1}))), "entries[1]"),
        (turn(msgspec.Raw(b"\xc1")), "entries[0]"),
        (turn("a", patch={"owner_id": "eve"}), "owner_id"),
        (turn("a", patch={"tags": "sea"}), "tags"),
    ],
    ids=["no JSON", "no msgpack", "protected", "wrong type"],
)
def test_one_bad_part_refuses_the_whole_turn(command, field):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), command)

    assert refused.value.details == {"field": field}


def test_a_patch_beyond_the_hot_tier_refuses_its_entries_as_well():
    patch = {"work_in_progress": {"a": "x" * HOT_BYTES}}

    with pytest.raises(TooLarge):
        handle(a_session(), turn("a", patch=patch))


def test_a_turn_has_so_many_entries_at_most():
    full = handle(a_session(), turn(*range(MAX_ENTRIES)))
    fewer = routes_with(None, turn_max_entries=2)["session.turn"].handler

    assert len(full.entries) == MAX_ENTRIES
    with pytest.raises(TooLarge, match="EVERBUS_TURN_MAX_ENTRIES") as refused:
        handle(a_session(), turn(*range(MAX_ENTRIES + 1)))
    assert refused.value.details == {
        "field": "entries",
        "size": MAX_ENTRIES + 1,
        "limit": MAX_ENTRIES,
    }
    assert fewer(a_session(), turn(1, 2), LATER).session.last_seq == 2
    with pytest.raises(TooLarge):
        fewer(a_session(), turn(1, 2, 3), LATER)


def test_the_tail_holds_the_newest_of_a_turn_beside_the_state():
    patch = {"work_in_progress": {"a": "x" * 44_000}}

    there = after(a_talk(3), turn(*("x" * 300 for _ in range(30)), patch=patch))

    kept = seqs(there.recent_timeline)
    assert kept == list(range(34 - len(kept), 34))
    assert 1 <= len(kept) < RECENT_ENTRIES
    assert hot_bytes(there) <= HOT_BYTES


def test_the_full_context_is_fetched_when_its_size_may_be_too_much():
    there = a_session(version=7, context_bytes=CONTEXT_BYTES)
    patch = {"full_context": {"a": 1}}

    asked = handle(there, turn("x", patch=patch))
    taken = handle(there, turn("x", patch=patch, fetched={"b": 2}))

    assert asked.fetch == FullContext(version=7)
    assert (asked.session, asked.entries, asked.events) == (there, (), ())
    assert taken.events[-1].patch == patch
    assert taken.session.context_bytes < 100


def test_time_does_not_go_back_in_a_turn():
    outcome = handle(a_session(last_active=LATER), turn("a", "b", patch=TAGS), NOW)

    assert {one.at for one in entries_in(outcome.entries)} == {LATER}
    assert (outcome.session.last_active, outcome.events[-1].at) == (LATER, LATER)


texts = st.sampled_from([0, 3, 900, 30_000]).map("x".__mul__)
some = st.lists(texts | st.integers(0, 9) | st.just({"$bad": 1}), max_size=4)
patches = st.fixed_dictionaries(
    {},
    optional={
        "tags": st.lists(st.sampled_from(["a", "b"]), max_size=2) | st.just("none"),
        "fields": st.dictionaries(st.sampled_from("ab"), texts, max_size=2),
        "acl": st.just(["bo"]),
    },
)
lags = st.sampled_from([None, None, 0, 0, 1])
shares = st.booleans()
before_it = st.builds(
    a_session,
    version=st.integers(1, 3),
    last_seq=st.integers(0, 3),
    state=st.sampled_from(["active", "dormant"]),
    last_active=st.sampled_from([NOW, NOW + timedelta(days=1)]),
)


@given(before_it, some, patches, lags, lags, shares)
def test_a_turn_is_all_or_nothing(there: Session, said, patch, version, seq, share):
    """
    It is taken exactly when each of its parts would be by itself, and then has the
    effect of all of them, in one version.
    """
    expected: dict[str, Any] = {
        "expected_version": None if version is None else there.version + version,
        "expected_last_seq": None if seq is None else there.last_seq + seq,
    }
    frozen = copy.deepcopy(there)
    try:
        outcome = handle(there, turn(*said, patch=patch, may_share=share, **expected))
    except Rejection:
        outcome = None
    sound = bool(said or patch) and all(taken(there, append(one)) for one in said)
    sound = sound and (not patch or taken(there, update(patch, may_share=share)))
    sound = sound and 1 not in (version, seq)

    assert there == frozen
    assert (outcome is not None) == sound
    if outcome is None:
        return
    assert outcome.session.version == there.version + 1
    assert outcome.session.last_seq == there.last_seq + len(said)
    assert [one.entry for one in entries_in(outcome.entries)] == said
    [*appends, end] = outcome.events
    assert merge(state_of(there), end.patch) == state_of(outcome.session)
    assert [event.seq for event in appends] == list(outcome.reply.seqs)
    assert {one.version for one in appends} <= {there.version}
    if patch:
        alone = after(there, update(patch, may_share=share))
        if alone is not there:
            assert state_of(alone) == state_of(outcome.session)


def taken(there: Session, command: Any) -> bool:
    try:
        handle(there, command)
    except Rejection:
        return False
    return True
