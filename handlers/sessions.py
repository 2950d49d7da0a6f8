"""
What the kinds `session.*` mean that change a session, and the reading of one.
"""

from datetime import datetime
from typing import Any

import msgspec

from bus.errors import AlreadyExists, Forbidden, VersionConflict
from bus.messages import Durable, Session, check_name
from handlers import commands as body
from handlers.commands import Command
from handlers.history import state_of
from handlers.outcomes import Archived, Outcome
from handlers.patches import check_fields, patched
from handlers.session import later, moved, new_session
from handlers.steps import (
    check_time,
    event_of,
    existing,
    expected,
    resumed,
    stepped,
    unchanged,
    without_tail,
)
from handlers.wanted import FullContext


def create_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Begin a session, or reply with the one that is there if asked to.

    Raises:
        AlreadyExists: it is there, and the command did not say `or_get`.
    """
    wanted: body.CreateSession = command.body
    check_name(wanted.user_id, "user_id")
    if session is None:
        begun = new_session(command.session_id, wanted.user_id, command.principal, now)
        created = msgspec.structs.replace(begun, tenant=command.tenant)
        return stepped(None, created, command, "session.created", state_of(created))
    if wanted.or_get:
        return unchanged(session)
    raise AlreadyExists(f"session {session.id} exists already", session=session.id)


def get_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the session and its recent timeline; with its full context if asked.

    Reading wakes nobody: a dormant session stays dormant.
    """
    there = existing(session, command)
    wanted: body.GetSession = command.body
    context = command.given if wanted.full else None
    if wanted.full and context is None:
        if there.context_bytes:
            wants = FullContext(version=there.version)
            return Outcome(session=there, wants=wants)
        context = {}
    tail = tuple(msgspec.Raw(entry) for entry in there.recent_timeline)
    reply = msgspec.structs.replace(there, recent_timeline=tail, full_context=context)

    return Outcome(session=there, reply=reply)


def update_session(
    session: Session | None,
    command: Command,
    now: datetime,
    fields_type: type[Any] | None = None,
) -> Outcome:
    """
    Apply a merge patch; the version rises by one, also if nothing differs.

    Args:
        fields_type: what the session's `fields` must convert to afterwards.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: a field is unknown, protected or of a wrong type.
        Forbidden: the ACL is patched by somebody who may not share the session.
        TooLarge: the state or the full context would exceed its limit.
    """
    there = expected(session, command)
    wanted: body.UpdateSession = command.body
    if "acl" in wanted.patch and not command.may_share:
        raise Forbidden("only the owner or an operator may change the acl")
    after = patched(there, wanted.patch, now)
    if "fields" in wanted.patch:
        check_fields(after.fields, fields_type)
    return stepped(
        there,
        after,
        command,
        "session.updated",
        _effective(there, after, wanted.patch),
    )


def delete_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    End the session; its id may be used again.

    Raises:
        VersionConflict: it has another version than expected, or was active after
            `idle_since`: who looked before must look again.
    """
    there = expected(session, command)
    wanted: body.DeleteSession = command.body
    if wanted.idle_since is not None:
        idle_since = check_time("idle_since", wanted.idle_since)
        if there.last_active > idle_since:
            raise _was_active(there)
    last = msgspec.structs.replace(
        there, version=there.version + 1, last_active=later(there, now)
    )
    event = event_of("session.deleted", command, last)

    return Outcome(session=None, events=(event,))


def suspend_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Let the session rest; nothing changes if it does already.
    """
    there = expected(session, command)
    if there.state == "dormant":
        return unchanged(there)

    return stepped(
        there, moved(there, "dormant", now), command, "session.suspended", {}
    )


def resume_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Wake the session; nothing changes if it is awake.
    """
    there = expected(session, command)
    if there.state != "dormant":
        return unchanged(there)
    after, event = resumed(there, command, now)

    return Outcome(session=after, reply=without_tail(after), events=(event,))


def archive_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Leave the session to the cold tier; its version does not move.

    Raises:
        VersionConflict: it changed or was active since the archiver looked.
    """
    there = existing(session, command)
    wanted: body.ArchiveSession = command.body
    seen = (wanted.version, wanted.last_seq, wanted.notices)
    counts = (there.version, there.last_seq, there.notices)
    idle_since = check_time("idle_since", wanted.idle_since)
    if seen != counts or there.last_active >= idle_since:
        raise _was_active(there)
    event = event_of("session.archived", command, there)
    archived = Archived(
        pointer=wanted.pointer,
        through=there.last_seq,
        bytes=wanted.bytes,
        moves=wanted.moves,
    )
    return Outcome(
        session=msgspec.structs.replace(there, state="archived"),
        events=(msgspec.structs.replace(event, at=later(there, now)),),
        archived=archived,
    )


def durable_session(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Reply how much of the session MongoDB holds; at once, or when it is all.
    """
    there = existing(session, command)
    wanted: body.DurableSession = command.body
    if wanted.wait:
        everything = Durable(there.version, there.last_seq)
        return Outcome(session=there, reply=everything, when_durable=True)

    return Outcome(session=there, reply=command.given or Durable(0, 0))


def _effective(
    before: Session, after: Session, patch: dict[str, Any]
) -> dict[str, Any]:
    """
    The patch that has, merged into the state, the effect that *patch* had.

    It is the same but for null, which empties a field and would remove it from the
    state, and for lists, which are told as they were taken over.
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


def _was_active(there: Session) -> VersionConflict:
    return VersionConflict(
        f"session {there.id} is at version {there.version}, entry {there.last_seq}, "
        f"last active at {there.last_active.isoformat()}: more than was seen; look "
        "again",
        current_version=there.version,
    )
