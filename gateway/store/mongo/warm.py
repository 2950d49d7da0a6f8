"""
The warm tier in MongoDB, the eternal truth.

Every change goes forward or is a compare-and-set, so an archiver may repeat any write,
also long after another one has gone on.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal

from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    Session,
    SessionChange,
    SessionPage,
)
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.claims import Claim, Length
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.mongo.checkpoints import Checkpoints
from everbus.gateway.store.mongo.claims import Claims
from everbus.gateway.store.mongo.deletions import is_past
from everbus.gateway.store.mongo.documents import (
    ENTRY_KEY,
    REMOVALS,
    SESSIONS,
    SNAPSHOTS,
    SUMMARY,
    TIMELINE,
    WITH_CONTEXT,
    entry_document,
    packed_entry,
    session_of,
    swapped,
    warm_session_of,
)
from everbus.gateway.store.mongo.driver import Driver, Mongo
from everbus.gateway.store.mongo.events import Events
from everbus.gateway.store.mongo.indexes import make_indexes
from everbus.gateway.store.mongo.operations import (
    Document,
    Insert,
    Update,
    counted,
)
from everbus.gateway.store.mongo.sealed import SealedMongo
from everbus.gateway.store.mongo.search import Search
from everbus.gateway.store.mongo.writes import IDS_AT_ONCE, Writes
from everbus.gateway.store.read_bound import Meter, ReadBound
from everbus.gateway.store.tiers import (
    Claimed,
    WarmCounts,
    WarmSession,
    WriteRefused,
)
from everbus.handlers.commands import ListSessions
from everbus.handlers.outcomes import Event

CALL_TIMEOUT_MS = 10_000
# Entries of the first read of a page, which shows their sizes, and of one batch.
FIRST_BATCH, MOST_AT_ONCE = 16, 1_000


class MongoWarm:
    """
    A `gateway.store.warm_roles.WarmTier` in one MongoDB database.

    It belongs to the event loop in which it is first used. What it writes is
    acknowledged by the majority and in its journal; each call to MongoDB takes at
    most *timeout_ms*. *sealing* seals sensitive fields; None: they are kept plain.
    """

    def __init__(
        self,
        url: str,
        database: str,
        *,
        driver: Driver = "motor",
        timeout_ms: int = CALL_TIMEOUT_MS,
        sealing: Sealing | None = None,
    ) -> None:
        if sealing is None:
            self._mongo = Mongo(url, database, driver, timeout_ms)
        else:
            self._mongo = SealedMongo(url, database, driver, timeout_ms, sealing)
        self._checkpoints = Checkpoints(self._mongo)
        self._events = Events(self._mongo)
        self._writes = Writes(self._mongo, self._checkpoints)
        self._search = Search(self._mongo)
        self._claims = Claims(self._mongo)
        self._prepared = False

    async def prepare(self) -> None:
        """
        Make the indexes that reading and idempotence rely on; may be repeated.
        """
        await make_indexes(self._mongo)
        self._prepared = True

    async def write(self, records: Sequence[Record]) -> Sequence[WriteRefused]:
        """
        Write *records*; returns the records that MongoDB refuses for good.
        """
        return await self._writes.write(records)

    async def claim(self, claims: Sequence[Claim]) -> dict[str, Claimed]:
        """
        Claim sessions for a lineage, see `store.claims`.

        The first call makes the indexes. SecantusDB 0.7 can stand still for most of a
        minute when a client writes to a new collection while another makes its index.
        """
        if not self._prepared:
            await self.prepare()
        return await self._claims.claim(claims)

    async def commands(
        self, session_id: str, generation: datetime, beyond: Length, since: datetime
    ) -> Sequence[tuple[str, str]]:
        """
        MAD and command id of the newest effects behind *beyond*, from *since* on.
        """
        return await self._claims.commands(session_id, generation, beyond, since)

    async def sessions(
        self, session_ids: Sequence[str], *, context: bool = False
    ) -> dict[str, WarmSession]:
        """
        The documents of these sessions; unknown ids are left out.
        """
        fields = WITH_CONTEXT if context else SUMMARY
        found: dict[str, WarmSession] = {}
        for first in range(0, len(session_ids), IDS_AT_ONCE):
            where = {"_id": {"$in": list(session_ids[first : first + IDS_AT_ONCE])}}
            for document in await self._mongo.find(SESSIONS, where, fields):
                if "deleted_at" not in document:
                    found[document["_id"]] = warm_session_of(document)

        return found

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
        where = _of(session_id, generation, seq={"$gte": first, "$lte": last})
        if bound is None:
            found = await self._mongo.find(TIMELINE, where, sort=[("seq", 1)])
            return [packed_entry(document) for document in found]
        packed: list[bytes] = []
        reached, room = 0, True
        meter = Meter(bound.most_bytes)

        def goes_on(document: Document) -> bool:
            nonlocal reached, room
            reached = document["seq"]
            packed.append(packed_entry(document))
            room = meter.add(len(packed[-1]))
            return room

        step = -1 if bound.newest_first else 1
        find = partial(self._mongo.find, TIMELINE, sort=[("seq", step)])
        await find(where, limit=FIRST_BATCH, goes_on=goes_on)
        if room and len(packed) == FIRST_BATCH:
            # As many at once as may fit: a batch of large ones would be 16 MiB.
            batch = bound.most_bytes * FIRST_BATCH // sum(map(len, packed))
            first, last = (first, reached - 1) if step < 0 else (reached + 1, last)
            where = _of(session_id, generation, seq={"$gte": first, "$lte": last})
            batch = min(max(batch, FIRST_BATCH), MOST_AT_ONCE)
            await find(where, goes_on=goes_on, batch_size=batch)

        return packed[::step]

    async def first_since(
        self, session_id: str, generation: datetime, at: datetime
    ) -> int | None:
        """
        The lowest seq of an entry at *at* or later; a session's time never steps back.
        """
        where = _of(session_id, generation, at={"$gte": at})
        earliest = [("at", 1), ("seq", 1)]
        found = await self._mongo.find(
            TIMELINE, where, {"seq": 1}, sort=earliest, limit=1
        )
        return int(found[0]["seq"]) if found else None

    async def put_entries(
        self, session_id: str, generation: datetime, entries: Sequence[bytes]
    ) -> None:
        """
        Insert packed entries that are not there yet; none of a generation that is over.
        """
        heads = await self._writes.heads([session_id])
        if session_id in heads and is_past(heads[session_id], generation):
            return
        inserts = [Insert(entry_document(session_id, generation, e)) for e in entries]
        await self._mongo.bulk(TIMELINE, inserts, own=(ENTRY_KEY,))
        await self._writes.tidy([(session_id, generation)])

    async def purge(
        self, session_id: str, generation: datetime, through: int, limit: int
    ) -> int:
        """
        Remove at most *limit* of the entries up to seq *through*; how many.
        """
        where = _of(session_id, generation, seq={"$lte": through})
        lowest = await self._mongo.look(
            TIMELINE, where, {"seq": 1}, sort=[("seq", 1)], limit=1
        )
        if not lowest:
            return 0
        last = min(through, lowest[0]["seq"] + limit - 1)

        return await self._mongo.delete(
            TIMELINE, _of(session_id, generation, seq={"$lte": last})
        )

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[WarmSession]:
        """
        Sessions last active earlier than *before*, no stubs, the longest idle first.
        """
        return await self._search.idle(before, after, limit)

    async def unfinished(
        self, what: Literal["unpurged", "unrestored"], limit: int
    ) -> Sequence[WarmSession]:
        """
        Sessions with that mark.
        """
        found = await self._mongo.find(SESSIONS, {what: True}, SUMMARY, limit=limit)

        return [warm_session_of(document) for document in found]

    async def swap(self, before: WarmSession, after: WarmSession) -> bool:
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
        self,
        query: ListSessions,
        visible_to: str,
        tenant: str = "",
        bound: ReadBound | None = None,
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first; see `ListSessions`.
        """
        return await self._search.find(query, visible_to, tenant, bound)

    async def every(self, after: str, limit: int) -> Sequence[WarmSession]:
        """
        Every session, by its id.
        """
        return await self._search.every(after, limit)

    async def explain(
        self, query: ListSessions, visible_to: str, tenant: str = ""
    ) -> Document:
        """
        The plan by which MongoDB finds what `find` asks for.
        """
        return await self._search.explain(query, visible_to, tenant)

    async def renew_words(self, limit: int) -> int:
        """
        Make the words of an earlier version anew.
        """
        return await self._search.renew_words(limit)

    async def counts(self) -> WarmCounts:
        """
        What there is, as of about now; reads every session's document once.
        """
        return await self._search.counts()

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
        span = (after, through)
        return await self._events.changes(session_id, generation, span, bound)

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
        return await self._events.behind(session_id, generation, after, limit, bound)

    async def appended_by(
        self, session_id: str, generation: datetime, first: int, last: int
    ) -> dict[int, tuple[str, str]]:
        """
        By which command and principal the entries *first* to *last* were appended.
        """
        where = _of(session_id, generation, seq={"$gte": first, "$lte": last})
        fields = {"seq": 1, "command": 1, "principal": 1}
        found = await self._mongo.find(TIMELINE, where, fields)

        return {
            d["seq"]: (d["command"], d["principal"]) for d in found if "command" in d
        }

    async def snapshot(
        self, session_id: str, generation: datetime, version: int
    ) -> Session | None:
        """
        The newest kept state at *version* or below; None if there is none.
        """
        where = _of(session_id, generation, version={"$lte": version})
        found = await self._mongo.find(
            SNAPSHOTS, where, sort=[("version", -1)], limit=1
        )
        return session_of({**found[0], "id": session_id}) if found else None

    async def checkpoints(
        self, session_id: str, generation: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.
        """
        return await self._checkpoints.page(session_id, generation, before, limit)

    async def checkpoint(
        self, session_id: str, generation: datetime, checkpoint_id: str
    ) -> tuple[Checkpoint, dict[str, Any]] | None:
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        return await self._checkpoints.get(session_id, generation, checkpoint_id)

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


def _of(session_id: str, generation: datetime, **bounds: Document) -> Document:
    return {"session": session_id, "life": generation, **bounds}
