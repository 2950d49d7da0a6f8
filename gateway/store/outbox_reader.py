"""
Reads the events of a session that MongoDB does not hold yet, from the outbox.

It reads backwards from the newest entry, only as far as needed: events missed a moment
ago are at the end, however long the outbox is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

import msgspec

from everbus.bus.events import DELETED, TIER_MOVES
from everbus.bus.keys import partition_of
from everbus.bus.messages import Session, pack
from everbus.bus.wire import Command
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import VALUE_FIELD, Record, unpack_records
from everbus.gateway.store.read_bound import PAGE_BYTES
from everbus.gateway.store.record_effects import APPENDED, is_notice, own_events
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.handlers.outcomes import Event

SCANS_AT_ONCE = 4
# Entries of one round trip, at first and at most; fewer while they are large.
FIRST_ENTRIES = 4
MOST_ENTRIES = 256
ROUND_BYTES = 2 * 1024 * 1024
# Limit of one scan: with an archiver this far behind, repair that first.
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
        durable: version, seq and notices ahead of *events* (at their end, if there are
            none): up to there MongoDB holds everything. None: it holds all there is.
    """

    events: list[Committed]
    durable: Counts | None = None


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


class OutboxReader:
    """
    The outboxes of all partitions, as subscriptions read them.

    Args:
        connect: makes a connection that opens at its first use.
        sealed: opens sealed records; None without encryption.
    """

    def __init__(
        self,
        connect: Callable[[], Exchange],
        partitions: int,
        sealed: SealedCopies | None = None,
    ) -> None:
        self._sealed = sealed
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
            counts = await self._durable_counts(wire, session)
            if counts is None:
                return Newest([])
            durable = sum(counts)
            if last <= durable:
                return Newest([], counts)
            found: dict[int, Committed] = {}
            lowest: Event | None = None
            kept = _Earliest()
            async for record in self._records(wire, session):
                for one in _committed(record):
                    if lowest is None or one.number < number_of(lowest):
                        lowest = one.event
                    if after < one.number <= last:
                        found[one.number] = one
                        last = kept.last_of(found, one, last)
                if lowest is not None and number_of(lowest) <= max(after, durable) + 1:
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

    async def _durable_counts(self, wire: Exchange, session: Session) -> Counts | None:
        """
        Version, seq and notices up to which MongoDB certainly holds the session; None:
        all of it, since a hot copy stays until then and there is none.
        """
        p = partition_of(session.id, self._partitions)
        fields = ("created_at", "durable_version", "durable_seq", "durable_notices")
        command = ("HMGET", key_names.session(p, session.id), *fields)
        [[created, *counts]] = _checked(await wire.exchange([command]))
        if created != pack(session.created_at):
            return None
        version, seq, notices = (int(count or 0) for count in counts)

        return version, seq, notices

    async def _records(self, wire: Exchange, session: Session) -> AsyncIterator[Record]:
        """
        The session's records in the outbox, the newest first.
        """
        outbox = key_names.outbox(partition_of(session.id, self._partitions))
        name, behind = session.id.encode(), "+"
        count, seen = FIRST_ENTRIES, 0
        while seen < SCAN_BYTES:
            command = ("XREVRANGE", outbox, behind, "-", "COUNT", count)
            [entries] = _checked(await wire.exchange([command]))
            size = 0
            for _, fields in entries:
                value = _value(fields)
                size += len(value)
                # Most belong to other sessions; this check saves decoding them.
                if name in value:
                    if self._sealed is not None:
                        value = await self._sealed.open_records(value)
                    for record in _of(session, value):
                        yield await self._opened(session, record)
            if len(entries) < count:
                return
            behind = f"({entries[-1][0].decode()}"
            seen += size
            count = _paced(count, size)

    async def _opened(self, session: Session, record: Record) -> Record:
        if self._sealed is None or not record.entries:
            return record
        packed = [bytes(entry) for entry in record.entries]
        entries = await self._sealed.open_entries(session, packed)

        return msgspec.structs.replace(record, entries=tuple(map(msgspec.Raw, entries)))


class _Earliest:
    """
    Keeps the earliest events that fill a page: the scan meets them last.
    """

    def __init__(self, most_bytes: int = 2 * PAGE_BYTES) -> None:
        self._most = most_bytes
        self._held = 0

    def last_of(self, found: dict[int, Committed], new: Committed, last: int) -> int:
        """
        Count *new*, drop the latest of *found* beyond the bound; the last wanted now.
        """
        self._held += len(new.entry or b"")
        while self._held > self._most and len(found) > 1:
            latest = max(found)
            self._held -= len(found.pop(latest).entry or b"")
            last = latest - 1
        return last


def number_of(event: Event) -> int:
    """
    The number of an event among those of its session.
    """
    return event.version + event.seq + event.notices


def _newest(found: dict[int, Committed], lowest: Event | None, last: int) -> Newest:
    """
    The *found* events, if they have no hole up to *last*; *lowest* is the session's
    first event in the outbox, perhaps beyond *last*: earlier ones had left before.
    """
    events = [found[number] for number in sorted(found)]
    if events:
        lowest = events[0].event
        if len(events) != last - events[0].number + 1:
            return Newest([])

    return Newest(events, None if lowest is None else _before(lowest))


def _before(event: Event) -> Counts:
    """
    The counts before the event.
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
        elif event.kind not in TIER_MOVES and event.kind != DELETED:
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
