"""
How records get into MongoDB.

Whoever finds a version or a last seq in a session's document finds all that led
there, so session documents are written last; and everything may be repeated, late
and by two at once. A race that is lost is run again from the beginning.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from bus.errors import Unavailable
from gateway.store.mongo.checkpoints import Checkpoints
from gateway.store.mongo.documents import (
    CHECKPOINTS,
    ENTRY_KEY,
    EVENT_KEY,
    EVENTS,
    NOTICE_KEY,
    NOTICES,
    REMOVALS,
    SESSIONS,
    SNAPSHOT_KEY,
    SNAPSHOTS,
    TIMELINE,
)
from gateway.store.mongo.driver import Mongo
from gateway.store.mongo.ends import (
    HEAD_FIELDS,
    End,
    Head,
    bounded,
    head_of,
    is_past,
    of_ended,
    tomb,
)
from gateway.store.mongo.operations import (
    Document,
    Insert,
    LostRace,
    Remove,
    Replace,
)
from gateway.store.mongo.plan import (
    Live,
    Piece,
    Plan,
    passes,
    planned,
    state_piece,
)
from gateway.store.outbox import Record
from gateway.store.recorded import with_context
from gateway.store.tiers import Refused

# How often a lost race is run again; the writers that it is lost to are few.
TRIES = 4
# Ids per look-up: SecantusDB compares each document with each id.
IDS_AT_ONCE = 100


class Writes:
    """
    The writing side of the warm tier in MongoDB.
    """

    def __init__(self, mongo: Mongo, checkpoints: Checkpoints) -> None:
        self._mongo = mongo
        self._checkpoints = checkpoints

    async def write(self, records: Sequence[Record]) -> list[Refused]:
        """
        Hold what *records* say; those that MongoDB can never take are returned.
        """
        refused: list[Refused] = []
        for part in passes(records):
            refused += await self._written(part)

        return refused

    async def heads(self, session_ids: Iterable[str]) -> dict[str, Head]:
        """
        What the documents of these sessions say; those without one are left out.
        """
        ids = list(dict.fromkeys(session_ids))
        heads: dict[str, Head] = {}
        for first in range(0, len(ids), IDS_AT_ONCE):
            where = {"_id": {"$in": ids[first : first + IDS_AT_ONCE]}}
            found = await self._mongo.look(SESSIONS, where, HEAD_FIELDS)
            heads |= {document["_id"]: head_of(document) for document in found}

        return heads

    async def end(self, end: End) -> None:
        """
        Remove all of a session's lives up to one.
        """
        for _ in range(TRIES):
            try:
                await self._end([end], await self.heads([end.session]))
            except LostRace:
                continue
            return
        raise _contended()

    async def tidy(self, written: Iterable[tuple[str, datetime]]) -> None:
        """
        Remove again what was written of lives that meanwhile ended, and entries that
        meanwhile left for the cold tier.

        A writer that is paused in the midst of it for long comes too late to be
        stopped otherwise.
        """
        lives = list(written)
        heads = await self.heads(session for session, _ in lives)
        for session, life in lives:
            head = heads.get(session)
            if head is None:
                continue
            if is_past(head, life):
                await self._wipe([End(session=session, life=life)])
            elif head.life == life and head.stub and not head.unpurged:
                where = {"session": session, "life": life}
                archived = {**where, "seq": {"$lte": head.through}}
                await self._mongo.delete(TIMELINE, archived)

    async def _written(self, records: list[Record]) -> list[Refused]:
        for _ in range(TRIES):
            try:
                return await self._once(records)
            except LostRace:
                continue
        raise _contended()

    async def _once(self, records: list[Record]) -> list[Refused]:
        """
        Raises:
            LostRace: somebody changed a session since its head was read.
        """
        heads = await self.heads(record.session for record in records)
        plan = planned(records, heads)
        await self._end(plan.ends, heads)
        refused = dict(plan.refused)
        refused |= await self._insert(TIMELINE, plan.entries, ENTRY_KEY)
        refused |= await self._insert(EVENTS, plan.events, EVENT_KEY)
        refused |= await self._insert(NOTICES, plan.notices, NOTICE_KEY)
        refused |= await self._insert(SNAPSHOTS, plan.snapshots, SNAPSHOT_KEY)
        refused |= await self._keep(plan)
        apart = await self._states(plan.lives, refused)
        # Whether they match tells a repeat from the first time; both are fine.
        _, failed = await self._run(SESSIONS, plan.stubs)
        refused |= failed
        await self.tidy(plan.touched)
        found: list[Refused] = []
        for live in apart:
            for place, _ in live.records:
                refused.pop(place, None)
            found += await self._one_by_one(live)

        return found + [Refused(records[at], why) for at, why in refused.items()]

    async def _one_by_one(self, live: Live) -> list[Refused]:
        """
        The records of a session whose newest state is refused, each by itself: the
        others must not suffer.
        """
        refused: list[Refused] = []
        for _, record in live.records:
            refused += await self._written([record])

        return refused

    async def _states(self, lives: list[Live], refused: dict[int, str]) -> list[Live]:
        """
        Bring session documents forward; returns those whose records have to be
        written one by one. What is refused by itself is added to *refused*.
        """
        owners: dict[int, Live] = {}
        pieces: list[Piece] = []
        for live in lives:
            piece = state_piece(live, await self._context(live))
            if piece is not None:
                owners[piece.place] = live
                pieces.append(piece)
        matched, failed = await self._run(SESSIONS, pieces)
        if matched + len(failed) != len(pieces):
            raise LostRace
        apart = [owners[place] for place in failed if len(owners[place].records) > 1]
        alone = {p: why for p, why in failed.items() if len(owners[p].records) == 1}
        refused |= alone

        return apart

    async def _context(self, live: Live) -> dict[str, object] | None:
        """
        The full context after the records of *live*; None if they do not touch it.
        """
        patches = live.patches
        if not patches:
            return None
        if live.head is None:
            return with_context({}, patches)
        where = {"_id": live.session}
        fields = {"full_context": 1, "created_at": 1, "version": 1}
        found = await self._mongo.look(SESSIONS, where, fields)
        if not found or _seen(found[0]) != (live.life, live.version):
            raise LostRace

        return with_context(found[0].get("full_context", {}), patches)

    async def _keep(self, plan: Plan) -> dict[int, str]:
        refused = {}
        for place, record, new in plan.checkpoints:
            life = record.created_at
            if reason := await self._checkpoints.keep(record.session, life, new):
                refused[place] = reason
        return refused

    async def _insert(
        self, collection: str, pieces: list[Piece], key: tuple[str, ...]
    ) -> dict[int, str]:
        """
        Insert documents that are not there; the places of those that are refused.
        """
        inserts = [Insert(piece.what) for piece in pieces]
        done = await self._mongo.bulk(collection, inserts, own=(key,))
        refused = {}
        for index, reason in done.refused.items():
            # A repeat may violate an index that is not ours, before ours.
            same = {name: pieces[index].what[name] for name in key}
            if not await self._mongo.look(collection, same, {"_id": 1}, limit=1):
                refused[pieces[index].place] = reason
        return refused

    async def _run(
        self, collection: str, pieces: list[Piece]
    ) -> tuple[int, dict[int, str]]:
        operations = [piece.what for piece in pieces]
        done = await self._mongo.bulk(collection, operations)
        refused = {pieces[index].place: why for index, why in done.refused.items()}

        return done.matched, refused

    async def _end(self, ends: list[End], heads: dict[str, Head]) -> None:
        """
        Note the archives of ended sessions, put tombstones, then remove the rest.
        """
        if not ends:
            return
        # Noted first: what no document points to any more nobody would ever delete.
        pointers = {
            head.pointer
            for end in ends
            if (head := heads.get(end.session)) and head.life <= end.life
            if head.pointer
        }
        noted = [Replace({"_id": p}, {"_id": p}) for p in sorted(pointers)]
        await self._mongo.bulk(REMOVALS, noted)
        now = datetime.now(UTC)
        tombs = [t for end in ends if (t := tomb(end, heads.get(end.session), now))]
        done = await self._mongo.bulk(SESSIONS, tombs)
        if done.matched != len(tombs):
            raise LostRace
        await self._wipe(ends)

    async def _wipe(self, ends: Iterable[End]) -> None:
        """
        Remove everything of ended lives but the tombstones, in bounded steps.
        """
        over = list(ends)
        for collection, field in (
            (TIMELINE, "seq"),
            (EVENTS, "version"),
            (NOTICES, "notices"),
        ):
            for part in bounded(over, field):
                await self._mongo.bulk(collection, part)
        for collection in (SNAPSHOTS, CHECKPOINTS):
            wheres = [of_ended(end) for end in over]
            await self._mongo.bulk(collection, [Remove(where) for where in wheres])


def _seen(document: Document) -> tuple[datetime, int | None]:
    return document["created_at"], document.get("version")


def _contended() -> Unavailable:
    return Unavailable("MongoDB: others write the same sessions; it is tried again")
