"""
Handlers of `session.*` that change one session or read it, and its transitions.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from everbus.bus.errors import (
    AlreadyExists,
    Forbidden,
    Invalid,
    NotFound,
    VersionConflict,
)
from everbus.bus.messages import Durable, Session, check_name
from everbus.handlers import commands as body
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import FullContext
from everbus.handlers.history import state_of
from everbus.handlers.outcomes import Archived, Event, Outcome
from everbus.handlers.patches import (
    check_fields,
    in_state,
    needs_context,
    new_session,
    not_before,
    patched,
)


def require_session(session: Session | None, command: Command) -> Session:
    """
    Return the session of the command.

    Raises:
        NotFound: there is no such session.
    """
    if session is None:
        raise no_session(command.session_id)
    return session


def no_session(session_id: str) -> NotFound:
    """
    The refusal for a session that does not exist, or not for its caller.
    """
    return NotFound(f"no session {session_id}; create it first", session=session_id)


def require_version(session: Session | None, command: Command) -> Session:
    """
    Return the session of the command, at the expected version if there is one.

    Raises:
        NotFound: there is no such session.
        VersionConflict: it has another version.
    """
    current = require_session(session, command)
    version = command.expected_version
    if version is not None and version != current.version:
        raise conflict(
            current,
            f"at version {current.version}, not {version}; read it and decide anew",
        )
    return current


def conflict(current: Session, state: str) -> VersionConflict:
    """
    The refusal of a command that expected another state of the session than *state*.
    """
    return VersionConflict(
        f"session {current.id} is {state}",
        current_version=current.version,
        current_last_seq=current.last_seq,
    )


def unchanged_outcome(current: Session) -> Outcome:
    """
    Outcome without a change: the reply is the session.
    """
    return Outcome(session=current, reply=without_tail(current))


def changed_outcome(
    before: Session | None,
    after: Session,
    command: Command,
    kind: str,
    patch: dict[str, Any],
) -> Outcome:
    """
    Outcome of a new version; *patch* is the difference from *before* to *after*, except
    for `state`, which is added here.
    """
    if before is not None and before.state != after.state:
        patch = {**patch, "state": after.state}
    event = event_of(kind, command, after, patch)

    return Outcome(session=after, reply=without_tail(after), events=(event,))


def resumed(current: Session, command: Command, now: datetime) -> tuple[Session, Event]:
    """
    The session, active at the next version, and the event of that.
    """
    after = in_state(current, "active", now)

    return after, event_of("session.resumed", command, after, {"state": "active"})


def with_notice(current: Session, now: datetime) -> Session:
    """
    The session after an event that moves neither its version nor its timeline.

    It counts as activity, so that no archiver misses the event.
    """
    return msgspec.structs.replace(
        current, notices=current.notices + 1, last_active=not_before(current, now)
    )


def event_of(
    kind: str, command: Command, after: Session, patch: dict[str, Any] | None = None
) -> Event:
    """
    Event of the command, at the position of the session *after* it.
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
    The session without its recent timeline, for a reply.
    """
    if not session.recent_timeline:
        return session
    return msgspec.structs.replace(session, recent_timeline=())


def check_range(field: str, value: int, least: int, most: int) -> int:
    """
    Return *value* if it is *least* to *most*.

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
        Invalid: naming *field*: no time zone, or beyond the calendar.
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
    The first full millisecond at *value* or later, in UTC; tiers store no finer time.

    Raises:
        Invalid: as in `check_time`.
    """
    utc = check_time(field, value)
    try:
        return utc + timedelta(microseconds=-utc.microsecond % 1000)
    except OverflowError as error:
        raise Invalid(f"{field} is beyond the calendar", field=field) from error


def create_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Create a session; with `or_get` reply with an existing one.

    Raises:
        AlreadyExists: it exists, and the command has no `or_get`.
    """
    request: body.CreateSession = command.body
    check_name(request.user_id, "user_id")
    if session is None:
        begun = new_session(
            command.session_id,
            request.user_id,
            command.principal,
            now,
            is_mad=command.is_mad,
        )
        created = msgspec.structs.replace(begun, tenant=command.tenant)
        return changed_outcome(
            None, created, command, "session.created", state_of(created)
        )
    if request.or_get:
        return unchanged_outcome(session)
    raise AlreadyExists(f"session {session.id} exists already", session=session.id)


