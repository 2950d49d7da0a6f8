"""
What of a session MongoDB does not hold yet: its newest events, from the outbox.

The outbox is read from its newest entry backwards, only as far as is asked for: what
was missed in a moment lies at its end, however long it has grown while the archiver
is away.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

from bus.codec import pack
from bus.events import DELETED, UNSEEN
from bus.keys import partition_of
from bus.messages import Session
from bus.wire import Command
from gateway.store import names
from gateway.store.outbox import VALUE_FIELD, Record, unpack_records
from gateway.store.recorded import APPENDED, is_notice, own_events
from handlers.outcomes import Event

SCANS_AT_ONCE = 4
# Entries of one round trip, at first and at most; fewer while they are large.
FIRST_ENTRIES = 16
MOST_ENTRIES = 256
ROUND_BYTES = 2 * 1024 * 1024
# So far back and no further: an archiver this far behind is to be mended first.
SCAN_BYTES = 64 * 1024 * 1024


# Version, seq and notices.
Counts = tuple[int, int, int]


class Committed(NamedTuple):
    """
    An event as its commit left it.

    Attributes:
        entry: the timeline entry, encoded, of an append.
    """

    event: Event
    entry: bytes | None = None

    @property
    def number(self) -> int:
        """
        Its number among the events of its session.
        """
        return number_of(self.event)


class Newest(NamedTuple):
    """
    The newest of the events that were asked for.

    Attributes:
        events: ascending, without a hole up to the last that was asked for.
        held: version, seq and notices ahead of *events* (at their end, if there are
            none): up to there MongoDB holds everything. None: it holds all there is.
    """

    events: list[Committed]
    held: Counts | None = None


class Exchange(Protocol):
    """
    A connection to the bus, as `bus.wire.Wire` is one.
    """

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """
        The replies to *commands*, in order.
        """
        ...

    async def close(self) -> None:
        """
        Close it, if it is open.
        """
        ...


class Unconfirmed:
    """
    The outboxes of all partitions, as those read them who watch.

    Args:
        connect: makes a connection, which is opened when it is first used.
    """

    def __init__(self, connect: Callable[[], Exchange], partitions: int) -> None:
        self._partitions = partitions
        self._wires = [connect() for _ in range(SCANS_AT_ONCE)]
        self._idle = list(self._wires)
        self._turns = asyncio.Semaphore(SCANS_AT_ONCE)

    async def events(self, session: Session, after: int, last: int) -> Newest:
        """
        Those of the session's events *after* + 1 to *last* that MongoDB may not hold;
        none if it holds all of them, or if they are further back than SCAN_BYTES.

        Raises:
            WireFailed: the connection broke.
        """
        async with self._connected() as wire:
            counts = await self._held(wire, session)
            if counts is None:
                return Newest([])
            held = sum(counts)
            if last <= held:
                return Newest([], counts)
            found: dict[int, Committed] = {}
            lowest: Event | None = None
            async for record in self._records(wire, session):
                for one in _committed(record):
                    if lowest is None or one.number < number_of(lowest):
                        lowest = one.event
                    if after < one.number <= last:
                        found[one.number] = one
                if lowest is not None and number_of(lowest) <= max(after, held) + 1:
                    break
        return _newest(found, lowest, last)

    async def close(self) -> None:
        """
        Close the connections.
        """
        for wire in self._wires:
            await wire.close()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Exchange]:
        async with self._turns:
            wire = self._idle.pop()
            try:
                yield wire
            finally:
                self._idle.append(wire)

    async def _held(self, wire: Exchange, session: Session) -> Counts | None:
        """
        Up to which version, seq and notices MongoDB holds the session for certain;
        None: all of it, since there is no hot copy, which would stay until it does.
        """
        p = partition_of(session.id, self._partitions)
        fields = ("created_at", "durable_version", "durable_seq", "durable_notices")
        command = ("HMGET", names.session(p, session.id), *fields)
        [[life, *counts]] = _checked(await wire.exchange([command]))
        if life != pack(session.created_at):
            return None
        version, seq, notices = (int(count or 0) for count in counts)

        return version, seq, notices

    async def _records(self, wire: Exchange, session: Session) -> AsyncIterator[Record]:
        """
        The session's records in the outbox, the newest first.
        """
        outbox = names.outbox(partition_of(session.id, self._partitions))
        name, behind = session.id.encode(), "+"
        count, seen = FIRST_ENTRIES, 0
        while seen < SCAN_BYTES:
            command = ("XREVRANGE", outbox, behind, "-", "COUNT", count)
            [entries] = _checked(await wire.exchange([command]))
            size = 0
            for _, fields in entries:
                value = _value(fields)
                size += len(value)
                # Most are of other sessions, and need not be decoded to know it.
                if name in value:
                    for record in _of(session, value):
                        yield record
            if len(entries) < count:
                return
            behind = f"({entries[-1][0].decode()}"
            seen += size
            count = _paced(count, size)


def number_of(event: Event) -> int:
    """
    The number of an event among those of its session.
    """
    return event.version + event.seq + event.notices


def _newest(found: dict[int, Committed], lowest: Event | None, last: int) -> Newest:
    """
    What was *found*, if it has no hole up to *last*; *lowest* is the first event of the
    session that was there, be it behind that: what is ahead of it had left before.
    """
    events = [found[number] for number in sorted(found)]
    if events:
        lowest = events[0].event
        if len(events) != last - events[0].number + 1:
            return Newest([])

    return Newest(events, None if lowest is None else _before(lowest))


def _before(event: Event) -> Counts:
    """
    The place from which the event led on.
    """
    appended, noticed = event.kind == APPENDED, is_notice(event)
    moved = not appended and not noticed

    return event.version - moved, event.seq - appended, event.notices - noticed


def _of(session: Session, value: bytes) -> Iterator[Record]:
    for record in reversed(unpack_records(value)):
        if (record.session, record.created_at) == (session.id, session.created_at):
            yield record


def _committed(record: Record) -> Iterator[Committed]:
    entries = iter(record.entries)
    for event in own_events(record):
        if event.kind == APPENDED:
            # A session that ended in the same commit has none any more.
            entry = next(entries, None)
            if entry is not None:
                yield Committed(event, bytes(entry))
        elif event.kind not in UNSEEN and event.kind != DELETED:
            yield Committed(event)


def _paced(count: int, size: int) -> int:
    if size > ROUND_BYTES:
        return max(1, count // 2)
    return min(MOST_ENTRIES, 2 * count) if size < ROUND_BYTES // 2 else count


def _value(fields: Sequence[bytes]) -> bytes:
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == VALUE_FIELD:
            return value
    return b""


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
