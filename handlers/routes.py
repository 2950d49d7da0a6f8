"""
What each kind of command means: one pure function a kind, one table.

`(session, command, now) -> Outcome`, or a Rejection. No I/O, no clock, no
asyncio: the same command on the same session always leads to the same outcome.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from bus.errors import AlreadyExists, Forbidden, Invalid, NotFound, VersionConflict
from bus.messages import Session, TimelinePage, check_json, check_mad, check_name
from handlers import commands as body
from handlers.commands import Command, Event, Outcome, WarmPage
from handlers.session import MAX_ACL, appended, changed, new_session, patched

MAX_PAGE = 1000


def create_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Begin a session, or reply with the one that is there if asked to.

    Raises:
        AlreadyExists: it is there, and the command did not say `or_get`.
    """
    wanted: body.CreateSession = command.body
    check_name(wanted.user_id, "user_id")
    if session is None:
        created = new_session(
            command.session_id, wanted.user_id, command.principal, now
        )
        return _stepped(created, command, "session.created")
    if wanted.or_get:
        return Outcome(session=session, reply=_without_tail(session))
    raise AlreadyExists(f"session {session.id} exists already", session=session.id)


def get_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the session and its recent timeline.
    """
    there = _existing(session, command)
    tail = tuple(msgspec.Raw(entry) for entry in there.recent_timeline)

    return Outcome(
        session=there, reply=msgspec.structs.replace(there, recent_timeline=tail)
    )


def update_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Apply a merge patch; the version rises by one, also if nothing differs.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: a field is unknown, protected or of a wrong type.
        Forbidden: the ACL is patched by somebody who may not share the session.
    """
    there = _expected(session, command)
    wanted: body.UpdateSession = command.body
    if "acl" in wanted.patch and not command.may_share:
        raise Forbidden("only the owner or an operator may change the acl")

    return _stepped(
        patched(there, wanted.patch, now), command, "session.updated", wanted.patch
    )


def delete_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    End the session; its id may be used again.
    """
    there = _expected(session, command)
    event = _event("session.deleted", command, there.version + 1)

    return Outcome(session=None, event=event)


def add_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Note a MAD as taking part and let it in; twice is the same as once.
    """
    there = _expected(session, command)
    wanted: body.AddParticipant = command.body
    check_mad(wanted.mad)
    part = there.participants.get(wanted.mad)
    if part is not None and part["role"] == wanted.role:
        return Outcome(session=there, reply=_without_tail(there))
    check_json(wanted.role, "role")
    joined = {"joined_at": now.isoformat(), "role": wanted.role}
    after = changed(
        there,
        now,
        participants={**there.participants, wanted.mad: joined},
        acl=_with(there.acl, wanted.mad),
    )
    return _stepped(after, command, "participant.added", {"mad": wanted.mad})


def remove_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    End a MAD's part; nothing changes if it had none.
    """
    there = _expected(session, command)
    wanted: body.RemoveParticipant = command.body
    if wanted.mad not in there.participants:
        return Outcome(session=there, reply=_without_tail(there))
    rest = {m: part for m, part in there.participants.items() if m != wanted.mad}

    return _stepped(
        changed(there, now, participants=rest),
        command,
        "participant.removed",
        {"mad": wanted.mad},
    )


def append_timeline(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Add one entry; the reply, if one is wanted, carries its seq.
    """
    there = _existing(session, command)
    wanted: body.AppendTimeline = command.body
    entry = _decoded(wanted.entry)
    check_json(entry, "entry")
    # What was checked is what is kept: in the bytes as they came, a key given
    # twice could hide a value that no check has seen.
    after, packed = appended(there, command.mad, msgspec.msgpack.encode(entry), now)
    event = msgspec.structs.replace(
        _event("timeline.appended", command, after.version), seq=after.last_seq
    )
    return Outcome(
        session=after, reply={"seq": after.last_seq}, event=event, entry=packed
    )


def read_timeline(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with a page of the timeline, or say which part only the warm tier has.
    """
    there = _existing(session, command)
    wanted: body.ReadTimeline = command.body
    if not 1 <= wanted.limit <= MAX_PAGE:
        raise Invalid(f"limit is {wanted.limit}; 1 to {MAX_PAGE}", field="limit")
    after = wanted.after
    if after is None:
        after = max(0, there.last_seq - wanted.limit)
    if after < 0:
        raise Invalid(f"after is {after}; 0 or more", field="after")
    first, last = after + 1, min(after + wanted.limit, there.last_seq)
    tail_first = there.last_seq - len(there.recent_timeline) + 1
    if first < tail_first:
        return Outcome(session=there, warm=WarmPage(first, last, there.last_seq))
    hot = there.recent_timeline[first - tail_first : last - tail_first + 1]

    return Outcome(session=there, reply=page_of(hot, last, there.last_seq))


def page_of(encoded: tuple[bytes, ...], last: int, end: int) -> TimelinePage:
    """
    A page of *encoded* entries up to seq *last* of a timeline that ends at *end*.
    """
    entries: tuple[Any, ...] = tuple(msgspec.Raw(entry) for entry in encoded)

    return TimelinePage(entries, last if last < end else None)


class Route(NamedTuple):
    """
    How one kind is served: its body's type, its handler, whether it writes.
    """

    body: type[msgspec.Struct]
    handler: Callable[[Session | None, Command, datetime], Outcome]
    writes: bool = True


HANDLERS: Mapping[str, Route] = {
    "session.create": Route(body.CreateSession, create_session),
    "session.get": Route(body.GetSession, get_session, writes=False),
    "session.update": Route(body.UpdateSession, update_session),
    "session.delete": Route(body.DeleteSession, delete_session),
    "participant.add": Route(body.AddParticipant, add_participant),
    "participant.remove": Route(body.RemoveParticipant, remove_participant),
    "timeline.append": Route(body.AppendTimeline, append_timeline),
    "timeline.read": Route(body.ReadTimeline, read_timeline, writes=False),
}


def _existing(session: Session | None, command: Command) -> Session:
    if session is None:
        raise NotFound(
            f"no session {command.session_id}; create it first",
            session=command.session_id,
        )
    return session


def _expected(session: Session | None, command: Command) -> Session:
    there = _existing(session, command)
    expected = command.expected_version
    if expected is not None and expected != there.version:
        raise VersionConflict(
            f"session {there.id} is at version {there.version}, not {expected}; "
            "read it and decide anew",
            current_version=there.version,
        )
    return there


def _stepped(
    after: Session, command: Command, kind: str, patch: dict[str, Any] | None = None
) -> Outcome:
    event = _event(kind, command, after.version, patch)

    return Outcome(session=after, reply=_without_tail(after), event=event)


def _event(
    kind: str, command: Command, version: int, patch: dict[str, Any] | None = None
) -> Event:
    return Event(
        kind=kind,
        command_id=command.id,
        mad=command.mad,
        principal=command.principal,
        version=version,
        patch=patch,
    )


def _without_tail(session: Session) -> Session:
    return msgspec.structs.replace(session, recent_timeline=())


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    if name in names:
        return names
    if len(names) >= MAX_ACL:
        raise Invalid(f"acl has {len(names)} names; at most {MAX_ACL}", field="acl")
    return (*names, name)


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.msgpack.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"entry is not msgpack: {error}", field="entry") from error
