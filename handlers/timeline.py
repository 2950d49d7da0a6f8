"""
Handlers of `timeline.*`: append an entry, read a page.
"""

from datetime import datetime
from typing import NamedTuple

import msgspec

from everbus.bus.errors import Invalid
from everbus.bus.messages import (
    Session,
    TimelineEntry,
    TimelinePage,
    check_json,
)
from everbus.handlers import commands as body
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import WarmPage
from everbus.handlers.outcomes import Event, Outcome
from everbus.handlers.patches import appended
from everbus.handlers.sessions import (
    check_bound,
    check_range,
    conflict,
    require_session,
    resumed,
)
from everbus.handlers.timeline_pages import page_of, page_range

MAX_PAGE = 1000
# Largest 64-bit integer; no timeline gets there.
MAX_SEQ = 2**63 - 1


def append_timeline(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Append one entry; the reply contains its seq.

    A dormant session is resumed first, which moves its version.

    Raises:
        VersionConflict: the newest entry has another seq than expected.
    """
    request: body.AppendTimeline = command.body
    current = require_last_seq(
        require_session(session, command), request.expected_last_seq
    )
    entry = checked_entry(request.entry, "entry")
    events: tuple[Event, ...] = ()
    if current.state == "dormant":
        current, awoken = resumed(current, command, now)
        events = (awoken,)
    after, packed = appended(current, command.mad, (entry,), now)
    event = Event(
        kind="timeline.appended",
        command_id=command.id,
        mad=command.mad,
        principal=command.principal,
        version=after.version,
        seq=after.last_seq,
        notices=after.notices,
    )
    return Outcome(
        session=after,
        reply={"seq": after.last_seq},
        events=(*events, event),
        entries=packed,
    )


def require_last_seq(current: Session, expected: int | None) -> Session:
    """
    Return the session, at the expected last seq if there is one.

    Raises:
        VersionConflict: its newest entry has another seq.
    """
    if expected is None or expected == current.last_seq:
        return current
    raise conflict(
        current,
        f"at entry {current.last_seq}, not {expected}; read what was appended and "
        "decide anew",
    )


def read_timeline(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with a page of the timeline, or fetch it from the lower tiers.

    Raises:
        Invalid: a bound or the limit is out of its range.
    """
    current = require_session(session, command)
    bounds = _bounds(current, command.body)
    page = command.fetched
    if page is None:
        page = _hot_page(current, bounds)
    if page is not None:
        return Outcome(session=current, reply=page)
    below = WarmPage(
        first=bounds.first,
        last=bounds.last,
        limit=bounds.limit,
        end=current.last_seq,
        since=bounds.since,
        until=bounds.until,
        newest_first=bounds.newest_first,
        tail=current.recent_timeline,
    )
    return Outcome(session=current, fetch=below)


class _Bounds(NamedTuple):
    first: int
    last: int
    limit: int
    since: datetime | None
    until: datetime | None
    newest_first: bool


def _bounds(session: Session, request: body.ReadTimeline) -> _Bounds:
    limit = check_range("limit", request.limit, 1, MAX_PAGE)
    first, last = 1, session.last_seq
    if request.after is not None:
        first = check_range("after", request.after, 0, MAX_SEQ) + 1
    elif request.before is None and request.since is None and request.until is None:
        # The newest entries, in either order. An ascending page then has no `next`; a
        # descending page has one, to older entries.
        first = 1 if request.newest_first else max(1, last - limit + 1)
    if request.before is not None:
        last = min(last, check_range("before", request.before, 0, MAX_SEQ) - 1)

    return _Bounds(
        first,
        last,
        limit,
        None if request.since is None else check_bound("since", request.since),
        None if request.until is None else check_bound("until", request.until),
        request.newest_first,
    )


def _hot_page(session: Session, bounds: _Bounds) -> TimelinePage | None:
    """
    The page, if the hot tail certainly contains all of it.
    """
    tail = session.recent_timeline
    tail_first = session.last_seq - len(tail) + 1
    first, last, sure = _within(tail, tail_first, bounds)
    if first > last:
        return page_of((), None)
    part = page_range(first, last, bounds.limit, bounds.newest_first)
    # If older entries may be in the range, the tail cannot tell whether its first entry
    # ends the last page.
    if part.first < tail_first or (part.first == tail_first and not sure):
        return None
    entries = tail[part.first - tail_first : part.last - tail_first + 1]

    return page_of(entries[::-1] if bounds.newest_first else entries, part.next)


def _within(
    tail: tuple[bytes, ...], tail_first: int, bounds: _Bounds
) -> tuple[int, int, bool]:
    """
    The range of seqs within the bounds of time, by the times of the tail, and whether
    its lower end is exact; if not, it may be higher, up to the tail's first.

    Entries are in order of time, so all entries before a too early one are too early,
    and all after a too late one are too late.
    """
    first, last, sure = bounds.first, bounds.last, True
    if bounds.since is None and bounds.until is None:
        return first, last, sure
    times = [msgspec.msgpack.decode(entry, type=TimelineEntry).at for entry in tail]
    if bounds.since is not None:
        early = sum(at < bounds.since for at in times)
        sure = early > 0 or first >= tail_first or tail_first == 1
        if early > 0:
            first = max(first, tail_first + early)
    if bounds.until is not None:
        # No entry of the tail: then at most the entry before the tail.
        early = sum(at < bounds.until for at in times)
        last = min(last, tail_first + early - 1)

    return first, last, sure


def checked_entry(raw: msgspec.Raw, field: str) -> bytes:
    """
    The entry in *raw*, encoded.

    Raises:
        Invalid: naming *field*: it is no JSON value.
    """
    try:
        entry = msgspec.msgpack.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{field} is not msgpack: {error}", field=field) from error
    check_json(entry, field)

    # The checked value is encoded again: in the original bytes a duplicate key could
    # hide a value from the check.
    return msgspec.msgpack.encode(entry)
