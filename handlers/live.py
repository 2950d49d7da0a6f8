"""
What the kinds mean by which a session is watched: say something, hear what happens.
"""

from datetime import datetime

import msgspec

from bus.errors import Invalid, TooLarge
from bus.events import (
    BEGINNING,
    EventPage,
    Position,
    SessionEvent,
    position_in,
    position_of,
)
from bus.messages import Session, check_json
from handlers import commands as body
from handlers.commands import Command
from handlers.outcomes import Event, Outcome
from handlers.steps import check_range, event_of, existing, noticed
from handlers.wanted import EventsAfter

MAX_PAGE = 1000
MAX_MESSAGE_BYTES = 64 * 1024


class _Appended(msgspec.Struct, frozen=True):
    """
    What of a timeline entry is told; what was said stays encoded.
    """

    at: datetime
    entry: msgspec.Raw


_appended = msgspec.msgpack.Decoder(_Appended)


def broadcast_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Tell a message to all who watch; it is kept as an event, and in no state.

    It counts as activity, so that no archiver takes what it has not seen, but a
    session that rests goes on resting.

    Raises:
        Invalid: the message is no JSON value.
        TooLarge: it has more than MAX_MESSAGE_BYTES.
    """
    there = existing(session, command)
    wanted: body.BroadcastSession = command.body
    check_json(wanted.message, "message")
    size = len(msgspec.msgpack.encode(wanted.message))
    if size > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"message of {size} bytes; the limit is {MAX_MESSAGE_BYTES}. Append it to "
            "the timeline, or send a reference",
            size=size,
            limit=MAX_MESSAGE_BYTES,
        )
    after = noticed(there, now)
    event = event_of("session.broadcast", command, after)
    told = msgspec.structs.replace(event, message=wanted.message)

    return Outcome(session=after, reply={"id": position_of(after).id}, events=(told,))


def watch_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with what happened behind an event, or say what has to be read of it.

    Raises:
        Invalid: no event of this session has that id, or none has it yet.
    """
    there = existing(session, command)
    wanted: body.WatchSession = command.body
    limit = check_range("limit", wanted.limit, 1, MAX_PAGE)
    here = position_of(there)
    after = here if wanted.after is None else _after(wanted.after, here)
    if after == here:
        return Outcome(session=there, reply=EventPage(events=(), next=here.id))
    if command.given is not None:
        return Outcome(session=there, reply=command.given)

    return Outcome(
        session=there, wants=EventsAfter(after=after, through=here, limit=limit)
    )


def told(
    session_id: str, life: str, event: Event, appended: bytes | None = None
) -> SessionEvent:
    """
    The event as those hear it who watch.

    Args:
        life: of the session, as `life_of` says.
        appended: the timeline entry, encoded, of an append.
    """
    place = Position(life, event.version, event.seq, event.notices)
    entry = None if appended is None else _appended.decode(appended)
    at = event.at if entry is None else entry.at
    if at is None:
        raise AssertionError(f"{event.kind} of {session_id} has no time")

    return SessionEvent(
        id=place.id,
        session=session_id,
        kind=event.kind,
        at=at,
        version=event.version,
        seq=event.seq,
        mad=event.mad,
        principal=event.principal,
        command_id=event.command_id,
        patch=event.patch,
        entry=None if entry is None else entry.entry,
        message=event.message,
    )


def _after(event_id: str, here: Position) -> Position:
    if event_id == BEGINNING:
        return Position(here.life)
    after = position_in(event_id)
    if after.life != here.life:
        raise Invalid(
            f"event {event_id} is of another session, or of an earlier one under this "
            f"id; watch from {BEGINNING}, or from now on",
            field="after",
        )
    if any(counted > now for counted, now in zip(after[1:], here[1:], strict=True)):
        raise Invalid(
            f"event {event_id} is ahead of the session, which is at {here.id}: it was "
            f"lost, or never was; watch from {BEGINNING}, or from now on",
            field="after",
        )
    return after
