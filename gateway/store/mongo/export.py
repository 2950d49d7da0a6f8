"""
Reads MongoDB's documents as they are stored, for a backup: sealed fields stay sealed.

A session's document and its rows are read at different moments, while an archiver
drains. Rows are written before the document and never change, so the rows up to the
counts of a document that was read before them are its own; unless the session was
deleted or moved to another tier meanwhile, which `moved` tells.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC
from typing import NamedTuple

import bson
from bson.codec_options import CodecOptions

from everbus.gateway.store.claims import NO_LENGTH
from everbus.gateway.store.mongo.deletions import HEAD_FIELDS
from everbus.gateway.store.mongo.documents import (
    CHECKPOINTS,
    EVENTS,
    NOTICES,
    SESSIONS,
    SNAPSHOTS,
    TIMELINE,
)
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Document, up_to

# Collection → the field that numbers its documents, in the order of a copy: notices
# come before the checkpoints that they tell of.
NUMBERED = {
    TIMELINE: "seq",
    EVENTS: "version",
    NOTICES: "notices",
    SNAPSHOTS: "version",
    CHECKPOINTS: "n",
}
# A page of documents ends behind the one that reaches so many bytes.
PAGE_BYTES = 2**20
PAGE_SESSIONS = 100
FIRST_ROWS, MOST_ROWS = 16, 1_000
_CHECKPOINT_MADE = "checkpoint.created"
_OPTIONS: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)


class StoredRow(NamedTuple):
    """
    One document, and its bytes.
    """

    collection: str
    document: Document
    data: bytes


def bson_of(document: Document) -> bytes:
    """
    The bytes of a document.
    """
    return bytes(bson.encode(document))


def document_of(data: bytes) -> Document:
    """
    The document in *data*.

    Raises:
        ValueError: there is none.
    """
    try:
        return bson.decode(data, _OPTIONS)
    except bson.errors.BSONError as error:
        raise ValueError(f"no BSON: {error}") from error


def is_placeholder(document: Document) -> bool:
    """
    Whether it is the claim of a session that nobody has; it goes by itself.
    """
    return "deleted_at" in document and document["created_at"] == NO_LENGTH.generation


class Export:
    """
    The documents of one database; nothing is written.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def total(self) -> int:
        """
        About how many documents of sessions there are.
        """
        found = await self._mongo.aggregate(SESSIONS, [{"$count": "documents"}])

        return int(found[0]["documents"]) if found else 0

    async def page(self, after: str) -> list[StoredRow]:
        """
        Documents of the next sessions behind the id *after*, ascending; none at the
        end. Tombstones too.
        """
        return await self._page(SESSIONS, {"_id": {"$gt": after}}, PAGE_SESSIONS)

    async def session(self, session_id: str) -> StoredRow | None:
        """
        The document of a session as it is now.
        """
        found = await self._page(SESSIONS, {"_id": session_id}, 1)

        return found[0] if found else None

    async def every(self, collection: str) -> AsyncIterator[StoredRow]:
        """
        All documents of a collection with few and small ones.
        """
        where: Document = {}
        while page := await self._page(collection, where, PAGE_SESSIONS):
            for row in page:
                yield row
            where = {"_id": {"$gt": page[-1].document["_id"]}}

    async def rows(self, document: Document) -> AsyncIterator[StoredRow]:
        """
        The rows up to the counts of a session's *document*. A stub's timeline is in its
        archive, whole.
        """
        where = {"session": document["_id"], "life": document["created_at"]}
        lasts = await self._lasts(document, where)
        made: set[str] = set()
        for collection, number in NUMBERED.items():
            async for row in self._numbered(
                collection, where, number, lasts[collection]
            ):
                if collection == NOTICES and row.document["kind"] == _CHECKPOINT_MADE:
                    made.add(row.document["command"])
                if collection == CHECKPOINTS and not (
                    row.document["id"] in made
                    # Older than notices; else made after the document was read.
                    or row.document["at"] <= document["last_active"]
                ):
                    continue
                yield row

    async def moved(self, documents: Sequence[Document]) -> set[str]:
        """
        Ids of those sessions that were deleted or moved to another tier since these
        *documents* were read.
        """
        ids = [document["_id"] for document in documents]
        found = await self._mongo.find(SESSIONS, {"_id": {"$in": ids}}, HEAD_FIELDS)
        now = {document["_id"]: _place(document) for document in found}

        return {one["_id"] for one in documents if now.get(one["_id"]) != _place(one)}

    async def _lasts(self, document: Document, where: Document) -> dict[str, int]:
        newest = await self._mongo.find(
            CHECKPOINTS, where, {"n": 1}, sort=[("n", -1)], limit=1
        )
        is_stub = document["archival_status"] == "S3"
        return {
            TIMELINE: 0 if is_stub else document["last_seq"],
            EVENTS: document["version"],
            NOTICES: document.get("notices", 0),
            SNAPSHOTS: document["version"],
            CHECKPOINTS: newest[0]["n"] if newest else 0,
        }

    async def _numbered(
        self, collection: str, where: Document, number: str, last: int
    ) -> AsyncIterator[StoredRow]:
        """
        The documents with numbers up to *last*, read in steps of about PAGE_BYTES.
        """
        after, step = 0, FIRST_ROWS
        while after < last:
            through = min(after + step, last)
            bounds = {number: {"$gt": after, **up_to(through)}}
            found = await self._mongo.find(
                collection, where | bounds, sort=[(number, 1)]
            )
            size = 0
            for document in found:
                data = bson_of(document)
                size += len(data)
                yield StoredRow(collection, document, data)
            fitting = PAGE_BYTES * len(found) // size if size else MOST_ROWS
            after, step = through, max(1, min(fitting, step * 4, MOST_ROWS))

    async def _page(
        self, collection: str, where: Document, limit: int
    ) -> list[StoredRow]:
        rows: list[StoredRow] = []
        size = 0

        def goes_on(document: Document) -> bool:
            nonlocal size
            data = bson_of(document)
            rows.append(StoredRow(collection, document, data))
            size += len(data)
            return size < PAGE_BYTES

        await self._mongo.find(
            collection,
            where,
            sort=[("_id", 1)],
            limit=limit,
            goes_on=goes_on,
            batch_size=FIRST_ROWS,
        )
        return rows


