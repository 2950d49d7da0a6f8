"""
A warm tier in memory: for tests, and as the model for one of your own.

It takes record by record, in order, and keeps plain values; nothing survives the
process.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from bus.codec import pack
from bus.messages import (
    Checkpoint,
    CheckpointPage,
    Session,
    SessionChange,
    SessionPage,
    TimelineEntry,
)
from gateway.store.finding import (
    Place,
    checked,
    checkpoint_place,
    cursor_of,
    fits,
    place_in,
    place_of,
)
from gateway.store.memory.kept import Kept, change_of, plain
from gateway.store.outbox import Record
from gateway.store.recorded import in_order
from gateway.store.tiers import Held, Refused, WarmCounts
from gateway.store.words import words_of
from handlers.commands import ListSessions
from handlers.outcomes import Event

State = dict[str, Any]  # JSON values


class MemoryWarm:
    """
    A `gateway.store.tiers.WarmTier` in this process.
    """

    def __init__(self) -> None:
        self._kept = Kept()

    async def prepare(self) -> None:
        """
        Nothing to make.
        """

    async def write(self, records: Sequence[Record]) -> Sequence[Refused]:
        """
        Hold what *records* say; what cannot follow a stub is returned.
        """
        told = [(record, self._kept.take(record)) for record in records]

        return [Refused(record, reason) for record, reason in told if reason]

    async def sessions(
        self, session_ids: Sequence[str], *, context: bool = False
    ) -> dict[str, Held]:
        """
        What is held of these sessions; those not held are not in it.
        """
        found = {
            name: self._kept.held[name]
            for name in session_ids
            if name in self._kept.held
        }

        return found if context else {n: _summary(held) for n, held in found.items()}

    async def entries(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> Sequence[bytes]:
        """
        The timeline entries *first* to *last* that it holds, packed, ascending.
        """
        kept = self._kept.life(session_id, life).entries

        return [kept[seq] for seq in sorted(kept) if first <= seq <= last]

    async def first_since(
        self, session_id: str, life: datetime, at: datetime
    ) -> int | None:
        """
        The lowest seq of an entry at *at* or later.
        """
        kept = self._kept.life(session_id, life).entries

        return min((s for s in kept if _entry(kept[s]).at >= at), default=None)

    async def put_entries(
        self, session_id: str, life: datetime, entries: Sequence[bytes]
    ) -> None:
        """
        Insert packed entries that are not there yet; none of a life that is over.
        """
        if self._kept.is_past(session_id, life):
            return
        kept = self._kept.living(session_id, life).entries
        for packed in entries:
            entry = _entry(packed)
            kept.setdefault(entry.seq, pack(entry))

    async def purge(
        self, session_id: str, life: datetime, through: int, limit: int
    ) -> int:
        """
        Remove at most *limit* of the entries up to seq *through*; how many.
        """
        kept = self._kept.life(session_id, life).entries
        doomed = sorted(seq for seq in kept if seq <= through)[:limit]
        for seq in doomed:
            del kept[seq]
            self._kept.life(session_id, life).audits.pop(seq, None)

        return len(doomed)

    async def remove(self, session_id: str, life: datetime) -> None:
        """
        Remove everything of the session's lives up to this one; its archive is noted
        among the removals.
        """
        self._kept.remove(session_id, life)

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Held]:
        """
        Sessions last active earlier than *before*, no stubs, the longest idle first.
        """
        found = [
            held
            for held in self._kept.held.values()
            if held.archival_status == "ACTIVE" and held.session.last_active < before
            if after is None or place_of(held.session) > Place(*after)
        ]
        found.sort(key=lambda held: place_of(held.session))

        return [_summary(held) for held in found[:limit]]

    async def unfinished(
        self, what: Literal["unpurged", "unrestored"], limit: int
    ) -> Sequence[Held]:
        """
        Sessions with that mark.
        """
        found = [held for held in self._kept.held.values() if getattr(held, what)]

        return [_summary(held) for held in found[:limit]]

    async def swap(self, before: Held, after: Held) -> bool:
        """
        Put *after* in the place of *before*, if nothing has moved since; whether
        that was done.
        """
        name = before.session.id
        held = self._kept.held.get(name)
        if held is None or _moves(held) != _moves(before):
            return False
        # What is the same in both stays: *before* may have been read without it.
        session, context = held.session, held.full_context
        if after.session != before.session:
            session = plain(after.session)
            self._kept.words[name] = frozenset(words_of(session))
        if after.full_context != before.full_context:
            context = after.full_context
        status = after.archival_status
        self._kept.held[name] = msgspec.structs.replace(
            after,
            session=msgspec.structs.replace(session, archival_status=status),
            full_context=context,
        )
        return True

    async def removals(self, limit: int) -> Sequence[str]:
        """
        Pointers of archives whose sessions are gone.
        """
        return sorted(self._kept.removals)[:limit]

    async def removed(self, pointer: str) -> None:
        """
        Forget a pointer of `removals`.
        """
        self._kept.removals.discard(pointer)

    async def find(
        self, query: ListSessions, visible_to: str, tenant: str = ""
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first; see `ListSessions`.
        """
        words = frozenset(checked(query))
        behind = place_in(query.cursor) if query.cursor is not None else None
        found = [
            held.session
            for name, held in self._kept.held.items()
            if words <= self._kept.words[name]
            if fits(held.session, query, visible_to, tenant)
            if behind is None or place_of(held.session) < behind
        ]
        found.sort(key=place_of, reverse=True)
        page = tuple(found[: query.limit])
        more = len(found) > len(page)

        return SessionPage(page, cursor_of(place_of(page[-1])) if more else None)

    async def counts(self) -> WarmCounts:
        """
        What there is.
        """
        every = list(self._kept.held.values())
        states: Counter[str] = Counter(held.session.state for held in every)
        sizes = [len(pack(held)) for held in every]
        for life in self._kept.lives.values():
            sizes += map(len, life.entries.values())

        return WarmCounts(
            states=dict(states),
            bytes=sum(sizes),
            cold_bytes=sum(held.bytes for held in every),
            returned=sum(
                h.archival_status == "ACTIVE" and h.pointer != "" for h in every
            ),
        )

    async def changes(
        self, session_id: str, life: datetime, after: int, through: int
    ) -> Sequence[SessionChange]:
        """
        The steps to versions *after* + 1 to *through*, ascending.
        """
        kept = self._kept.life(session_id, life).steps

        return [change_of(kept[v]) for v in sorted(kept) if after < v <= through]

    async def events(
        self, session_id: str, life: datetime, after: tuple[int, int], limit: int
    ) -> Sequence[Event]:
        """
        What happened behind a version and so many notices, appends left out.
        """
        version, notices = after
        kept = self._kept.life(session_id, life)
        steps = [event for v, event in kept.steps.items() if v > version]
        found = [event for n, event in kept.notices.items() if n > notices]

        return in_order(steps, found, notices)[:limit]

    async def appended_by(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> dict[int, tuple[str, str]]:
        """
        By which command and principal the entries *first* to *last* were appended.
        """
        audits = self._kept.life(session_id, life).audits

        return {seq: told for seq, told in audits.items() if first <= seq <= last}

    async def snapshot(
        self, session_id: str, life: datetime, version: int
    ) -> Session | None:
        """
        The newest kept state at *version* or below; None if there is none.
        """
        kept = self._kept.life(session_id, life).snapshots
        newest = max((v for v in kept if v <= version), default=None)

        return None if newest is None else kept[newest]

    async def checkpoints(
        self, session_id: str, life: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.
        """
        kept = self._kept.life(session_id, life).checkpoints
        end = len(kept) if before is None else checkpoint_place(before) - 1
        first = max(end - limit, 0)
        page = tuple(checkpoint for checkpoint, _, _ in reversed(kept[first:end]))

        return CheckpointPage(page, str(first + 1) if page and first > 0 else None)

    async def checkpoint(
        self, session_id: str, life: datetime, checkpoint_id: str
    ) -> tuple[Checkpoint, State] | None:
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        for checkpoint, kept, _ in self._kept.life(session_id, life).checkpoints:
            if checkpoint.id == checkpoint_id:
                return checkpoint, kept
        return None

    def close(self) -> None:
        """
        Nothing to give back.
        """


def _summary(held: Held) -> Held:
    return msgspec.structs.replace(held, full_context={})


def _moves(held: Held) -> tuple[object, ...]:
    session = held.session
    counts = (session.version, session.last_seq, session.notices)

    return (session.created_at, *counts, held.moves, held.archival_status)


def _entry(packed: bytes) -> TimelineEntry:
    return msgspec.msgpack.decode(packed, type=TimelineEntry)