def get_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the session, its recent timeline, and its full context on request.

    A dormant session stays dormant.
    """
    current = require_session(session, command)
    request: body.GetSession = command.body
    context = command.fetched if request.full else None
    if request.full and context is None:
        if current.context_bytes:
            fetch = FullContext(version=current.version)
            return Outcome(session=current, fetch=fetch)
        context = {}
    tail = tuple(msgspec.Raw(entry) for entry in current.recent_timeline)
    reply = msgspec.structs.replace(current, recent_timeline=tail, full_context=context)

    return Outcome(session=current, reply=reply)


def update_session(
    session: Session | None,
    command: Command,
    now: datetime,
    fields_type: type[Any] | None = None,
) -> Outcome:
    """
    Apply a merge patch; the version rises by one, or by none without a difference.

    Args:
        fields_type: what the session's `fields` must convert to afterwards.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: a field is unknown, protected or of a wrong type.
        Forbidden: the principal may not change the ACL.
        TooLarge: the state or the full context would exceed its limit.
    """
    current = require_version(session, command)
    request: body.UpdateSession = command.body
    after = changed_by_patch(current, request.patch, command, now, fields_type)
    if after is None:
        return Outcome(session=current, fetch=FullContext(version=current.version))
    if after is current:
        return unchanged_outcome(current)
    return changed_outcome(
        current,
        after,
        command,
        "session.updated",
        effective_patch(current, after, request.patch),
    )


def changed_by_patch(
    current: Session,
    patch: dict[str, Any],
    command: Command,
    now: datetime,
    fields_type: type[Any] | None,
) -> Session | None:
    """
    The session with *patch* merged in, itself without a difference; None if the full
    context has to be fetched first.

    Raises: as `update_session`.
    """
    if "acl" in patch and not command.may_share:
        raise Forbidden("only the owner or an operator may change the acl")
    if command.fetched is None and needs_context(current, patch):
        return None
    after = patched(current, patch, now, command.fetched)
    if after is not current and "fields" in patch:
        check_fields(after.fields, fields_type)
    return after


def delete_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Delete the session; its id may be used again.

    Raises:
        VersionConflict: it has another version than expected, or was active after
            `idle_since`: read it again.
    """
    current = require_version(session, command)
    request: body.DeleteSession = command.body
    if request.idle_since is not None:
        idle_since = check_time("idle_since", request.idle_since)
        if current.last_active > idle_since:
            raise _was_active(current)
    last = msgspec.structs.replace(
        current, version=current.version + 1, last_active=not_before(current, now)
    )
    event = event_of("session.deleted", command, last)

    return Outcome(session=None, events=(event,))


def suspend_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Suspend the session; idempotent.
    """
    current = require_version(session, command)
    if current.state == "dormant":
        return unchanged_outcome(current)

    return changed_outcome(
        current, in_state(current, "dormant", now), command, "session.suspended", {}
    )


def resume_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Resume the session; idempotent.
    """
    current = require_version(session, command)
    if current.state != "dormant":
        return unchanged_outcome(current)
    after, event = resumed(current, command, now)

    return Outcome(session=after, reply=without_tail(after), events=(event,))


def archive_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Hand the session over to the cold tier; its version does not change.

    Raises:
        VersionConflict: it changed or was active since the archiver read it.
    """
    current = require_session(session, command)
    request: body.ArchiveSession = command.body
    seen = (request.version, request.last_seq, request.notices)
    counts = (current.version, current.last_seq, current.notices)
    idle_since = check_time("idle_since", request.idle_since)
    if seen != counts or current.last_active >= idle_since:
        raise _was_active(current)
    event = event_of("session.archived", command, current)
    archived = Archived(
        pointer=request.pointer,
        through=current.last_seq,
        bytes=request.bytes,
        moves=request.moves,
    )
    return Outcome(
        session=msgspec.structs.replace(current, state="archived"),
        events=(msgspec.structs.replace(event, at=not_before(current, now)),),
        archived=archived,
    )


def durable_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Reply how much of the session MongoDB holds; at once, or when MongoDB holds all.
    """
    current = require_session(session, command)
    request: body.DurableSession = command.body
    if request.wait:
        everything = Durable(current.version, current.last_seq)
        return Outcome(session=current, reply=everything, when_durable=True)

    return Outcome(session=current, reply=command.fetched or Durable(0, 0))


def effective_patch(
    before: Session, after: Session, patch: dict[str, Any]
) -> dict[str, Any]:
    """
    The merge patch of the state that has the effect of *patch*.

    The same patch, except for null, which empties a field here but would remove it
    from the state, and for lists, which are given as they were stored.
    """
    if all(type(value) is dict for value in patch.values()):
        return patch
    effective = dict(patch)
    for name, value in patch.items():
        if name in ("acl", "tags"):
            effective[name] = list(getattr(after, name))
        elif value is None and name != "full_context":
            effective[name] = dict.fromkeys(getattr(before, name))
    return effective


def _was_active(current: Session) -> VersionConflict:
    return conflict(
        current,
        f"at version {current.version}, entry {current.last_seq}, last active at "
        f"{current.last_active.isoformat()}: more than was seen; look again",
    )
