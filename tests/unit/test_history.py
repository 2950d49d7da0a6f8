"""
History: each step's patch leads from state to state, so every version comes back.
"""

import copy
import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Invalid, Rejection
from everbus.bus.messages import Checkpoint, Session, SessionChange, pack, unpack
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import CheckpointsOf, CheckpointState
from everbus.handlers.history import (
    STATE_FIELDS,
    difference,
    digest,
    first_of,
    replayed,
    state_of,
    versioned,
    with_state,
)
from everbus.handlers.outcomes import Event
from everbus.handlers.patches import merge
from tests.builders import NOW, a_session
from tests.unit.commands import (
    LATER,
    add,
    after,
    append,
    checkpoint,
    checkpoints,
    create,
    delete,
    handle,
    remove,
    restore,
    resume,
    suspend,
    the_event,
    update,
)

values: Any = st.recursive(
    st.none() | st.sampled_from([0, 1, 1.0, True, False, "", "a"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from("abc"), values, max_size=3)
lists = st.lists(st.sampled_from(["ada", "bo", "cy"]), max_size=4)
patches = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("acl", "tags"), st.none() | lists),
        **dict.fromkeys(
            ("context_summary", "fields", "full_context", "work_in_progress"),
            st.none() | objects,
        ),
    },
)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
mads = st.sampled_from(["bo", "cy"])
steps: Any = st.one_of(
    patches.map(lambda patch: update(patch, may_share=True)),
    st.builds(add, mads, st.sampled_from(["", "critic"])),
    st.builds(remove, mads),
    st.sampled_from([suspend(), suspend(), resume(), append("hi"), checkpoint()]),
    st.just("restore"),
)


def change_of(event: Event) -> SessionChange:
    """
    As a store keeps it: packed, and read again.
    """
    assert event.at is not None
    assert event.patch is not None
    change = SessionChange(
        version=event.version,
        seq=event.seq,
        kind=event.kind,
        at=event.at,
        mad=event.mad,
        principal=event.principal,
        command_id=event.command_id,
        patch=event.patch,
    )
    return unpack(pack(change), SessionChange)


