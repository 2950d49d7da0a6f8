"""
Saying something to those who watch, and reading what has happened.
"""

from datetime import timedelta

import pytest

from everbus.bus.errors import Invalid, NotFound, TooLarge
from everbus.bus.events import EventPage, Position, generation_of, position_of
from everbus.handlers.fetch_requests import EventsAfter
from everbus.handlers.live import MAX_MESSAGE_BYTES, session_event
from tests.builders import NOW, a_session
from tests.unit.commands import (
    LATER,
    after,
    append,
    broadcast,
    checkpoint,
    handle,
    the_event,
    update,
    watch,
)

LIFE = generation_of(NOW)


def test_a_broadcast_moves_nothing_but_the_notices():
    there = a_session(version=3, last_seq=2, state="dormant")

    outcome = handle(there, broadcast({"typing": True}))

    changed = {
        name
        for name in there.__struct_fields__
        if getattr(there, name) != getattr(outcome.session, name)
    }
    assert changed == {"notices", "last_active"}
    event = the_event(outcome)
    assert (event.kind, event.message) == ("session.broadcast", {"typing": True})
    assert (event.version, event.seq, event.notices) == (3, 2, 1)
    assert (event.mad, event.principal, event.at) == ("fiedler", "ada", LATER)
    assert event.patch is None
    assert outcome.reply == {"id": f"{LIFE}-3.2.1"}


def test_a_checkpoint_is_noticed_as_well():
    outcome = handle(a_session(notices=4), checkpoint("v1"))

    assert outcome.session is not None
    assert outcome.session.notices == 5
    assert the_event(outcome).notices == 5


def test_a_broadcast_counts_as_activity_so_that_nobody_archives_it_unseen():
    there = a_session()

    assert after(there, broadcast("hi")).last_active == LATER
    # Time does not go back within a session.
    early = NOW - timedelta(hours=1)
    assert after(there, broadcast("hi"), early).last_active == NOW


@pytest.mark.parametrize("message", [float("nan"), {"$a": 1}, b"bytes", 2**60])
def test_a_message_that_is_no_json_is_refused(message):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), broadcast(message))

    assert refused.value.details["field"] == "message"


def test_a_message_has_a_limit():
    fits = "x" * (MAX_MESSAGE_BYTES - 3)
    assert handle(a_session(), broadcast(fits)).events

    with pytest.raises(TooLarge) as refused:
        handle(a_session(), broadcast(fits + "x"))

    assert refused.value.details == {
        "size": MAX_MESSAGE_BYTES + 1,
        "limit": MAX_MESSAGE_BYTES,
    }


@pytest.mark.parametrize("command", [broadcast("hi"), watch(), watch("0")])
def test_without_a_session_there_is_nothing_to_watch(command):
    with pytest.raises(NotFound):
        handle(None, command)


def test_from_now_on_begins_where_the_session_is():
    there = a_session(version=3, last_seq=2, notices=1)

    outcome = handle(there, watch(None))

    assert outcome.reply == EventPage(events=(), next=f"{LIFE}-3.2.1", done=True)
    assert outcome.session is there
    assert outcome.events == ()


def test_where_nothing_is_newer_nothing_has_to_be_read():
    there = a_session(version=3, last_seq=2, notices=1)
    here = position_of(there).id

    outcome = handle(there, watch(here, push=True))

    assert outcome.fetch is None
    assert outcome.reply == EventPage(events=(), next=here)


@pytest.mark.parametrize(
    ("behind", "place"),
    [("0", (LIFE, 0, 0, 0)), (f"{LIFE}-1.0.0", (LIFE, 1, 0, 0))],
)
def test_what_is_newer_is_read_below_up_to_where_the_session_is(behind, place):
    there = a_session(version=3, last_seq=2, notices=1)

    outcome = handle(there, watch(behind, limit=7))

    through = Position(LIFE, 3, 2, 1)
    assert outcome.fetch == EventsAfter(after=place, through=through, limit=7)


def test_what_was_read_below_is_the_reply():
    page = EventPage(events=(), next=f"{LIFE}-2.0.0", done=False)

    outcome = handle(a_session(version=3), watch("0", fetched=page))

    assert outcome.reply is page


@pytest.mark.parametrize(
    ("behind", "why"),
    [
        (f"{LIFE}-4.0.0", "ahead"),
        (f"{LIFE}-3.3.0", "ahead"),
        (f"{LIFE}-1.0.2", "ahead"),
        (f"{LIFE}0-1.0.0", "earlier"),
        ("7", "wanted the id"),
    ],
)
def test_an_id_that_no_event_of_the_session_has_is_refused(behind, why):
    with pytest.raises(Invalid, match=why) as refused:
        handle(a_session(version=3, last_seq=2, notices=1), watch(behind))

    assert refused.value.details["field"] == "after"


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_bounds(limit):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), watch(limit=limit))

    assert refused.value.details["field"] == "limit"


def test_an_event_is_told_with_all_that_it_did():
    there = a_session()
    outcome = handle(there, update({"tags": ["sea"]}))

    event = session_event("s1", LIFE, the_event(outcome))

    assert event.id == f"{LIFE}-2.0.0"
    assert (event.kind, event.at, event.version) == ("session.updated", LATER, 2)
    assert event.patch == {"tags": ["sea"]}
    assert (event.entry, event.message) == (None, None)


def test_an_append_is_told_with_its_entry_and_the_entrys_time():
    outcome = handle(a_session(), append({"text": "hi"}))

    event = session_event("s1", LIFE, the_event(outcome), outcome.entries[0])

    assert event.id == f"{LIFE}-1.1.0"
    assert (event.at, event.seq) == (LATER, 1)
    assert bytes(event.entry) == b"\x81\xa4text\xa2hi"
