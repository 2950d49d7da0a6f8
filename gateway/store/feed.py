"""
What happened in a session behind a place: wherever it lies, in its order, without gap.

The newest events are in the outbox until MongoDB holds them, so they are looked for
there first: what leaves the outbox while it is read is in MongoDB by then. Before
them MongoDB has changes and notices, and the timeline has what was appended, which
may be in the cold tier. What is in neither is on its way, and waited for.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from bus.codec import pack
from bus.errors import Unavailable
from bus.events import EventPage, Position, SessionEvent
from bus.messages import Session
from gateway.store.catchup import CatchUp
from gateway.store.recorded import APPENDED
from gateway.store.tiers import WarmTier
from gateway.store.timeline import Timeline
from gateway.store.unconfirmed import Committed, Newest, Unconfirmed
from handlers.live import told
from handlers.outcomes import Event
from handlers.wanted import EventsAfter

# A page has at most so many, and about so many bytes, whatever is asked for.
MOST_EVENTS = 250
PAGE_BYTES = 4 * 1024 * 1024


class Below(NamedTuple):
    """
    What has the events that have left the outbox.
    """

    warm: WarmTier
    timeline: Timeline


class _Author(msgspec.Struct, gc=False):
    author: str


_author = msgspec.msgpack.Decoder(_Author)


class Feed:
    """
    The events of all sessions, from whichever place has them.

    Args:
        outbox: None if only what MongoDB holds is asked for.
        below: None if there is no MongoDB; then the outbox keeps everything.
    """

    def __init__(self, outbox: Unconfirmed | None, below: Below | None) -> None:
        self._outbox = outbox
        self._below = below

    async def page(
        self, session: Session, wanted: EventsAfter, catch_up: CatchUp
    ) -> EventPage:
        """
        The events behind `wanted.after`, as many as fit on a page.

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
        events = _fitting(_told(session, wanted.after.life, found))

        return EventPage(
            events=events,
            next=events[-1].id,
            done=events[-1].position.number == wanted.through.number,
        )

    async def _found(
        self, session: Session, wanted: EventsAfter
    ) -> list[Committed] | None:
        """
        The next events; None if one of them is nowhere yet.
        """
        after, through = wanted.after, wanted.through
        last = min(after.number + min(wanted.limit, MOST_EVENTS), through.number)
        newest, held = Newest([])
        if self._outbox is not None:
            newest, held = await self._outbox.events(session, after.number, last)
        limit = last - after.number - len(newest)
        if limit == 0:
            return newest
        if self._below is None:
            return None
        end = through if held is None else Position(after.life, *held)
        older = await _older(self._below, session, (after, end), limit)

        return None if older is None else older + newest


async def _older(
    below: Below, session: Session, places: tuple[Position, Position], limit: int
) -> list[Committed] | None:
    """
    The first *limit* events between two places, which MongoDB holds if anything
    does; None if it lacks one of them.
    """
    after, end = places
    known: Sequence[Event] = ()
    if _moves(after) != _moves(end):
        known = await below.warm.events(
            session.id, session.created_at, _moves(after), limit
        )
    events = _merged(known, after, end, limit)
    if events is None:
        return None
    seqs = [event.seq for event in events if event.kind == APPENDED]
    if not seqs:
        return [Committed(event) for event in events]
    entries = await below.timeline.held(session, seqs[0], seqs[-1])
    if entries is None:
        return None
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
    The first *limit* events between two places: those that are *known*, and appends
    where the seq tells that there were some. None if one is missing.

    An entry stands behind all events of a lower seq, and ahead of all others.
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
        place = Position(after.life, event.version, event.seq, event.notices)
        if len(events) == limit:
            return events
    if _moves(place) != _moves(end):
        return None
    events += _appends(place, end.seq, limit - len(events))

    return events if len(events) == limit else None


def _appends(place: Position, last: int, most: int) -> Iterable[Event]:
    """
    The first *most* appends behind *place*, up to seq *last*; who made them, and
    when, tells their entry.
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
    An append with its entry; *audit* is not kept of entries that were put back.
    """
    command, principal = audit or ("", "")
    known = msgspec.structs.replace(
        event,
        mad=_author.decode(entry).author,
        command_id=command,
        principal=principal,
    )
    return Committed(known, entry)


def _moves(place: Position) -> tuple[int, int]:
    """
    What of a place is moved by all that is no append.
    """
    return place.version, place.notices


def _told(
    session: Session, life: str, found: Iterable[Committed]
) -> list[SessionEvent]:
    return [told(session.id, life, one.event, one.entry) for one in found]


def _fitting(events: list[SessionEvent]) -> tuple[SessionEvent, ...]:
    """
    The first of them, and as many behind it as PAGE_BYTES have room for.
    """
    size = 0
    for n, event in enumerate(events):
        size += len(pack(event))
        if n > 0 and size > PAGE_BYTES:
            return tuple(events[:n])
    return tuple(events)
