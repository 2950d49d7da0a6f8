"""
Suspending, resuming, archiving: what each does, and what wakes a session up.
"""

from datetime import datetime, timedelta, timezone

import msgspec
import pytest

from everbus.bus.errors import Invalid, TooLarge, VersionConflict
from everbus.bus.messages import Durable, Session, TimelineEntry, pack
from everbus.handlers.fetch_requests import FullContext
from everbus.handlers.outcomes import Archived
from everbus.handlers.patches import HOT_BYTES
from tests.builders import NOW, a_session
from tests.unit.commands import (
    LATER,
    a_talk,
    add,
    after,
    append,
    archive,
    checkpoint,
    create,
    delete,
    durable,
    get,
    handle,
    hot_bytes,
    read,
    remove,
    restore,
    resume,
    suspend,
    the_event,
    turn,
    update,
)

EARLIER = NOW - timedelta(hours=1)


def a_dormant_session(**fields) -> Session:
    return a_session(state="dormant", **fields)


def test_a_suspended_session_is_dormant_and_one_version_on():
    outcome = handle(a_talk(3), suspend())

    assert outcome.session is not None
    assert (outcome.session.state, outcome.session.version) == ("dormant", 2)
    assert outcome.reply == msgspec.structs.replace(outcome.session, recent_timeline=())
    event = the_event(outcome)
    assert (event.kind, event.version, event.seq) == ("session.suspended", 2, 3)
    assert (event.at, event.patch) == (LATER, {"state": "dormant"})


def test_a_resumed_session_is_active_and_one_version_on():
    outcome = handle(a_dormant_session(version=7), resume())

    wanted = a_session(version=8, last_active=LATER)
    assert outcome.session == outcome.reply == wanted
    event = the_event(outcome)
    assert (event.kind, event.version) == ("session.resumed", 8)
    assert (event.at, event.patch) == (LATER, {"state": "active"})


@pytest.mark.parametrize(
    ("there", "command"),
    [(a_dormant_session(), suspend()), (a_session(), resume())],
)
def test_what_is_so_already_changes_nothing(there, command):
    outcome = handle(there, command)

    assert outcome.session is there
    assert (outcome.events, outcome.reply) == ((), there)


@pytest.mark.parametrize(
    "command",
    [
        update({"work_in_progress": {"a": 1}}),
        add("bo"),
        remove("cy"),
        restore(fetched={"tags": ["sea"]}),
    ],
    ids=lambda command: command.kind,
)
def test_a_change_wakes_a_dormant_session_in_the_same_step(command):
    part = {"joined_at": NOW.isoformat(), "role": ""}
    there = a_dormant_session(version=7, participants={"cy": part})

    outcome = handle(there, command)

    assert outcome.session is not None
    assert (outcome.session.state, outcome.session.version) == ("active", 8)
    event = the_event(outcome)
    assert event.version == 8
    assert event.patch is not None
    assert event.patch["state"] == "active"


def test_a_change_of_an_active_session_says_nothing_of_its_state():
    event = the_event(handle(a_session(), update({"work_in_progress": {"a": 1}})))

    assert event.patch == {"work_in_progress": {"a": 1}}


def test_an_append_to_a_dormant_session_wakes_it_first():
    """
    Two events, for the version moves by waking up, and by appending it does not.
    """
    outcome = handle(a_dormant_session(version=7, last_seq=4), append("hi"))

    assert outcome.session is not None
    assert (outcome.session.state, outcome.session.version) == ("active", 8)
    awoken, appended = outcome.events
    assert (awoken.kind, awoken.version, awoken.seq) == ("session.resumed", 8, 4)
    assert (awoken.at, awoken.patch) == (LATER, {"state": "active"})
    assert (appended.kind, appended.version, appended.seq) == (
        "timeline.appended",
        8,
        5,
    )
    assert (appended.at, appended.patch) == (None, None)


@pytest.mark.parametrize(
    "command",
    [
        *(get(), read(), durable(), durable(wait=True), create(or_get=True)),
        *(remove("nobody"), checkpoint()),
    ],
    ids=lambda command: command.kind,
)
def test_what_changes_no_state_wakes_nobody(command):
    outcome = handle(a_dormant_session(version=7), command)

    assert outcome.session is not None
    assert (outcome.session.state, outcome.session.version) == ("dormant", 7)


def test_a_dormant_session_may_be_deleted():
    outcome = handle(a_dormant_session(version=7), delete())

    assert outcome.session is None
    assert the_event(outcome).version == 8


