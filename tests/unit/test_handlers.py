"""
What each kind of command means, tried on plain values.
"""

from datetime import datetime
from typing import Any

import msgspec
import pytest

from everbus.bus.errors import (
    AlreadyExists,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    VersionConflict,
)
from everbus.bus.messages import MAX_INTEGER, Session, pack
from everbus.handlers.history import state_of
from everbus.handlers.outcomes import Event
from everbus.handlers.patches import HOT_BYTES, MAX_ACL, PATCHABLE, PROTECTED
from everbus.handlers.routes import HANDLERS
from tests.builders import NOW, a_session
from tests.unit.commands import (
    LATER,
    a_talk,
    add,
    after,
    append,
    archive,
    at,
    checkpoint,
    checkpoints,
    create,
    delete,
    diff,
    durable,
    get,
    handle,
    hot_bytes,
    read,
    remove,
    restore,
    resume,
    seqs,
    suspend,
    the_event,
    turn,
    update,
)


def test_every_kind_is_served_by_one_explicit_table():
    reads = {kind for kind, route in HANDLERS.items() if not route.writes}

    assert reads == {
        *("session.get", "session.durable", "session.at", "session.diff"),
        *("session.list", "session.stats", "timeline.read", "checkpoint.list"),
        "session.watch",
    }
    assert set(HANDLERS) - reads == {
        *("session.create", "session.update", "session.turn", "session.delete"),
        *("session.suspend", "session.resume", "session.archive"),
        "session.broadcast",
        *("participant.add", "participant.remove", "participant.lost"),
        "timeline.append",
        *("checkpoint.create", "checkpoint.restore"),
    }


def test_two_kinds_are_for_no_session():
    sessionless = {kind for kind, route in HANDLERS.items() if route.sessionless}

    assert sessionless == {"session.list", "session.stats"}


@pytest.mark.parametrize(
    "command",
    [
        *(get(), update({}), delete(), add("bo"), remove("bo"), append(1), read()),
        *(suspend(), resume(), archive(), durable(), at(1), diff(1, 1)),
        *(checkpoint(), checkpoints(), restore(), turn("a")),
    ],
    ids=lambda command: command.kind,
)
def test_a_session_that_is_not_there_is_not_found(command):
    with pytest.raises(NotFound, match="create it first") as refused:
        handle(None, command)

    assert refused.value.details == {"session": "s1"}


@pytest.mark.parametrize(
    "command",
    [
        update({}, expected_version=6),
        delete(expected_version=8),
        add("bo", expected_version=6),
        remove("bo", expected_version=0),
        suspend(expected_version=6),
        resume(expected_version=6),
        checkpoint(expected_version=6),
        restore(expected_version=6),
    ],
    ids=lambda command: command.kind,
)
def test_a_change_that_expects_another_version_is_a_conflict(command):
    with pytest.raises(VersionConflict) as refused:
        handle(a_session(version=7, last_seq=4), command)

    assert refused.value.current_version == 7
    assert refused.value.current_last_seq == 4


@pytest.mark.parametrize(
    "command",
    [
        update({"tags": ["sea"]}, expected_version=7),
        delete(expected_version=7),
        add("bo", expected_version=7),
        suspend(expected_version=7),
        restore(expected_version=7, fetched={"tags": ["sea"]}),
    ],
    ids=lambda command: command.kind,
)
def test_a_change_that_expects_the_sessions_version_is_the_next_one(command):
    assert the_event(handle(a_session(version=7), command)).version == 8


def test_a_session_begins_at_version_1_as_its_users():
    outcome = handle(None, create("ada", id="i1.0.9"))

    wanted = a_session(created_at=LATER, last_active=LATER)
    assert outcome.session == outcome.reply == wanted
    assert the_event(outcome) == Event(
        kind="session.created",
        command_id="i1.0.9",
        mad="fiedler",
        principal="ada",
        version=1,
        at=LATER,
        patch=state_of(wanted),
    )


def test_who_creates_a_session_for_another_may_work_with_it():
    assert after(None, create("ada", principal="bo")).acl == ("user:bo",)
    a_mads = create("ada", principal="bo", is_mad=True)
    assert after(None, a_mads).acl == ("host:bo",)
    assert after(None, create("ada", principal="ada")).acl == ()


@pytest.mark.parametrize("user_id", ["", "a b", "$a", "x" * 256])
def test_a_session_is_not_created_for_an_impossible_user(user_id):
    with pytest.raises(Invalid) as refused:
        handle(None, create(user_id))

    assert refused.value.details == {"field": "user_id"}


def test_a_session_is_not_created_twice():
    with pytest.raises(AlreadyExists) as refused:
        handle(a_session(), create())

    assert refused.value.details == {"session": "s1"}


def test_or_get_creates_what_is_not_there():
    assert after(None, create(or_get=True)).version == 1


def test_or_get_replies_with_what_is_there_and_changes_nothing():
    there = after(a_session(version=7), append("hi"))

    outcome = handle(there, create("bo", or_get=True))

    assert outcome.session is there
    assert outcome.events == ()
    assert outcome.reply == msgspec.structs.replace(there, recent_timeline=())


