"""
Handlers of read-only kinds: old versions of a session, and lists of sessions.

The data comes from the lower tiers; the handlers check the request.
"""

from datetime import datetime

import msgspec

from everbus.bus.errors import Invalid, NotFound
from everbus.bus.messages import Session, check_json, check_mad, check_name
from everbus.handlers import commands as body
from everbus.handlers.access_list import entry_for
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import (
    ChangesBetween,
    FetchRequest,
    FoundSessions,
    StateAt,
    Statistics,
)
from everbus.handlers.outcomes import Outcome
from everbus.handlers.patches import check_label
from everbus.handlers.sessions import check_bound, check_range, require_session

MAX_PAGE = 1000
MAX_TEXT = 256
MAX_CURSOR = 1024


def session_at(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the session at a version.

    Raises:
        NotFound: it has no such version.
    """
    current = require_session(session, command)
    request: body.SessionAt = command.body
    _check_version("version", request.version, current)

    answer = _fetched_reply(
        current, command, StateAt(version=request.version, current=current.version)
    )
    if answer.reply is None or answer.reply.tenant == current.tenant:
        return answer
    # History has no tenant, which never changes.
    then = msgspec.structs.replace(answer.reply, tenant=current.tenant)

    return msgspec.structs.replace(answer, reply=then)


def diff_session(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with the changes between two versions.

    Raises:
        NotFound: it has no such version.
        Invalid: the first version is later than the second.
    """
    current = require_session(session, command)
    request: body.DiffSession = command.body
    _check_version("from_version", request.from_version, current)
    _check_version("to_version", request.to_version, current)
    if request.from_version > request.to_version:
        raise Invalid(
            f"from_version is {request.from_version}, later than to_version "
            f"{request.to_version}; swap them",
            field="from_version",
        )
    between = ChangesBetween(
        from_version=request.from_version,
        to_version=request.to_version,
        current=current.version,
    )
    return _fetched_reply(current, command, between)


def list_sessions(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with a page of the sessions that the principal may see.

    Raises:
        Invalid: a filter cannot match any session.
    """
    request: body.ListSessions = command.body
    _check_filters(request)
    times = {
        name: check_bound(name, value)
        for name in ("active_since", "active_before")
        if (value := getattr(request, name)) is not None
    }
    found = FoundSessions(
        query=msgspec.structs.replace(request, **times),
        visible_to=""
        if command.sees_all
        else entry_for(command.principal, is_mad=command.is_mad),
        tenant=command.tenant,
    )
    return _fetched_reply(None, command, found)


def read_stats(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with counts over all sessions, and the content of each tier.
    """
    return _fetched_reply(None, command, Statistics())


def _fetched_reply(
    session: Session | None, command: Command, fetch: FetchRequest
) -> Outcome:
    if command.fetched is None:
        return Outcome(session=session, fetch=fetch)
    return Outcome(session=session, reply=command.fetched)


def _check_version(field: str, version: int, current: Session) -> None:
    if version < 1:
        raise Invalid(f"{field} is {version}; versions begin at 1", field=field)
    if version > current.version:
        raise NotFound(
            f"session {current.id} has no version {version} yet; it is at "
            f"{current.version}",
            session=current.id,
            current_version=current.version,
        )


def _check_filters(request: body.ListSessions) -> None:
    check_range("limit", request.limit, 1, MAX_PAGE)
    if request.owner is not None:
        check_name(request.owner, "owner")
    if request.participant is not None:
        check_mad(request.participant)
    if request.tag is not None:
        check_label(request.tag, "tag")
    _check_text("text", request.text, MAX_TEXT)
    _check_text("cursor", request.cursor, MAX_CURSOR)


def _check_text(field: str, text: str | None, most: int) -> None:
    if text is None:
        return
    check_json(text, field)
    if not text or len(text) > most or "\0" in text:
        raise Invalid(
            f"{field} has {len(text)} characters; wanted 1 to {most} without NUL",
            field=field,
        )
