"""
Writes records into MongoDB.

Session documents are written last, so the data behind their version and last seq is
always there; every write may be repeated, late and by two archivers at once. A lost
race runs again from the beginning.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from everbus.bus.errors import Unavailable
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.mongo.checkpoints import Checkpoints
from everbus.gateway.store.mongo.deletions import (
    HEAD_FIELDS,
    Deletion,
    Head,
    head_of,
    in_bounded_steps,
    is_past,
    of_deleted,
    place_tombstone,
)
from everbus.gateway.store.mongo.documents import (
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
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.incumbents import Incumbents, Place
from everbus.gateway.store.mongo.operations import (
    Document,
    Done,
    Insert,
    LostRace,
    Remove,
    Replace,
)
from everbus.gateway.store.mongo.plan import (
    Live,
    Piece,
    WritePlan,
    passes,
    planned,
    state_piece,
)
from everbus.gateway.store.record_effects import with_context
from everbus.gateway.store.tiers import WriteRefused

# How often a lost race is run again; the writers that it is lost to are few.
TRIES = 4
# Ids per look-up: SecantusDB compares each document with each id.
IDS_AT_ONCE = 100


class _Diverged(Exception):
    """
    Records whose places other commands have; place → reason. None of them is there.
    """

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__()
        self.reasons = reasons


class Writes:
    """
    The writing side of the warm tier in MongoDB.
    """

    def __init__(self, mongo: Mongo, checkpoints: Checkpoints) -> None:
        self._mongo = mongo
        self._checkpoints = checkpoints
        self._incumbents = Incumbents(mongo)

    async def write(self, records: Sequence[Record]) -> list[WriteRefused]:
        """
        Write *records*; returns the records that MongoDB refuses for good.
        """
        refused: list[WriteRefused] = []
        for part in passes(records):
            refused += await self._written(part)

        return refused

    async def heads(self, session_ids: Iterable[str]) -> dict[str, Head]:
        """
        The heads of these sessions' documents; unknown ids are left out.
        """
        ids = list(dict.fromkeys(session_ids))
        heads: dict[str, Head] = {}
        for first in range(0, len(ids), IDS_AT_ONCE):
            where = {"_id": {"$in": ids[first : first + IDS_AT_ONCE]}}
            found = await self._mongo.look(SESSIONS, where, HEAD_FIELDS)
            heads |= {document["_id"]: head_of(document) for document in found}

        return heads

    async def tidy(self, written: Iterable[tuple[str, datetime]]) -> None:
        """
        Remove again what this write added to generations that were deleted meanwhile,
        and entries that moved to the cold tier meanwhile.

        A writer that pauses for long in the middle of a write passes every earlier
        check.
        """
        generations = list(written)
        heads = await self.heads(session for session, _ in generations)
        for session, generation in generations:
            head = heads.get(session)
            if head is None:
                continue
            if is_past(head, generation):
                await self._wipe([Deletion(session=session, generation=generation)])
            elif head.generation == generation and head.stub and not head.unpurged:
                where = {"session": session, "life": generation}
                archived = {**where, "seq": {"$lte": head.through}}
                await self._mongo.delete(TIMELINE, archived)

    async def _written(self, records: list[Record]) -> list[WriteRefused]:
        refused: list[WriteRefused] = []
        tries = TRIES
        while tries and records:
            try:
                return refused + await self._once(records)
            except LostRace:
                tries -= 1
            except _Diverged as found:
                # The others are written without them.
                refused += (
                    WriteRefused(records[at], why, diverged=True)
                    for at, why in found.reasons.items()
                )
                left = enumerate(records)
                records = [one for at, one in left if at not in found.reasons]
        if records:
            raise _contended()
        return refused

    async def _once(self, records: list[Record]) -> list[WriteRefused]:
        """
        Raises:
            LostRace: somebody changed or claimed a session since its head was read.
            _Diverged: other commands have the places of some records.
        """
        heads = await self.heads(record.session for record in records)
        plan = planned(records, heads)
        await self._delete(plan.deletions, heads)
        refused = dict(plan.refused)
        refused |= await self._insert_all(plan, heads)
        apart = await self._states(plan.generations, refused)
        # Behind the documents: no dead branch may leave any.
        refused |= await self._insert(SNAPSHOTS, plan.snapshots, SNAPSHOT_KEY)
        refused |= await self._keep(plan)
        # Whether they match tells a repeat from the first time; both are fine.
        _, failed = await self._run(SESSIONS, plan.stubs)
        refused |= failed
        await self.tidy(plan.touched)
        found: list[WriteRefused] = []
        for live in apart:
            for place, _ in live.records:
                refused.pop(place, None)
            found += await self._one_by_one(live)

        return found + [
            WriteRefused(records[at], why, diverged=at in plan.diverged)
            for at, why in refused.items()
        ]

    async def _insert_all(
        self, plan: WritePlan, heads: dict[str, Head]
    ) -> dict[int, str]:
        """
        Insert entries, events and notices; what is there already must be of the same
        commands.
        """
        inserted = (
            (Place(TIMELINE, ENTRY_KEY, "seq"), plan.entries),
            (Place(EVENTS, EVENT_KEY, "version"), plan.events),
            (Place(NOTICES, NOTICE_KEY, "notices"), plan.notices),
        )
        refused: dict[int, str] = {}
        diverged: dict[int, str] = {}
        for place, pieces in inserted:
            taken, failed = await self._put(place, pieces)
            refused |= failed
            diverged |= await self._incumbents.compared(place, taken, heads)
        if diverged:
            for place, pieces in inserted:
                mine = [piece for piece in pieces if piece.place in diverged]
                await self._incumbents.withdraw(place, mine, heads)
            raise _Diverged(diverged)

        return refused

    async def _put(
        self, place: Place, pieces: list[Piece]
    ) -> tuple[list[Piece], dict[int, str]]:
        """
        Insert missing documents; returns the pieces whose place is taken, and the
        reasons of refused ones.
        """
        inserts = [Insert(piece.what) for piece in pieces]
        own = (place.key, ("_id",))
        done = await self._mongo.bulk(place.collection, inserts, own=own)
        refused = await self._refused(place.collection, pieces, place.key, done)

        return [pieces[index] for index in done.taken], refused

    async def _one_by_one(self, live: Live) -> list[WriteRefused]:
        """
        The records of a session whose newest state is refused, each by itself: the
        others must not suffer.
        """
        refused: list[WriteRefused] = []
        for _, record in live.records:
            refused += await self._written([record])

        return refused

    async def _states(
        self, generations: list[Live], refused: dict[int, str]
    ) -> list[Live]:
        """
        Bring session documents forward; returns those whose records have to be
        written one by one. What is refused by itself is added to *refused*.
        """
        owners: dict[int, Live] = {}
        pieces: list[Piece] = []
        for live in generations:
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
        if not found or _seen(found[0]) != (live.generation, live.version):
            raise LostRace

        return with_context(found[0].get("full_context", {}), patches)

    async def _keep(self, plan: WritePlan) -> dict[int, str]:
        refused = {}
        for place, record, new in plan.checkpoints:
            generation = record.created_at
            reason = await self._checkpoints.keep(
                record.session, generation, new, record.tenant
            )
            if reason:
                refused[place] = reason
        return refused

    async def _insert(
        self, collection: str, pieces: list[Piece], key: tuple[str, ...]
    ) -> dict[int, str]:
        """
        Insert missing documents; returns place → reason of refused ones.
        """
        inserts = [Insert(piece.what) for piece in pieces]
        done = await self._mongo.bulk(collection, inserts, own=(key,))

        return await self._refused(collection, pieces, key, done)

    async def _refused(
        self, collection: str, pieces: list[Piece], key: tuple[str, ...], done: Done
    ) -> dict[int, str]:
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

    async def _delete(self, deletions: list[Deletion], heads: dict[str, Head]) -> None:
        """
        Note the archives of ended sessions, put tombstones, then remove the rest.
        """
        if not deletions:
            return
        # Noted first: what no document points to any more nobody would ever delete.
        pointers = {
            head.pointer
            for deletion in deletions
            if (head := heads.get(deletion.session))
            and head.generation <= deletion.generation
            if head.pointer
        }
        noted = [Replace({"_id": p}, {"_id": p}) for p in sorted(pointers)]
        await self._mongo.bulk(REMOVALS, noted)
        now = datetime.now(UTC)
        tombstones = [
            t
            for deletion in deletions
            if (t := place_tombstone(deletion, heads.get(deletion.session), now))
        ]
        done = await self._mongo.bulk(SESSIONS, tombstones)
        if done.matched != len(tombstones):
            raise LostRace
        await self._wipe(deletions)

    async def _wipe(self, deletions: Iterable[Deletion]) -> None:
        """
        Remove everything of ended generations but the tombstones, in bounded steps.
        """
        over = list(deletions)
        for collection, field in (
            (TIMELINE, "seq"),
            (EVENTS, "version"),
            (NOTICES, "notices"),
        ):
            for part in in_bounded_steps(over, field):
                await self._mongo.bulk(collection, part)
        for collection in (SNAPSHOTS, CHECKPOINTS):
            wheres = [of_deleted(deletion) for deletion in over]
            await self._mongo.bulk(collection, [Remove(where) for where in wheres])


def _seen(document: Document) -> tuple[datetime, int | None]:
    return document["created_at"], document.get("version")


def _contended() -> Unavailable:
    return Unavailable("MongoDB: others write the same sessions; it is tried again")
