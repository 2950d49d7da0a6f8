"""
The events of a session behind a position, from all tiers, in order, without a gap.

The newest events are in the outbox until MongoDB holds them, so the feed reads the
outbox first: an entry that leaves it meanwhile is in MongoDB by then. For older events
MongoDB has changes and notices, and the timeline, perhaps in the cold tier, has the
appends. The feed waits for an event in neither place, which is on its way.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

import msgspec

from everbus.bus.errors import Unavailable
from everbus.bus.events import EventPage, Position, SessionEvent
from everbus.bus.messages import Session, pack
from everbus.gateway.store.drain_wait import DrainWait
from everbus.gateway.store.outbox_reader import Committed, Newest, OutboxReader
from everbus.gateway.store.read_bound import PAGE_BYTES, ReadBound, fitting
from everbus.gateway.store.record_effects import APPENDED
from everbus.gateway.store.timeline import Timeline
from everbus.gateway.store.warm_roles import WarmSessions
from everbus.handlers.fetch_requests import EventsAfter
from everbus.handlers.live import session_event
from everbus.handlers.outcomes import Event

MOST_EVENTS = 250


class EventTiers(NamedTuple):
    """
    The tiers with the events that left the outbox.
    """

    warm: WarmSessions
    timeline: Timeline


class _Author(msgspec.Struct, gc=False):
    author: str


_author = msgspec.msgpack.Decoder(_Author)


class EventFeed:
    """
    The events of all sessions, from whichever place has them.

    Args:
        outbox: None to read MongoDB alone.
        below: None if there is no MongoDB; then the outbox keeps everything.
    """

    def __init__(
        self,
        outbox: OutboxReader | None,
        below: EventTiers | None,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        self._outbox = outbox
        self._below = below
        self._bound = ReadBound(page_bytes)

    async def page(
        self, session: Session, wanted: EventsAfter, catch_up: DrainWait
    ) -> EventPage:
        """
        The events behind `wanted.after` that fit on a page.

        Raises:
            Unavailable: a tier is away, or the archiver is too far behind.
            Corrupted: a part of the archive is not what was put there.
        """
        found = await catch_up.first(lambda: self._found(session, wanted))
        if found is None:
            raise Unavailable(
                f"events of {session.id} behind {wanted.after.id} are in neither "
                "outbox nor MongoDB yet: the archiver is behind. Try again later"
            )
        events = fitting(
            _as_session_events(session, wanted.after.generation, found),
            lambda event: len(pack(event)),
            self._bound.most_bytes,
        )
        return EventPage(
            events=tuple(events),
            next=events[-1].id,
            done=events[-1].position.number == wanted.through.number,
        )

    async def _found(
        self, session: Session, wanted: EventsAfter
    ) -> list[Committed] | None:
        """
        The next events; None if one of them is in no tier yet.
        """
        after, through = wanted.after, wanted.through
        last = min(after.number + min(wanted.limit, MOST_EVENTS), through.number)
        newest, durable = Newest([])
        if self._outbox is not None:
            newest, durable = await self._outbox.events(session, after.number, last)
        # The bytes of the newest events may have ended them before *last*.
        limit = (newest[0].number - 1 if newest else last) - after.number
        if limit == 0:
            return newest
        if self._below is None:
            return None
        end = through if durable is None else Position(after.generation, *durable)
        older = await _older(self._below, session, (after, end), limit, self._bound)
        if older is None or len(older) < limit:
            return older
        return older + newest


async def _older(
    below: EventTiers,
    session: Session,
    places: tuple[Position, Position],
    limit: int,
    bound: ReadBound,
) -> list[Committed] | None:
    """
    The first *limit* events between two positions from MongoDB, fewer if they fill a
    page; None if it lacks one of them.
    """
    after, end = places
    known: Sequence[Event] = ()
    if _moves(after) != _moves(end):
        known = await below.warm.events(
            session.id, session.created_at, _moves(after), limit, bound
        )
        if known and sum(len(pack(event)) for event in known) >= bound.most_bytes:
            # The bytes may have ended them: nothing behind the last one is known.
            end = _position_of(known[-1], after.generation)
            limit = min(limit, end.number - after.number)
    events = _merged(known, after, end, limit)
    if events is None:
        return None
    seqs = [event.seq for event in events if event.kind == APPENDED]
    if not seqs:
        return [Committed(event) for event in events]
    entries = await below.timeline.stored(session, seqs[0], seqs[-1], bound)
    if entries is None:
        return None
    end_seq = seqs[0] + len(entries)
    events = list(takewhile(lambda e: e.kind != APPENDED or e.seq < end_seq, events))
    audits = await below.warm.appended_by(
        session.id, session.created_at, seqs[0], seqs[-1]
    )
    return [
        _appended(event, entries[event.seq - seqs[0]], audits.get(event.seq))
        if event.kind == APPENDED
        else Committed(event)
        for event in events
    ]


def _merged(
    known: Iterable[Event], after: Position, end: Position, limit: int
) -> list[Event] | None:
    """
    The first *limit* events between two positions: the *known* ones, and appends where
    the seq implies them. None if one is missing.

    An entry comes after all events of a lower seq, and before all others.
    """
    events: list[Event] = []
    place = after
    for event in known:
        if event.version > end.version or event.notices > end.notices:
            break
        steps = event.version + event.notices - place.version - place.notices
        if steps != 1 or event.seq < place.seq:
            return None
        events += _appends(place, event.seq, limit - len(events))
        if len(events) >= limit:
            return events
        events.append(event)
        place = Position(after.generation, event.version, event.seq, event.notices)
        if len(events) == limit:
            return events
    if _moves(place) != _moves(end):
        return None
    events += _appends(place, end.seq, limit - len(events))

    return events if len(events) == limit else None


def _appends(place: Position, last: int, most: int) -> Iterable[Event]:
    """
    The first *most* appends behind *place*, up to seq *last*; author and time are in
    their entries.
    """
    for seq in range(place.seq + 1, min(last, place.seq + most) + 1):
        yield Event(
            kind=APPENDED,
            command_id="",
            mad="",
            principal="",
            version=place.version,
            seq=seq,
            notices=place.notices,
        )


def _appended(event: Event, entry: bytes, audit: tuple[str, str] | None) -> Committed:
    """
    An append with its entry; entries that were put back have no *audit*.
    """
    command, principal = audit or ("", "")
    known = msgspec.structs.replace(
        event,
        mad=_author.decode(entry).author,
        command_id=command,
        principal=principal,
    )
    return Committed(known, entry)


def _position_of(event: Event, generation: str) -> Position:
    return Position(generation, event.version, event.seq, event.notices)


def _moves(place: Position) -> tuple[int, int]:
    """
    The counts of a position that events other than appends move.
    """
    return place.version, place.notices


def _as_session_events(
    session: Session, generation: str, found: Iterable[Committed]
) -> list[SessionEvent]:
    return [
        session_event(session.id, generation, one.event, one.entry) for one in found
    ]
