"""
What the kinds `timeline.*` mean: append an entry, read a page.
"""

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from bus.errors import Invalid
from bus.messages import (
    Session,
    TimelineEntry,
    TimelinePage,
    check_json,
)
from handlers import commands as body
from handlers.commands import Command
from handlers.outcomes import Event, Outcome
from handlers.pages import cut, page_of
from handlers.session import appended
from handlers.steps import check_bound, check_range, existing, resumed
from handlers.wanted import WarmPage

MAX_PAGE = 1000
# What 64 bits hold; no timeline will get there.
MAX_SEQ = 2**63 - 1


def append_timeline(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Add one entry; the reply, if one is wanted, carries its seq.

    A dormant session awakes first, which moves its version.
    """
    there = existing(session, command)
    wanted: body.AppendTimeline = command.body
    entry = _decoded(wanted.entry)
    check_json(entry, "entry")
    events: tuple[Event, ...] = ()
    if there.state == "dormant":
        there, awoken = resumed(there, command, now)
        events = (awoken,)
    # What was checked is what is kept: in the bytes as they came, a key given
    # twice could hide a value that no check has seen.
    after, packed = appended(there, command.mad, msgspec.msgpack.encode(entry), now)
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
        entry=packed,
    )


def read_timeline(session: Session | None, command: Command, now: datetime) -> Outcome:
    """
    Reply with a page of the timeline, or say what of it only the tiers below have.

    Raises:
        Invalid: a bound or the limit is out of its range.
    """
    there = existing(session, command)
    bounds = _bounds(there, command.body)
    page = command.given
    if page is None:
        page = _hot_page(there, bounds)
    if page is not None:
        return Outcome(session=there, reply=page)
    below = WarmPage(
        first=bounds.first,
        last=bounds.last,
        limit=bounds.limit,
        end=there.last_seq,
        since=bounds.since,
        until=bounds.until,
        newest_first=bounds.newest_first,
        tail=there.recent_timeline,
    )
    return Outcome(session=there, wants=below)


class _Bounds(NamedTuple):
    first: int
    last: int
    limit: int
    since: datetime | None
    until: datetime | None
    newest_first: bool


def _bounds(session: Session, wanted: body.ReadTimeline) -> _Bounds:
    limit = check_range("limit", wanted.limit, 1, MAX_PAGE)
    first, last = 1, session.last_seq
    if wanted.after is not None:
        first = check_range("after", wanted.after, 0, MAX_SEQ) + 1
    elif wanted.before is None and wanted.since is None and wanted.until is None:
        # The newest, whichever of them is shown first; then there is no `next` to
        # what is newer, but to what is older there is, if that is the direction.
        first = 1 if wanted.newest_first else max(1, last - limit + 1)
    if wanted.before is not None:
        last = min(last, check_range("before", wanted.before, 0, MAX_SEQ) - 1)

    return _Bounds(
        first,
        last,
        limit,
        None if wanted.since is None else check_bound("since", wanted.since),
        None if wanted.until is None else check_bound("until", wanted.until),
        wanted.newest_first,
    )


def _hot_page(session: Session, bounds: _Bounds) -> TimelinePage | None:
    """
    The page, if the hot tail has all of it for sure.
    """
    tail = session.recent_timeline
    tail_first = session.last_seq - len(tail) + 1
    first, last, sure = _within(tail, tail_first, bounds)
    if first > last:
        return page_of((), None)
    part = cut(first, last, bounds.limit, bounds.newest_first)
    # Where it is not sure that there is nothing older in the range, the tail cannot
    # tell whether its first entry is the last of the pages.
    if part.first < tail_first or (part.first == tail_first and not sure):
        return None
    entries = tail[part.first - tail_first : part.last - tail_first + 1]

    return page_of(entries[::-1] if bounds.newest_first else entries, part.next)


def _within(
    tail: tuple[bytes, ...], tail_first: int, bounds: _Bounds
) -> tuple[int, int, bool]:
    """
    The range of seqs that is left when the times of the tail are considered, and
    whether its lower end is exact; else it may be higher, up to the tail's first.

    Entries are in order of time, so one that is too early or too late says the
    same of all on that side of it.
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
        # None of the tail: then it is the one before the tail at the highest.
        early = sum(at < bounds.until for at in times)
        last = min(last, tail_first + early - 1)

    return first, last, sure


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.msgpack.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"entry is not msgpack: {error}", field="entry") from error