class RowCount:
    """
    Counts a session's rows as they come, to tell what MongoDB lacks.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found = dict.fromkeys((TIMELINE, EVENTS, NOTICES, CHECKPOINTS), 0)
        self._made = 0
        unheld = document["archival_status"] == "S3" or document.get("unrestored")
        # The archive has the entries up to there.
        self._through = document["through"] if unheld else 0

    def see(self, row: StoredRow) -> None:
        """
        Count the next row.
        """
        one = row.document
        if row.collection == TIMELINE and one["seq"] <= self._through:
            return
        if row.collection == EVENTS and one["patch"] is None:
            return  # a move between tiers
        if row.collection == NOTICES and one["kind"] == _CHECKPOINT_MADE:
            self._made += 1
        if row.collection in self._found:
            self._found[row.collection] += 1

    def missing(self) -> str:
        """
        What MongoDB lacks of the session; empty: nothing.
        """
        document, found = self._document, self._found
        wanted = {
            TIMELINE: document["last_seq"] - self._through,
            EVENTS: document["version"],
            NOTICES: document.get("notices", 0),
            CHECKPOINTS: self._made,
        }
        return ", ".join(
            f"{found[name]} of {count} documents of {name}"
            for name, count in wanted.items()
            if found[name] < count
        )


def _place(document: Document) -> tuple[object, ...]:
    if "deleted_at" in document:
        return (document["created_at"], "deleted")
    return (document["created_at"], document["archival_status"], document["moves"])