def test_resting_and_waking_are_never_refused_for_the_size_of_the_state():
    """
    The room for what they add is kept from the start, so the bound holds as well.
    """
    full = a_session(version=127)
    for length in range(48_000, HOT_BYTES):
        patch = {"work_in_progress": {"a": "x" * length}}
        try:
            full = after(msgspec.structs.replace(full, version=126), update(patch))
        except TooLarge:
            break
    full = msgspec.structs.replace(full, version=2**53)

    rested = after(full, suspend())
    awake = after(rested, append("hi"))

    assert hot_bytes(full) > HOT_BYTES - 40
    assert hot_bytes(rested) <= HOT_BYTES
    assert hot_bytes(awake) <= HOT_BYTES


def test_an_archived_session_is_left_to_the_cold_tier_at_its_version():
    there = a_dormant_session(version=7, last_seq=4)
    a_year_later = NOW + timedelta(days=366)

    outcome = handle(there, archive(there), a_year_later)

    assert outcome.session == msgspec.structs.replace(there, state="archived")
    assert outcome.archived == Archived(
        pointer="s1/manifest", through=4, bytes=1_000, moves=4
    )
    event = the_event(outcome)
    assert (event.kind, event.version, event.seq) == ("session.archived", 7, 4)
    assert (event.at, event.patch) == (a_year_later, None)


@pytest.mark.parametrize(
    "seen",
    [
        {"version": 6},
        {"version": 8},
        {"last_seq": 3},
        {"idle_since": NOW},
        {"idle_since": EARLIER},
    ],
    ids=repr,
)
def test_a_session_that_changed_since_the_archiver_looked_stays(seen):
    there = a_session(version=7, last_seq=4)

    with pytest.raises(VersionConflict) as refused:
        handle(there, archive(there, **seen))

    assert refused.value.current_version == 7


@pytest.mark.parametrize(
    "write", [checkpoint(), append("hi"), update({"tags": ["x"]}), suspend()]
)
def test_whatever_is_written_keeps_the_archiver_away(write):
    there = a_session(version=7, last_seq=4)
    look = archive(there, idle_since=NOW + timedelta(seconds=1))
    assert handle(there, look).archived is not None

    with pytest.raises(VersionConflict):
        handle(after(there, write), look)


def test_a_clean_up_spares_what_was_active_since():
    there = a_session(version=7)

    with pytest.raises(VersionConflict, match="last active") as refused:
        handle(there, delete(idle_since=EARLIER))

    assert refused.value.current_version == 7
    assert handle(there, delete(idle_since=LATER)).session is None


@pytest.mark.parametrize(
    "command",
    [
        delete(idle_since=datetime(2026, 1, 1)),  # noqa: DTZ001 - that is the point
        archive(idle_since=datetime(2026, 1, 1)),  # noqa: DTZ001
        archive(idle_since=datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))),
    ],
)
def test_a_time_that_no_clock_shows_is_refused(command):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), command)

    assert refused.value.details == {"field": "idle_since"}


@pytest.mark.parametrize(
    "command",
    [
        *(
            update({"tags": ["a"]}),
            append("hi"),
            turn("hi", "ho"),
            add("bo"),
            suspend(),
            checkpoint(),
        ),
        restore(fetched={}),
    ],
    ids=lambda command: command.kind,
)
def test_time_never_goes_back_within_a_session(command):
    """
    The clock of the server that takes over may be behind.
    """
    outcome = handle(a_session(last_active=LATER), command, NOW)

    assert outcome.session is not None
    assert outcome.session.last_active == LATER
    assert all(event.at in (None, LATER) for event in outcome.events)
    for entry in outcome.entries:
        assert msgspec.msgpack.decode(entry, type=TimelineEntry).at == LATER


def test_what_is_durable_is_what_the_hot_copy_says():
    there = a_talk(3)

    told = handle(there, durable(fetched=Durable(1, 2)))
    unknown = handle(there, durable())

    assert (told.reply, told.when_durable) == (Durable(1, 2), False)
    assert unknown.reply == Durable(0, 0)


def test_waiting_for_durability_is_for_all_that_was_committed_before():
    outcome = handle(a_talk(3), durable(wait=True))

    assert (outcome.reply, outcome.when_durable) == (Durable(1, 3), True)
    assert outcome.events == ()


def test_the_full_context_is_read_from_the_tiers_below():
    there = a_session(version=7, context_bytes=90)

    asked = handle(there, get(full=True))
    told = handle(there, get(full=True, fetched={"a": 1}))

    assert asked.fetch == FullContext(version=7)
    assert told.fetch is None
    assert msgspec.msgpack.decode(pack(told.reply))["full_context"] == {"a": 1}
    assert told.session is there


def test_an_empty_full_context_needs_no_tier():
    assert handle(a_session(), get(full=True)).reply.full_context == {}
    assert handle(a_session(context_bytes=90), get()).reply.full_context is None
