"""
The warm tier in MongoDB, the eternal truth.

Every change is only ever forward or a compare-and-set, so that whatever an archiver
repeats, also long after another one has gone on, is the same as done once.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from bus.messages import (
    Checkpoint,
    CheckpointPage,
    Session,
    SessionChange,
    SessionPage,
)
from gateway.store.mongo.checkpoints import Checkpoints
from gateway.store.mongo.documents import (
    ENTRY_KEY,
    REMOVALS,
    SESSIONS,
    SNAPSHOTS,
    SUMMARY,
    TIMELINE,
    WITH_CONTEXT,
    entry_document,
    held_of,
    packed_entry,
    session_of,
    swapped,
)
from gateway.store.mongo.driver import Driver, Mongo
from gateway.store.mongo.ends import End, is_past
from gateway.store.mongo.events import Events
from gateway.store.mongo.indexes import make_indexes
from gateway.store.mongo.operations import (
    Document,
    Insert,
    Update,
    counted,
)
from gateway.store.mongo.search import Search
from gateway.store.mongo.writes import IDS_AT_ONCE, Writes
from gateway.store.outbox import Record
from gateway.store.tiers import Held, Refused, WarmCounts
from handlers.commands import ListSessions
from handlers.outcomes import Event

CALL_TIMEOUT_MS = 10_000


class MongoWarm:
    """
    A `gateway.store.tiers.WarmTier` in one MongoDB database.

    It belongs to the event loop in which it is first used. What it writes is
    acknowledged by the majority and in its journal; each call to MongoDB takes at
    most *timeout_ms*.
    """

    def __init__(
        self,
        url: str,
        database: str,
        *,
        driver: Driver = "motor",
        timeout_ms: int = CALL_TIMEOUT_MS,
    ) -> None:
        self._mongo = Mongo(url, database, driver, timeout_ms)
        self._checkpoints = Checkpoints(self._mongo)
        self._events = Events(self._mongo)
        self._writes = Writes(self._mongo, self._checkpoints)
        self._search = Search(self._mongo)

    async def prepare(self) -> None:
        """
        Make the indexes that reading and idempotence rely on; may be repeated.
        """
        await make_indexes(self._mongo)

    async def write(self, records: Sequence[Record]) -> Sequence[Refused]:
        """
        Hold what *records* say; those that MongoDB can never take are returned.
        """
        return await self._writes.write(records)

    async def sessions(
        self, session_ids: Sequence[str], *, context: bool = False
    ) -> dict[str, Held]:
        """
        What is held of these sessions; those not held are not in it.
        """
        fields = WITH_CONTEXT if context else SUMMARY
        held: dict[str, Held] = {}
        for first in range(0, len(session_ids), IDS_AT_ONCE):
            ids = list(session_ids[first : first + IDS_AT_ONCE])
            found = await self._mongo.find(SESSIONS, {"_id": {"$in": ids}}, fields)
            held |= {d["_id"]: held_of(d) for d in found if "deleted_at" not in d}

        return held

    async def entries(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> Sequence[bytes]:
        """
        The timeline entries *first* to *last* that it holds, packed, ascending.
        """
        where = _of(session_id, life, seq={"$gte": first, "$lte": last})
        found = await self._mongo.find(TIMELINE, where, sort=[("seq", 1)])

        return [packed_entry(document) for document in found]

    async def first_since(
        self, session_id: str, life: datetime, at: datetime
    ) -> int | None:
        """
        The lowest seq of an entry at *at* or later; a session's time never steps back.
        """
        where = _of(session_id, life, at={"$gte": at})
        earliest = [("at", 1), ("seq", 1)]
        found = await self._mongo.find(
            TIMELINE, where, {"seq": 1}, sort=earliest, limit=1
        )
        return int(found[0]["seq"]) if found else None

    async def put_entries(
        self, session_id: str, life: datetime, entries: Sequence[bytes]
    ) -> None:
        """
        Insert packed entries that are not there yet; none of a life that is over.
        """
        heads = await self._writes.heads([session_id])
        if session_id in heads and is_past(heads[session_id], life):
            return
        inserts = [Insert(entry_document(session_id, life, e)) for e in entries]
        await self._mongo.bulk(TIMELINE, inserts, own=(ENTRY_KEY,))
        await self._writes.tidy([(session_id, life)])

    async def purge(
        self, session_id: str, life: datetime, through: int, limit: int
    ) -> int:
        """
        Remove at most *limit* of the entries up to seq *through*; how many.
        """
        where = _of(session_id, life, seq={"$lte": through})
        lowest = await self._mongo.look(
            TIMELINE, where, {"seq": 1}, sort=[("seq", 1)], limit=1
        )
        if not lowest:
            return 0
        last = min(through, lowest[0]["seq"] + limit - 1)

        return await self._mongo.delete(
            TIMELINE, _of(session_id, life, seq={"$lte": last})
        )

    async def remove(self, session_id: str, life: datetime) -> None:
        """
        Remove everything of the session's lives up to this one, as `write` does for
        a deleted session: its archive is noted among the removals.
        """
        heads = await self._writes.heads([session_id])
        head = heads.get(session_id)
        await self._writes.end(
            End(
                session=session_id,
                life=life,
                last_seq=head.last_seq if head else 0,
                version=head.version if head else 0,
                notices=head.notices if head else 0,
            )
        )

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Held]:
        """
        Sessions last active earlier than *before*, no stubs, the longest idle first.
        """
        return await self._search.idle(before, after, limit)

    async def unfinished(
        self, what: Literal["unpurged", "unrestored"], limit: int
    ) -> Sequence[Held]:
        """
        Sessions with that mark.
        """
        found = await self._mongo.find(SESSIONS, {what: True}, SUMMARY, limit=limit)

        return [held_of(document) for document in found]

    async def swap(self, before: Held, after: Held) -> bool:
        """
        Put *after* in the place of *before*, if nothing has moved since; whether
        that was done.
        """
        session = before.session
        seen = {
            "_id": session.id,
            "created_at": session.created_at,
            "version": session.version,
            "last_seq": session.last_seq,
            "notices": counted(session.notices),
            "moves": before.moves,
            "archival_status": before.archival_status,
        }
        done = await self._mongo.bulk(SESSIONS, [Update(seen, swapped(before, after))])

        return done.matched == 1

    async def removals(self, limit: int) -> Sequence[str]:
        """
        Pointers of archives whose sessions are gone.
        """
        found = await self._mongo.find(REMOVALS, {}, sort=[("_id", 1)], limit=limit)

        return [document["_id"] for document in found]

    async def removed(self, pointer: str) -> None:
        """
        Forget a pointer of `removals`.
        """
        await self._mongo.delete(REMOVALS, {"_id": pointer})

    async def find(
        self, query: ListSessions, visible_to: str, tenant: str = ""
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first; see `ListSessions`.
        """
        return await self._search.find(query, visible_to, tenant)

    async def explain(
        self, query: ListSessions, visible_to: str, tenant: str = ""
    ) -> Document:
        """
        The plan by which MongoDB finds what `find` asks for.
        """
        return await self._search.explain(query, visible_to, tenant)

    async def counts(self) -> WarmCounts:
        """
        What there is, as of about now; reads every session's document once.
        """
        return await self._search.counts()

    async def changes(
        self, session_id: str, life: datetime, after: int, through: int
    ) -> Sequence[SessionChange]:
        """
        The steps to versions *after* + 1 to *through*, ascending.
        """
        return await self._events.changes(session_id, life, after, through)

    async def events(
        self, session_id: str, life: datetime, after: tuple[int, int], limit: int
    ) -> Sequence[Event]:
        """
        What happened behind a version and so many notices, appends left out.
        """
        return await self._events.behind(session_id, life, after, limit)

    async def appended_by(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> dict[int, tuple[str, str]]:
        """
        By which command and principal the entries *first* to *last* were appended.
        """
        where = _of(session_id, life, seq={"$gte": first, "$lte": last})
        fields = {"seq": 1, "command": 1, "principal": 1}
        found = await self._mongo.find(TIMELINE, where, fields)

        return {
            d["seq"]: (d["command"], d["principal"]) for d in found if "command" in d
        }

    async def snapshot(
        self, session_id: str, life: datetime, version: int
    ) -> Session | None:
        """
        The newest kept state at *version* or below; None if there is none.
        """
        where = _of(session_id, life, version={"$lte": version})
        found = await self._mongo.find(
            SNAPSHOTS, where, sort=[("version", -1)], limit=1
        )
        return session_of({**found[0], "id": session_id}) if found else None

    async def checkpoints(
        self, session_id: str, life: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.
        """
        return await self._checkpoints.page(session_id, life, before, limit)

    async def checkpoint(
        self, session_id: str, life: datetime, checkpoint_id: str
    ) -> tuple[Checkpoint, dict[str, Any]] | None:
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        return await self._checkpoints.get(session_id, life, checkpoint_id)

    def close(self) -> None:
        """
        Give the connections back; see `closed`.
        """
        self._mongo.close()

    async def closed(self) -> None:
        """
        Return when the connections are given back, after `close`.
        """
        await self._mongo.closed()


def _of(session_id: str, life: datetime, **bounds: Document) -> Document:
    return {"session": session_id, "life": life, **bounds}
