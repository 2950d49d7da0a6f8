"""
Events of a session: their ids, and the number that tells whether one is missing.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Invalid, Rejection
from everbus.bus.events import Position, generation_of, position_in, position_of
from everbus.bus.messages import Session
from everbus.handlers.commands import Command
from tests.builders import NOW, a_session
from tests.unit.commands import (
    add,
    append,
    archive,
    broadcast,
    checkpoint,
    create,
    delete,
    get,
    handle,
    read,
    remove,
    restore,
    resume,
    suspend,
    update,
    watch,
)

counts = st.integers(0, 10**18 - 1)
times = st.datetimes(datetime(1970, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001
commands: Any = st.sampled_from(
    [
        create(or_get=True),
        update({"tags": ["sea"]}),
        update({"tags": ["sea"]}, expected_version=1),
        update({"mood": "good"}),
        suspend(),
        resume(),
        add("bo"),
        add("cy", "critic"),
        remove("bo"),
        append("hi"),
        append("x" * 30_000),
        broadcast({"typing": True}),
        checkpoint("now"),
        get(),
        read(),
        watch("0"),
        "restore",
        delete(),
    ]
)


@given(times, counts, counts, counts)
def test_an_id_comes_back_as_the_place_that_it_stands_for(at, version, seq, notices):
    place = Position(generation_of(at), version, seq, notices)

    assert position_in(place.id) == place
    assert place.number == version + seq + notices


@given(times, st.integers(1, 10**6))
def test_two_lives_of_one_id_differ_by_a_millisecond(at, milliseconds):
    try:
        later = at + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return
    assert generation_of(at) != generation_of(later)
    assert generation_of(at.replace(microsecond=1000)) != generation_of(
        at.replace(microsecond=0)
    )


def test_the_place_of_a_session_is_made_of_all_that_it_counts():
    session = a_session(version=3, last_seq=2, notices=1)

    assert position_of(session) == (generation_of(NOW), 3, 2, 1)


@pytest.mark.parametrize(
    "bad",
    [
        *("", "0", "1-1.0", "1-1.0.0.0", "A-1.0.0", "1-01.0.0", "1--1.0.0", "-1.0.0"),
        *("1-1.0.0\n", " 1-1.0.0", "1-1,0,0", "1-٣.0.0", f"1-{10**18}.0.0"),
        *(f"{'z' * 14}-1.0.0", "x" * 100_000),
    ],
)
def test_what_is_no_id_is_refused_by_name(bad):
    with pytest.raises(Invalid) as refused:
        position_in(bad)

    assert refused.value.details == {"field": "after"}
    assert len(refused.value.message) < 300


def settled(
    session: Session | None, command: Command, now: datetime
) -> tuple[Session | None, tuple[Any, ...]]:
    try:
        outcome = handle(session, command, now)
    except Rejection:
        return session, ()
    if outcome.fetch is not None:
        return session, ()
    return outcome.session, outcome.events


@settings(deadline=None)
@given(st.lists(commands, max_size=40))
def test_the_events_of_every_history_are_numbered_without_gap_or_duplicate(chosen):
    """
    Whatever is done, refused or repeated: 1, 2, 3 … up to where the session is, in
    each of its lives.
    """
    session, now, numbers = None, NOW, []
    for one in chosen:
        now += timedelta(seconds=1)
        command = one
        if one == "restore":
            state = {"tags": [], "context_summary": {}, "work_in_progress": {}}
            command = restore("i1.0.9", fetched={**state, "fields": {}})
        before = session
        session, events = settled(session, command, now)
        for event in events:
            place = Position(
                generation_of(now), event.version, event.seq, event.notices
            )
            numbers.append(place.number)
        if session is not None:
            assert position_of(session).number == len(numbers)
        elif before is not None:
            assert events[-1].kind == "session.deleted"
        assert numbers == list(range(1, len(numbers) + 1))
        if session is None:
            numbers = []


def test_what_only_moves_a_session_between_tiers_has_no_number():
    there = a_session(version=3, last_seq=2, notices=1, state="dormant")

    outcome = handle(there, archive(there), NOW)

    assert outcome.session is not None
    assert position_of(outcome.session) == position_of(there)
    [event] = outcome.events
    assert (event.version, event.seq, event.notices) == (3, 2, 1)
