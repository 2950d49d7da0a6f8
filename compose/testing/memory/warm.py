"""
A warm tier in memory: for tests, and as the model for one of your own.

It takes record by record, in order, and keeps plain values; nothing survives the
process.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    Session,
    SessionChange,
    SessionPage,
    TimelineEntry,
    pack,
)
from everbus.compose.testing.memory.warm_state import WarmState, change_of, plain
from everbus.gateway.store.catalogue_query import (
    PageCursor,
    checked,
    checkpoint_place,
    cursor_of,
    fits,
    place_in,
    place_of,
)
from everbus.gateway.store.claims import Claim, Length
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.read_bound import ReadBound, fitting, until_full
from everbus.gateway.store.record_effects import in_order
from everbus.gateway.store.search_words import words_of
from everbus.gateway.store.tiers import (
    Claimed,
    WarmCounts,
    WarmSession,
    WriteRefused,
)
from everbus.gateway.store.warm_roles import MOST_COMMANDS
from everbus.handlers.commands import ListSessions
from everbus.handlers.outcomes import Event

State = dict[str, Any]  # JSON values
_NONE = (0, 0, 0)


class MemoryWarm:
    """
    A `gateway.store.tiers.WarmTier` in this process.
    """

    def __init__(self) -> None:
        self._kept = WarmState()

    async def prepare(self) -> None:
        """
        Nothing to make.
        """

    async def write(self, records: Sequence[Record]) -> Sequence[WriteRefused]:
        """
        Hold what *records* say; what cannot follow a stub is returned.
        """
        answers = [self._kept.take(record) for record in records]

        return [refused for refused in answers if refused is not None]

    async def claim(self, claims: Sequence[Claim]) -> dict[str, Claimed]:
        """
        Claim sessions for a lineage, see `store.claims`.
        """
        found: dict[str, Claimed] = {}
        for claim in claims:
            claimed = self._kept.claim(claim)
            held = _summary(claimed.held) if claimed.held else None
            found[claim.session] = msgspec.structs.replace(claimed, held=held)

        return found

    async def commands(
        self, session_id: str, generation: datetime, beyond: Length, since: datetime
    ) -> Sequence[tuple[str, str]]:
        """
        MAD and command id of the newest effects behind *beyond*, from *since* on.
        """
        kept = self._kept.generation(session_id, generation)
        version, seq, notices = beyond[1:] if beyond.generation == generation else _NONE
        effects = [e for v, e in kept.steps.items() if v > version]
        effects += [e for n, e in kept.notices.items() if n > notices]
        found = [(e.at, e.mad, e.command_id) for e in effects if e.at is not None]
        for at_seq, (command, _) in kept.audits.items():
            entry = _entry(kept.entries[at_seq])
            if at_seq > seq:
                found.append((entry.at, entry.author, command))
        newest = sorted((one for one in found if one[0] >= since), reverse=True)

        return [(mad, command) for _, mad, command in newest[:MOST_COMMANDS]]

    async def sessions(
        self, session_ids: Sequence[str], *, context: bool = False
    ) -> dict[str, WarmSession]:
        """
        What is held of these sessions; those not held are not in it.
        """
        found = {
            name: self._kept.sessions[name]
            for name in session_ids
            if name in self._kept.sessions
        }

        return (
            found
            if context
            else {n: _summary(warm_session) for n, warm_session in found.items()}
        )

    async def entries(
        self,
        session_id: str,
        generation: datetime,
        first: int,
        last: int,
        bound: ReadBound | None = None,
    ) -> Sequence[bytes]:
        """
        The timeline entries *first* to *last* that it holds, packed, ascending.
        """
        kept = self._kept.generation(session_id, generation).entries

        step = -1 if bound is not None and bound.newest_first else 1
        found = [kept[seq] for seq in sorted(kept)[::step] if first <= seq <= last]

        return until_full(found, len, bound)[::step]

    async def first_since(
        self, session_id: str, generation: datetime, at: datetime
    ) -> int | None:
        """
        The lowest seq of an entry at *at* or later.
        """
        kept = self._kept.generation(session_id, generation).entries

        return min((s for s in kept if _entry(kept[s]).at >= at), default=None)

    async def put_entries(
        self, session_id: str, generation: datetime, entries: Sequence[bytes]
    ) -> None:
        """
        Insert packed entries that are not there yet; none of a generation that is over.
        """
        if self._kept.is_past(session_id, generation):
            return
        kept = self._kept.generation_to_write(session_id, generation).entries
        for packed in entries:
            entry = _entry(packed)
            kept.setdefault(entry.seq, pack(entry))

    async def purge(
        self, session_id: str, generation: datetime, through: int, limit: int
    ) -> int:
        """
        Remove at most *limit* of the entries up to seq *through*; how many.
        """
        kept = self._kept.generation(session_id, generation).entries
        doomed = sorted(seq for seq in kept if seq <= through)[:limit]
        for seq in doomed:
            del kept[seq]
            self._kept.generation(session_id, generation).audits.pop(seq, None)

        return len(doomed)

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[WarmSession]:
        """
        Sessions last active earlier than *before*, no stubs, the longest idle first.
        """
        found = [
            warm_session
            for warm_session in self._kept.sessions.values()
            if warm_session.archival_status == "ACTIVE"
            and warm_session.session.last_active < before
            if after is None or place_of(warm_session.session) > PageCursor(*after)
        ]
        found.sort(key=lambda warm_session: place_of(warm_session.session))

        return [_summary(warm_session) for warm_session in found[:limit]]

    async def unfinished(
        self, what: Literal["unpurged", "unrestored"], limit: int
    ) -> Sequence[WarmSession]:
        """
        Sessions with that mark.
        """
        found = [
            warm_session
            for warm_session in self._kept.sessions.values()
            if getattr(warm_session, what)
        ]

        return [_summary(warm_session) for warm_session in found[:limit]]

    async def swap(self, before: WarmSession, after: WarmSession) -> bool:
        """
        Put *after* in the place of *before*, if nothing has moved since; whether
        that was done.
        """
        name = before.session.id
        warm_session = self._kept.sessions.get(name)
        if warm_session is None or _moves(warm_session) != _moves(before):
            return False
        # What is the same in both stays: *before* may have been read without it.
        session, context = warm_session.session, warm_session.full_context
        if after.session != before.session:
            session = plain(after.session)
            self._kept.words[name] = frozenset(words_of(session))
        if after.full_context != before.full_context:
            context = after.full_context
        status = after.archival_status
        self._kept.sessions[name] = msgspec.structs.replace(
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
        self,
        query: ListSessions,
        visible_to: str,
        tenant: str = "",
        bound: ReadBound | None = None,
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first; see `ListSessions`.
        """
        words = frozenset(checked(query))
        behind = place_in(query.cursor) if query.cursor is not None else None
        found = [
            warm_session.session
            for name, warm_session in self._kept.sessions.items()
            if words <= self._kept.words[name]
            if fits(warm_session.session, query, visible_to, tenant)
            if behind is None or place_of(warm_session.session) < behind
        ]
        found.sort(key=place_of, reverse=True)
        most = sys.maxsize if bound is None else bound.most_bytes
        page = tuple(fitting(found[: query.limit], _packed_bytes, most))
        more = len(found) > len(page)

        return SessionPage(page, cursor_of(place_of(page[-1])) if more else None)

    async def every(self, after: str, limit: int) -> Sequence[WarmSession]:
        """
        Every session, by its id.
        """
        ids = sorted(one for one in self._kept.sessions if one > after)

        return [self._kept.sessions[one] for one in ids[:limit]]

    async def renew_words(self, limit: int) -> int:
        """
        Nothing: what is in memory is of this version.
        """
        return min(limit, 0)

    async def counts(self) -> WarmCounts:
        """
        What there is.
        """
        every = list(self._kept.sessions.values())
        states: Counter[str] = Counter(
            warm_session.session.state for warm_session in every
        )
        sizes = [len(pack(warm_session)) for warm_session in every]
        for generation in self._kept.generations.values():
            sizes += map(len, generation.entries.values())

        return WarmCounts(
            states=dict(states),
            bytes=sum(sizes),
            cold_bytes=sum(warm_session.bytes for warm_session in every),
            returned=sum(
                h.archival_status == "ACTIVE" and h.pointer != "" for h in every
            ),
        )

    async def changes(
        self,
        session_id: str,
        generation: datetime,
        after: int,
        through: int,
        bound: ReadBound | None = None,
    ) -> Sequence[SessionChange]:
        """
        The steps to versions *after* + 1 to *through*, ascending.
        """
        kept = self._kept.generation(session_id, generation).steps

        step = -1 if bound is not None and bound.newest_first else 1
        versions = [v for v in sorted(kept)[::step] if after < v <= through]
        found = [change_of(kept[v]) for v in versions]

        return until_full(found, _packed_bytes, bound)[::step]

    async def events(
        self,
        session_id: str,
        generation: datetime,
        after: tuple[int, int],
        limit: int,
        bound: ReadBound | None = None,
    ) -> Sequence[Event]:
        """
        What happened behind a version and so many notices, appends left out.
        """
        version, notices = after
        kept = self._kept.generation(session_id, generation)
        steps = [event for v, event in kept.steps.items() if v > version]
        found = [event for n, event in kept.notices.items() if n > notices]

        ordered = in_order(steps, found, notices)[:limit]

        return until_full(ordered, _packed_bytes, bound)

    async def appended_by(
        self, session_id: str, generation: datetime, first: int, last: int
    ) -> dict[int, tuple[str, str]]:
        """
        By which command and principal the entries *first* to *last* were appended.
        """
        audits = self._kept.generation(session_id, generation).audits

        return {seq: answers for seq, answers in audits.items() if first <= seq <= last}

    async def snapshot(
        self, session_id: str, generation: datetime, version: int
    ) -> Session | None:
        """
        The newest kept state at *version* or below; None if there is none.
        """
        kept = self._kept.generation(session_id, generation).snapshots
        newest = max((v for v in kept if v <= version), default=None)

        return None if newest is None else kept[newest]

    async def checkpoints(
        self, session_id: str, generation: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.
        """
        kept = self._kept.generation(session_id, generation).checkpoints
        end = len(kept) if before is None else checkpoint_place(before) - 1
        first = max(end - limit, 0)
        page = tuple(checkpoint for checkpoint, _, _ in reversed(kept[first:end]))

        return CheckpointPage(page, str(first + 1) if page and first > 0 else None)

    async def checkpoint(
        self, session_id: str, generation: datetime, checkpoint_id: str
    ) -> tuple[Checkpoint, State] | None:
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        for checkpoint, kept, _ in self._kept.generation(
            session_id, generation
        ).checkpoints:
            if checkpoint.id == checkpoint_id:
                return checkpoint, kept
        return None

    def close(self) -> None:
        """
        Nothing to give back.
        """


def _summary(warm_session: WarmSession) -> WarmSession:
    return msgspec.structs.replace(warm_session, full_context={})


def _moves(warm_session: WarmSession) -> tuple[object, ...]:
    session = warm_session.session
    counts = (session.version, session.last_seq, session.notices)

    return (
        session.created_at,
        *counts,
        warm_session.moves,
        warm_session.archival_status,
    )


def _entry(packed: bytes) -> TimelineEntry:
    return msgspec.msgpack.decode(packed, type=TimelineEntry)


def _packed_bytes(item: msgspec.Struct) -> int:
    return len(pack(item))