def test_a_session_is_read_with_its_recent_timeline():
    there = a_talk(3)

    outcome = handle(there, get(expected_version=99))

    assert outcome.session is there
    assert outcome.events == ()
    reply = msgspec.msgpack.decode(pack(outcome.reply), type=Session)
    assert [entry["seq"] for entry in reply.recent_timeline] == [1, 2, 3]


def test_an_update_raises_the_version_by_one_and_records_its_patch():
    there = a_session(version=7, work_in_progress={"a": 1, "b": 2})
    patch = {"work_in_progress": {"a": None, "c": {"d": [3]}}}

    outcome = handle(there, update(patch))

    wanted = a_session(
        version=8, work_in_progress={"b": 2, "c": {"d": [3]}}, last_active=LATER
    )
    assert outcome.session == outcome.reply == wanted
    assert (the_event(outcome).kind, the_event(outcome).patch) == (
        "session.updated",
        patch,
    )
    assert there.work_in_progress == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "patch",
    [
        {},
        {"tags": []},
        {"tags": None, "work_in_progress": None},
        {"fields": {"absent": None}},
        {"context_summary": {"a": {"b": 1}}},
        {"full_context": {}},
        {"full_context": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("state", ["active", "dormant"])
def test_an_update_that_changes_nothing_leaves_the_session_as_it_is(patch, state):
    there = a_session(state=state, version=3, context_summary={"a": {"b": 1}})

    outcome = handle(there, update(patch, expected_version=3))

    assert outcome.session is there
    assert outcome.reply.version == 3
    assert outcome.events == ()


@pytest.mark.parametrize("value", [1.0, True, "1", [1]], ids=repr)
def test_another_kind_of_the_same_value_is_a_change(value):
    """
    To Python 1, 1.0 and True are equal; as JSON they differ.
    """
    there = a_session(fields={"n": 1}, version=3)

    assert after(there, update({"fields": {"n": value}})).version == 4


def test_null_empties_a_field():
    full = a_session(
        context_summary={"a": 1},
        work_in_progress={"b": 1},
        fields={"c": 1},
        acl=("bo",),
        tags=("sea",),
        context_bytes=100,
        version=3,
    )

    emptied = after(full, update(dict.fromkeys(PATCHABLE), may_share=True))

    assert emptied == a_session(version=4, last_active=LATER)


@pytest.mark.parametrize("field", sorted(PROTECTED))
def test_a_protected_field_cannot_be_patched(field):
    """
    S5: mass assignment of the version, the owner or the timeline is refused.
    """
    with pytest.raises(Invalid, match=f"^{field} is protected") as refused:
        handle(a_session(), update({"context_summary": {}, field: None}))

    assert refused.value.details == {"field": field}


def test_just_six_fields_may_be_patched():
    assert {
        *("acl", "context_summary", "fields"),
        *("full_context", "tags", "work_in_progress"),
    } == PATCHABLE
    assert {"id", "version", "owner_id", "state", "last_seq"} < PROTECTED
    assert {"context_bytes", "archival_status", "recent_timeline"} < PROTECTED


def test_an_unknown_field_cannot_be_patched():
    with pytest.raises(Invalid, match="no field of a session; known: acl, ") as refused:
        handle(a_session(), update({"mood": {}}))

    assert refused.value.details == {"field": "mood"}


def test_a_refused_field_name_is_shortened():
    """
    The refusal is kept in the ledger; its sender must not choose its size.
    """
    with pytest.raises(Invalid) as refused:
        handle(a_session(), update({"€" * 80_000: {}}))

    assert len(refused.value.message) + len(refused.value.details["field"]) < 300


@pytest.mark.parametrize("value", [1, "x", [], [{"a": 1}], True])
@pytest.mark.parametrize(
    "field", ["context_summary", "fields", "full_context", "work_in_progress"]
)
def test_a_field_that_is_an_object_stays_one(field, value):
    with pytest.raises(Invalid, match="must be an object or null") as refused:
        handle(a_session(), update({field: value}))

    assert refused.value.details == {"field": field}


@pytest.mark.parametrize("value", [float("nan"), {"$set": 1}, b"x", 2**60])
def test_a_patch_holds_only_what_every_store_can(value):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), update({"work_in_progress": {"a": value}}))

    assert refused.value.details == {"field": "work_in_progress"}


def test_a_patch_nests_as_deep_as_json_may_and_no_deeper():
    deep: Any = {}
    for _ in range(31):
        deep = {"a": deep}

    there = after(a_session(), update({"work_in_progress": deep}))

    assert there.work_in_progress == deep
    with pytest.raises(Invalid, match="nested deeper"):
        handle(there, update({"work_in_progress": {"a": deep}}))


def test_the_acl_is_replaced_and_holds_each_name_once():
    there = a_session(acl=("cy",))

    changed = after(there, update({"acl": ["bo", "ada", "bo"]}, may_share=True))

    assert changed.acl == ("bo", "ada")


@pytest.mark.parametrize("acl", [["bo"], [], None])
def test_the_acl_is_changed_only_by_who_may_share(acl):
    with pytest.raises(Forbidden):
        handle(a_session(acl=("bo",)), update({"acl": acl}))


