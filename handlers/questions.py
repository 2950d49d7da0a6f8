"""
What the kinds mean that only ask: about a session's past, or about all sessions.

All of it is read from the tiers below; here it is only judged.
"""

from datetime import datetime

import msgspec

from bus.errors import Invalid, NotFound
from bus.messages import Session, check_json, check_mad, check_name
from handlers import commands as body
from handlers.commands import Command
from handlers.outcomes import Outcome
from handlers.patches import check_label
from handlers.steps import check_bound, check_range, existing
from handlers.wanted import (
    ChangesBetween,
    FoundSessions,
    StateAt,
    Statistics,
    Wanted,
)

MAX_PAGE = 1000
MAX_TEXT = 256
MAX_CURSOR = 1024


def session_at(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the session as it was at a version.

    Raises:
        NotFound: it has no such version.
    """
    there = existing(session, command)
    wanted: body.SessionAt = command.body
    _check_version("version", wanted.version, there)

    answer = _answered(
        there, command, StateAt(version=wanted.version, current=there.version)
    )
    if answer.reply is None or answer.reply.tenant == there.tenant:
        return answer
    # History does not tell the tenant, which never changes.
    then = msgspec.structs.replace(answer.reply, tenant=there.tenant)

    return msgspec.structs.replace(answer, reply=then)


def diff_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with what changed between two versions.

    Raises:
        NotFound: it has no such version.
        Invalid: the first is later than the second.
    """
    there = existing(session, command)
    wanted: body.DiffSession = command.body
    _check_version("from_version", wanted.from_version, there)
    _check_version("to_version", wanted.to_version, there)
    if wanted.from_version > wanted.to_version:
        raise Invalid(
            f"from_version is {wanted.from_version}, later than to_version "
            f"{wanted.to_version}; swap them",
            field="from_version",
        )
    between = ChangesBetween(
        from_version=wanted.from_version,
        to_version=wanted.to_version,
        current=there.version,
    )
    return _answered(there, command, between)


def list_sessions(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with a page of the sessions that the principal may see.

    Raises:
        Invalid: a filter can fit no session.
    """
    wanted: body.ListSessions = command.body
    _check_filters(wanted)
    times = {
        name: check_bound(name, value)
        for name in ("active_since", "active_before")
        if (value := getattr(wanted, name)) is not None
    }
    found = FoundSessions(
        query=msgspec.structs.replace(wanted, **times),
        visible_to="" if command.sees_all else command.principal,
        tenant=command.tenant,
    )
    return _answered(None, command, found)


def read_stats(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with counts over all sessions, and what each tier holds.
    """
    return _answered(None, command, Statistics())


def _answered(session: Session | None, command: Command, wants: Wanted) -> Outcome:
    if command.given is None:
        return Outcome(session=session, wants=wants)
    return Outcome(session=session, reply=command.given)


def _check_version(field: str, version: int, there: Session) -> None:
    if version < 1:
        raise Invalid(f"{field} is {version}; versions begin at 1", field=field)
    if version > there.version:
        raise NotFound(
            f"session {there.id} has no version {version} yet; it is at "
            f"{there.version}",
            session=there.id,
            current_version=there.version,
        )


def _check_filters(wanted: body.ListSessions) -> None:
    check_range("limit", wanted.limit, 1, MAX_PAGE)
    if wanted.owner is not None:
        check_name(wanted.owner, "owner")
    if wanted.participant is not None:
        check_mad(wanted.participant)
    if wanted.tag is not None:
        check_label(wanted.tag, "tag")
    _check_text("text", wanted.text, MAX_TEXT)
    _check_text("cursor", wanted.cursor, MAX_CURSOR)


def _check_text(field: str, text: str | None, most: int) -> None:
    if text is None:
        return
    check_json(text, field)
    if not text or len(text) > most or "\0" in text:
        raise Invalid(
            f"{field} has {len(text)} characters; wanted 1 to {most} without NUL",
            field=field,
        )
