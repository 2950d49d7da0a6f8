"""
Handlers of `session.broadcast` and `session.watch`.
"""

from datetime import datetime

import msgspec

from everbus.bus.errors import Invalid, TooLarge
from everbus.bus.events import (
    BEGINNING,
    EventPage,
    Position,
    SessionEvent,
    position_in,
    position_of,
)
from everbus.bus.messages import Session, check_json
from everbus.handlers import commands as body
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import EventsAfter
from everbus.handlers.outcomes import Event, Outcome
from everbus.handlers.sessions import (
    check_range,
    event_of,
    require_session,
    with_notice,
)

MAX_PAGE = 1000
MAX_MESSAGE_BYTES = 64 * 1024


class _Appended(msgspec.Struct, frozen=True):
    """
    The part of a timeline entry that subscribers see; its value stays encoded.
    """

    at: datetime
    entry: msgspec.Raw
    turn: str = ""


_appended = msgspec.msgpack.Decoder(_Appended)


def broadcast_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Send a message to all subscribers; it is stored as an event, not in the state.

    It counts as activity, so that no archiver misses it, but a dormant session stays
    dormant.

    Raises:
        Invalid: the message is not a JSON value.
        TooLarge: it has more than MAX_MESSAGE_BYTES.
    """
    current = require_session(session, command)
    request: body.BroadcastSession = command.body
    check_json(request.message, "message")
    size = len(msgspec.msgpack.encode(request.message))
    if size > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"message of {size} bytes; the limit is {MAX_MESSAGE_BYTES}. Append it to "
            "the timeline, or send a reference",
            size=size,
            limit=MAX_MESSAGE_BYTES,
        )
    after = with_notice(current, now)
    event = event_of("session.broadcast", command, after)
    sent = msgspec.structs.replace(event, message=request.message)

    return Outcome(session=after, reply={"id": position_of(after).id}, events=(sent,))


def watch_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the events behind an event, or fetch them from the lower tiers.

    Raises:
        Invalid: no event of this session has this id, or none has it yet.
    """
    current = require_session(session, command)
    request: body.WatchSession = command.body
    limit = check_range("limit", request.limit, 1, MAX_PAGE)
    here = position_of(current)
    after = here if request.after is None else _after(request.after, here)
    if after == here:
        return Outcome(session=current, reply=EventPage(events=(), next=here.id))
    if command.fetched is not None:
        return Outcome(session=current, reply=command.fetched)

    return Outcome(
        session=current, fetch=EventsAfter(after=after, through=here, limit=limit)
    )


def session_event(
    session_id: str, generation: str, event: Event, appended: bytes | None = None
) -> SessionEvent:
    """
    The event as subscribers see it.

    Args:
        life: of the session, by `generation_of`.
        appended: the encoded timeline entry of an append.
    """
    place = Position(generation, event.version, event.seq, event.notices)
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
        turn=event.turn if entry is None else entry.turn,
    )


def _after(event_id: str, here: Position) -> Position:
    if event_id == BEGINNING:
        return Position(here.generation)
    after = position_in(event_id)
    if after.generation != here.generation:
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
