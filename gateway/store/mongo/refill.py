"""
Writes documents of a backup into MongoDB, as they were stored.

A restore is a lineage: each session's document is claimed under it, with the length
that it has in the backup. So a bus that goes on with newer hot data is refused for the
session, and nothing of it gets a seq or version that another command has; a bus that
begins a later lineage takes what is restored, see `store.claims`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

from everbus.gateway.store.claims import NO_LENGTH
from everbus.gateway.store.cold.manifest import session_of
from everbus.gateway.store.mongo.data_keys import DATA_KEYS
from everbus.gateway.store.mongo.deletions import HEAD_FIELDS, Head, head_of
from everbus.gateway.store.mongo.documents import (
    CHECKPOINT_KEY,
    CHECKPOINT_PLACE,
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
    branch_fields,
)
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.incumbents import Incumbents, Place
from everbus.gateway.store.mongo.indexes import make_indexes
from everbus.gateway.store.mongo.operations import (
    Document,
    Insert,
    Operation,
    Replace,
    counted,
)
from everbus.gateway.store.mongo.plan import Piece
from everbus.gateway.store.tiers import Corrupted

RESTORES = "restores"
IDS_AT_ONCE = 100
_PLACES = {
    TIMELINE: Place(TIMELINE, ENTRY_KEY, "seq"),
    EVENTS: Place(EVENTS, EVENT_KEY, "version"),
    NOTICES: Place(NOTICES, NOTICE_KEY, "notices"),
}
_KEYS = {
    SNAPSHOTS: (SNAPSHOT_KEY,),
    CHECKPOINTS: (CHECKPOINT_KEY, CHECKPOINT_PLACE),
}

# `absent`: to be restored; `restored`: by an earlier try; `newer`: at least as far as
# the backup, or deleted since; `older`: behind it.
Standing = Literal["absent", "restored", "newer", "older"]


class RestoreJournal(msgspec.Struct, frozen=True, kw_only=True):
    """
    How far a restore is; kept in the database that it fills.

    Attributes:
        id: of the backup.
        lineages: each run has one, which claims what it restores; ascending.
        parts: names of the finished parts.
    """

    id: str
    lineages: tuple[int, ...]
    begun: datetime
    parts: tuple[str, ...] = ()
    finished: datetime | None = None


class Refill:
    """
    One restore into one database.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._incumbents = Incumbents(mongo)

    async def prepare(self) -> None:
        """
        Make the indexes: without them nothing would be unique.
        """
        await make_indexes(self._mongo)

    async def holds(self) -> str:
        """
        The first collection that holds anything of sessions; empty: none does.
        """
        begun = {"created_at": {"$gt": NO_LENGTH.generation}}
        for collection in (SESSIONS, *_PLACES, *_KEYS, REMOVALS):
            where: Document = begun if collection == SESSIONS else {}
            if await self._mongo.look(collection, where, {"_id": 1}, limit=1):
                return collection
        return ""

    async def journal(self, backup_id: str) -> RestoreJournal | None:
        """
        The journal of that backup's restore; None: it was never begun here.
        """
        found = await self._mongo.look(RESTORES, {"_id": backup_id}, limit=1)
        if not found:
            return None
        return msgspec.convert({**found[0], "id": backup_id}, RestoreJournal)

    async def note(self, journal: RestoreJournal) -> None:
        """
        Keep *journal*.
        """
        fields = msgspec.structs.asdict(journal)
        document = {"_id": fields.pop("id"), **fields}
        lists = {name: list(fields[name]) for name in ("parts", "lineages")}
        kept = Replace({"_id": journal.id}, document | lists)
        await self._mongo.bulk(RESTORES, [kept])

    async def heads(self, session_ids: Sequence[str]) -> dict[str, Head]:
        """
        The heads of these sessions' documents; unknown ids are left out.
        """
        heads: dict[str, Head] = {}
        for first in range(0, len(session_ids), IDS_AT_ONCE):
            where = {"_id": {"$in": list(session_ids[first : first + IDS_AT_ONCE])}}
            found = await self._mongo.look(SESSIONS, where, HEAD_FIELDS)
            heads |= {document["_id"]: head_of(document) for document in found}

        return heads

    async def put_rows(
        self, collection: str, documents: Sequence[Document]
    ) -> dict[str, str]:
        """
        Insert rows that are not there yet; session → reason, of those of which another
        command has a row's place.
        """
        place = _PLACES.get(collection)
        keys = (place.key,) if place else _KEYS[collection]
        inserts = [Insert(document) for document in documents]
        done = await self._mongo.bulk(collection, inserts, own=(*keys, ("_id",)))
        reasons = {documents[at]["session"]: why for at, why in done.refused.items()}
        if place is not None and done.taken:
            taken = [Piece(at, documents[at]) for at in done.taken]
            other = await self._incumbents.compared(place, taken, {})
            reasons |= {documents[at]["session"]: why for at, why in other.items()}

        return reasons

    async def put_sessions(
        self, documents: Sequence[tuple[Document, Head | None]], lineage: int
    ) -> list[str]:
        """
        Put documents in the place of placeholders, or of nothing, claimed under
        *lineage*; ids of sessions that somebody else made meanwhile.
        """
        operations = [_put(one, head, lineage) for one, head in documents]
        done = await self._mongo.bulk(SESSIONS, operations)

        return [documents[at][0]["_id"] for at in (*done.taken, *done.refused)]

    async def put_key(self, document: Document) -> None:
        """
        Keep a wrapped data key, unless the database knows it: it may be dropped there.
        """
        await self._mongo.bulk(DATA_KEYS, [Insert(document)])

    async def put_removal(self, document: Document) -> None:
        """
        Note an archive that is to be removed, unless a session points to it.
        """
        pointer = document["_id"]
        try:
            where = {"_id": session_of(pointer)}
        except Corrupted:
            return
        found = await self._mongo.look(SESSIONS, where, {"s3_pointer": 1}, limit=1)
        if not found or found[0].get("s3_pointer") != pointer:
            await self._mongo.bulk(REMOVALS, [Insert(document)])


def standing(
    document: Document, head: Head | None, lineages: Sequence[int]
) -> Standing:
    """
    How a session's document of a backup stands to the *head* that is there.

    *lineages*: of the runs of this restore.
    """
    if head is None or head.generation == NO_LENGTH.generation:
        return "absent"
    ours = head_of(document)
    if head.ended and head.generation < ours.generation:
        return "absent"
    if head.branch.lineage in lineages and head.length == ours.length:
        return "restored"

    return "older" if ours.length.exceeds(head.length) else "newer"


def _put(document: Document, head: Head | None, lineage: int) -> Operation:
    if head is None:
        return Insert(_claimed(document, lineage))
    there = head.branch.lineage
    seen = {
        "_id": document["_id"],
        "created_at": head.generation,
        "lineage": counted(there),
    }
    return Replace(seen, _claimed(document, max(lineage, there + 1)))


def _claimed(document: Document, lineage: int) -> Document:
    head = head_of(document)

    return document | branch_fields(head.branch.claimed(lineage, head.length))