def lived(commands: list[Any]) -> tuple[list[Session], list[SessionChange]]:
    """
    The session after each step of its version, and the steps.
    """
    session = None
    versions: list[Session] = []
    changes: list[SessionChange] = []
    for command in [create("ada", principal="bo"), *commands]:
        if command == "restore":
            given_ = state_of(versions[len(versions) // 2])
            command = restore(fetched=given_)
        before = session
        try:
            outcome = handle(session, command)
        except Rejection:
            continue
        session = outcome.session
        assert session is not None
        stepped = [event for event in outcome.events if event.patch is not None]
        assert len(stepped) == session.version - (before.version if before else 0)
        for event in stepped:
            patch = event.patch or {}
            start = {} if before is None else state_of(before)
            assert merge(start, versioned(patch)) == state_of(session)
            changes.append(change_of(event))
            versions.append(session)
    return versions, changes


@unhurried
@given(st.lists(steps, max_size=12))
def test_each_step_leads_from_the_state_before_to_the_one_after(commands):
    """
    And so every version can be told again: from the first step, or from any other.
    """
    versions, changes = lived(commands)

    assert [change.version for change in changes] == [*range(1, len(versions) + 1)]
    first = first_of("s1", versions[0].created_at, changes[0])
    for begun, base in ((1, first), (len(versions) // 2 + 1, None)):
        start = base or versions[begun - 1]
        for reached in range(begun, len(versions) + 1):
            wanted = versions[reached - 1]
            told = replayed(start, changes[begun:reached])
            assert digest(state_of(told)) == digest(state_of(wanted))
            assert (told.version, told.id) == (reached, "s1")
            assert (told.owner_id, told.created_at) == ("ada", wanted.created_at)


@unhurried
@given(st.lists(steps, max_size=8), st.lists(steps, max_size=8))
def test_a_difference_leads_from_any_state_to_any_other(one, other):
    before = state_of(lived(one)[0][-1])
    after_ = state_of(lived(other)[0][-1])
    frozen = copy.deepcopy((before, after_))

    patch = difference(before, after_)

    assert digest(merge(before, patch)) == digest(after_)
    assert (before, after_) == frozen
    assert difference(after_, after_) == {}


@pytest.mark.parametrize("old", [1, 1.0, True])
@pytest.mark.parametrize("new", [1, 1.0, True])
def test_a_difference_tells_apart_what_python_takes_for_equal(old, new):
    patch = difference({"a": [old]}, {"a": [new]})

    assert (patch == {}) == (type(old) is type(new))


def test_a_difference_is_no_larger_than_it_must_be():
    before = {"a": {"b": 1, "c": {"d": 2}, "e": [1]}, "f": 0}
    after_ = {"a": {"b": 1, "c": {"d": 3}, "e": [1, 2]}, "g": {}}

    assert difference(before, after_) == {
        "f": None,
        "a": {"c": {"d": 3}, "e": [1, 2]},
        "g": {},
    }


def test_a_part_that_is_replaced_leaves_nothing_of_the_one_before():
    """
    Whatever else later releases will have noted of it.
    """
    there = a_session(participants={"bo": {"role": "critic", "lease": 7}})

    outcome = handle(there, add("bo", "author"))

    assert outcome.session is not None
    patch = the_event(outcome).patch
    assert merge(state_of(there), patch) == state_of(outcome.session)


def test_a_digest_does_not_know_the_order_of_keys():
    assert digest({"a": {"b": 1, "c": 2}}) == digest({"a": {"c": 2, "b": 1}})
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert digest({"a": 1}) == hashlib.sha256(b"\x81\xa1a\x01").hexdigest()


def test_a_state_covers_what_versions_cover_and_nothing_else():
    session = a_session(
        last_seq=9, context_bytes=7, recent_timeline=(b"x",), tags=("sea",)
    )

    state = state_of(session)

    assert set(state) == set(STATE_FIELDS)
    assert {"last_seq", "last_active", "full_context", "version"}.isdisjoint(state)
    assert state["tags"] == ["sea"]
    assert with_state(session, state) == session


def test_a_state_from_before_a_field_was_there_has_its_default():
    session = a_session(tags=("sea",), fields={"a": 1})
    old = {k: v for k, v in state_of(session).items() if k not in ("tags", "fields")}

    assert with_state(session, old) == a_session()


def test_a_history_with_a_hole_is_refused():
    """
    Better no answer than one that was never true.
    """
    versions, changes = lived([update({"work_in_progress": {"a": n}}) for n in "abc"])

    with pytest.raises(ValueError, match="version 4 follows 2"):
        replayed(versions[1], changes[3:])
    with pytest.raises(ValueError, match="has a hole"):
        replayed(versions[0], [changes[1], changes[3]])
    assert replayed(versions[1], []) is versions[1]


def test_a_checkpoint_keeps_the_state_and_moves_no_version():
    there = a_session(version=7, last_seq=4, tags=("sea",))

    outcome = handle(there, checkpoint("before the storm", "incremental", id="i1.0.9"))

    made = outcome.checkpoint
    assert made is not None
    assert (made.state, made.sha256) == (state_of(there), digest(state_of(there)))
    assert outcome.reply == Checkpoint(
        id="i1.0.9",
        name="before the storm",
        version=7,
        last_seq=4,
        kind="incremental",
        at=LATER,
        author="fiedler",
        sha256=made.sha256,
    )
    noticed = msgspec.structs.replace(there, notices=1, last_active=LATER)
    assert outcome.session == noticed
    event = the_event(outcome)
    assert (event.kind, event.version, event.seq) == ("checkpoint.created", 7, 4)
    assert (event.at, event.patch) == (LATER, None)


@pytest.mark.parametrize("name", ["x" * 65, "a\0b", "\ud800"])
def test_a_checkpoint_has_a_short_name(name):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), checkpoint(name))

    assert refused.value.details == {"field": "name"}


def test_a_restored_state_is_a_new_version():
    then = a_session(
        version=3,
        context_summary={"a": 1},
        work_in_progress={"b": {"c": 1}},
        tags=("sea",),
        fields={"d": 1},
    )
    there = a_session(
        version=7, work_in_progress={"b": {"e": 2}}, fields={"d": 1}, last_seq=9
    )

    outcome = handle(there, restore(fetched=state_of(then)))

    assert (
        outcome.session
        == outcome.reply
        == msgspec.structs.replace(then, version=8, last_active=LATER, last_seq=9)
    )
    event = the_event(outcome)
    assert (event.kind, event.version) == ("checkpoint.restored", 8)
    assert event.patch == {
        "context_summary": {"a": 1},
        "work_in_progress": {"b": {"c": 1, "e": None}},
        "tags": ["sea"],
    }


def test_a_restored_state_without_a_difference_is_no_new_version():
    there = a_session(
        version=7, context_summary={"a": 1}, tags=("sea",), fields={"d": {"e": [1]}}
    )

    outcome = handle(there, restore(fetched=state_of(there)))

    assert outcome.session == outcome.reply == there
    assert outcome.events == ()


def test_a_restored_state_that_differs_in_a_number_s_type_is_a_new_version():
    there = a_session(version=7, fields={"d": 1})
    then = a_session(version=3, fields={"d": 1.0})

    outcome = handle(there, restore(fetched=state_of(then)))

    assert outcome.session.version == 8


def test_who_may_see_a_session_and_who_is_there_are_not_undone():
    """
    Or a checkpoint would let in whom the owner has put out since.
    """
    then = after(after(a_session(), add("bo")), update({"tags": ["sea"]}))
    there = after(
        after(then, remove("bo")), update({"acl": ["cy"], "tags": None}, may_share=True)
    )

    back = after(there, restore(fetched=state_of(then)))

    assert (back.acl, back.participants, back.tags) == (("cy",), {}, ("sea",))
    assert (back.state, back.owner_id) == ("active", "ada")


def test_a_restore_first_wants_the_checkpoints_state():
    there = a_session(version=7)

    outcome = handle(there, restore("i1.0.9"))

    assert outcome.fetch == CheckpointState(checkpoint_id="i1.0.9")
    assert (outcome.session, outcome.events) == (there, ())


def test_checkpoints_are_read_from_the_tiers_below():
    asked = handle(a_session(), checkpoints("i1.0.9", 7))

    assert asked.fetch == CheckpointsOf(before="i1.0.9", limit=7)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (checkpoints(limit=0), "limit"),
        (checkpoints(limit=1001), "limit"),
        (checkpoints(before="a b"), "id"),
        (restore("$a"), "id"),
    ],
)
def test_impossible_checkpoints_are_refused(command: Command, field: str):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), command)

    assert refused.value.details == {"field": field}


def test_the_end_of_a_session_has_a_version_and_no_patch():
    event = the_event(handle(a_session(version=7, last_seq=4), delete(), NOW))

    assert (event.version, event.seq, event.at, event.patch) == (8, 4, NOW, None)
