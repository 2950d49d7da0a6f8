"""
One step of a session: what has to hold before it, and what it leaves behind.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from bus.errors import Invalid, NotFound, VersionConflict
from bus.messages import Session
from handlers.commands import Command
from handlers.outcomes import Event, Outcome
from handlers.session import later, moved


def existing(session: Session | None, command: Command) -> Session:
    """
    The session that the command is for.

    Raises:
        NotFound: there is none.
    """
    if session is None:
        raise NotFound(
            f"no session {command.session_id}; create it first",
            session=command.session_id,
        )
    return session


def expected(session: Session | None, command: Command) -> Session:
    """
    The session that the command is for, at the version that it expects, if any.

    Raises:
        NotFound: there is none.
        VersionConflict: it has another version.
    """
    there = existing(session, command)
    version = command.expected_version
    if version is not None and version != there.version:
        raise VersionConflict(
            f"session {there.id} is at version {there.version}, not {version}; "
            "read it and decide anew",
            current_version=there.version,
        )
    return there


def unchanged(there: Session) -> Outcome:
    """
    Nothing to do: the reply is the session as it is.
    """
    return Outcome(session=there, reply=without_tail(there))


def stepped(
    before: Session | None,
    after: Session,
    command: Command,
    kind: str,
    patch: dict[str, Any],
) -> Outcome:
    """
    A step of the version from *before* to *after*; *patch* is the difference, but
    for the state, of which this takes care.
    """
    if before is not None and before.state != after.state:
        patch = {**patch, "state": after.state}
    event = event_of(kind, command, after, patch)

    return Outcome(session=after, reply=without_tail(after), events=(event,))


def resumed(there: Session, command: Command, now: datetime) -> tuple[Session, Event]:
    """
    The session awake, one version on, and the event that tells it.
    """
    after = moved(there, "active", now)

    return after, event_of("session.resumed", command, after, {"state": "active"})


def noticed(there: Session, now: datetime) -> Session:
    """
    The session after something that moves neither its version nor its timeline.

    It counts as activity, so that no archiver takes what it has not seen.
    """
    return msgspec.structs.replace(
        there, notices=there.notices + 1, last_active=later(there, now)
    )


def event_of(
    kind: str, command: Command, after: Session, patch: dict[str, Any] | None = None
) -> Event:
    """
    What the command did, as of the session *after* it.
    """
    return Event(
        kind=kind,
        command_id=command.id,
        mad=command.mad,
        principal=command.principal,
        version=after.version,
        seq=after.last_seq,
        notices=after.notices,
        at=after.last_active,
        patch=patch,
    )


def without_tail(session: Session) -> Session:
    """
    The session without its recent timeline, as it is replied.
    """
    return msgspec.structs.replace(session, recent_timeline=())


def check_range(field: str, value: int, least: int, most: int) -> int:
    """
    *value*, if it is *least* to *most*.

    Raises:
        Invalid: naming *field*.
    """
    if least <= value <= most:
        return value
    raise Invalid(f"{field} is {value}; {least} to {most}", field=field)


def check_time(field: str, value: datetime) -> datetime:
    """
    *value* in UTC.

    Raises:
        Invalid: naming *field*: it has no time zone, or lies at the end of time.
    """
    if value.tzinfo is None:
        raise Invalid(
            f"{field} is {value.isoformat()}, without a time zone; add one, such as Z",
            field=field,
        )
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise Invalid(f"{field} is beyond the calendar", field=field) from error


def check_bound(field: str, value: datetime) -> datetime:
    """
    The first millisecond at *value* or later, in UTC; stores keep no finer time.

    Raises:
        Invalid: as in `check_time`.
    """
    utc = check_time(field, value)
    try:
        return utc + timedelta(microseconds=-utc.microsecond % 1000)
    except OverflowError as error:
        raise Invalid(f"{field} is beyond the calendar", field=field) from error