@pytest.mark.parametrize(
    "acl",
    [{}, "bo", 1, [1], [None], ["a b"], ["$a"], [["a"]], ["a"] * (MAX_ACL + 1)],
    ids=lambda acl: repr(acl)[:12],
)
def test_an_acl_is_a_bounded_list_of_names(acl):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), update({"acl": acl}, may_share=True))

    assert refused.value.details == {"field": "acl"}


def test_a_state_beyond_the_hot_bound_is_refused_with_its_size():
    there = a_session(work_in_progress={"a": "x" * 40_000})

    with pytest.raises(TooLarge) as refused:
        handle(there, update({"context_summary": {"b": "x" * 12_000}}))

    assert refused.value.details["limit"] == HOT_BYTES
    assert 52_000 < refused.value.details["size"] < 52_400


def the_fullest_state(now: datetime) -> Session:
    """
    Filled byte by byte until one more is refused.
    """
    full, length = a_session(created_at=now), 0
    for step in (10_000, 1_000, 100, 10, 1):
        for _ in range(9):
            patch = {"work_in_progress": {"a": "x" * (length + step)}}
            try:
                full = after(
                    msgspec.structs.replace(full, version=1), update(patch), now
                )
            except TooLarge:
                break
            length += step
    return full


def test_appends_do_not_push_a_full_state_over_the_hot_bound():
    """
    They are never refused, so room for what they move is kept from the start:
    a longer seq, and a time with microseconds.
    """
    full = the_fullest_state(NOW.replace(microsecond=0))
    near_the_end = msgspec.structs.replace(full, last_seq=MAX_INTEGER - 1)

    for there in (full, near_the_end):
        assert HOT_BYTES - 50 < hot_bytes(there) <= HOT_BYTES
        assert hot_bytes(after(there, append("hi"))) <= HOT_BYTES


def test_the_recent_timeline_gives_way_to_the_state():
    there = a_talk(20, of_bytes=1000)

    changed = after(there, update({"work_in_progress": {"a": "x" * 43_000}}))

    assert seqs(changed.recent_timeline) == [16, 17, 18, 19, 20]
    assert hot_bytes(changed) <= HOT_BYTES
    assert changed.last_seq == 20


def test_deleting_leaves_nothing_but_its_event():
    outcome = handle(a_session(version=7), delete())

    assert (outcome.session, outcome.reply) == (None, None)
    assert (the_event(outcome).kind, the_event(outcome).version) == (
        "session.deleted",
        8,
    )


def test_a_participant_is_noted_with_its_role_and_let_in():
    outcome = handle(a_session(), add("bo", "critic"))

    joined = {"bo": {"joined_at": LATER.isoformat(), "role": "critic"}}
    wanted = a_session(
        version=2, last_active=LATER, participants=joined, acl=("participant:bo",)
    )
    assert outcome.session == outcome.reply == wanted
    event = the_event(outcome)
    assert event.kind == "participant.added"
    assert event.patch == {"participants": joined, "acl": ["participant:bo"]}


def test_adding_a_participant_twice_is_the_same_as_once():
    there = after(a_session(), add("bo", "critic"))

    outcome = handle(there, add("bo", "critic"))

    assert outcome.session is there
    assert outcome.events == ()
    assert outcome.reply == there


def test_another_role_is_a_change():
    there = after(a_session(), add("bo", "critic"))

    changed = after(there, add("bo", "author"))

    assert (changed.version, changed.acl) == (3, ("participant:bo",))
    assert changed.participants["bo"]["role"] == "author"


@pytest.mark.parametrize("mad", ["", "a b", "{a}", "x" * 65])
def test_a_participant_has_a_possible_name(mad):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), add(mad))

    assert refused.value.details == {"field": "mad"}


def test_participants_do_not_make_the_acl_longer_than_its_limit():
    full = a_session(acl=tuple(f"m{n}" for n in range(MAX_ACL)))

    with pytest.raises(Invalid, match=f"at most {MAX_ACL}"):
        handle(full, add("bo"))

    assert len(after(full, add("m7")).acl) == MAX_ACL


def test_removing_a_participant_takes_back_what_adding_gave():
    there = after(after(a_session(), add("bo")), add("cy"))

    outcome = handle(there, remove("bo"))

    assert outcome.session is not None
    assert list(outcome.session.participants) == ["cy"]
    assert (outcome.session.acl, outcome.session.version) == (("participant:cy",), 4)
    event = the_event(outcome)
    assert event.kind == "participant.removed"
    assert event.patch == {"participants": {"bo": None}, "acl": ["participant:cy"]}


def test_removing_who_takes_no_part_changes_nothing():
    there = a_session()

    outcome = handle(there, remove("bo"))

    assert outcome.session is there
    assert (outcome.events, outcome.reply) == ((), there)


def test_a_mad_with_a_dot_in_its_name_cannot_take_part():
    with pytest.raises(Invalid) as caught:
        handle(a_session(), add("fied.ler"))

    assert caught.value.details == {"field": "mad"}
