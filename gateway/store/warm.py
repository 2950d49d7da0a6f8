"""
The warm tier: MongoDB, the eternal truth. The one file that knows the driver.

Every write is idempotent and only ever forward, so the archiver may repeat any
of them: a session document gives way only to a later life or a later version,
and a timeline entry is inserted once, by session and seq.
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC
from itertools import chain
from typing import Any

import msgspec
from bson.codec_options import CodecOptions
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ASCENDING, DeleteMany, DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.write_concern import WriteConcern

from bus.codec import pack
from bus.errors import Unavailable
from bus.messages import Session, TimelineEntry, TimelinePage
from gateway.store.outbox import Record
from handlers.commands import WarmPage
from handlers.routes import page_of

CALL_TIMEOUT_MS = 10_000
# How long a page waits for the archiver to write what was just committed.
CATCH_UP_S = 8.0
CATCH_UP_FIRST_S = 0.05
# So that readers, however many, leave the archiver its share of MongoDB.
READS_AT_ONCE = 4
DUPLICATE_KEY = 11000

Document = dict[str, Any]  # BSON values
Operation = (
    ReplaceOne[Document] | UpdateOne | InsertOne[Document] | DeleteOne | DeleteMany
)


class NoWarmTier:
    """
    Stands for MongoDB where none is configured: only the hot tail can be read.
    """

    async def page(self, session_id: str, wanted: WarmPage) -> TimelinePage:
        """
        Refuse.

        Raises:
            Unavailable: always, with the remedy.
        """
        raise Unavailable(
            f"entries {wanted.first} to {wanted.last} of {session_id} are no longer "
            "hot, and this manager has no MongoDB; set EVERBUS_MONGO_URL"
        )


class WarmStore:
    """
    Sessions and timelines in one MongoDB database.
    """

    def __init__(self, url: str, database: str) -> None:
        self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
            url, timeoutMS=CALL_TIMEOUT_MS, appname="everbus"
        )
        options: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)
        durable = WriteConcern(w="majority", j=True)
        held = self._client.get_database(
            database, codec_options=options, write_concern=durable
        )
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._sessions = held["sessions"]
        self._timeline = held["timeline"]

    async def prepare(self) -> None:
        """
        Make the indexes that reading and idempotency rely on.

        Raises:
            Unavailable: MongoDB cannot be reached.
        """
        try:
            await self._timeline.create_index(
                [("session", ASCENDING), ("seq", ASCENDING)], unique=True
            )
        except PyMongoError as error:
            raise _away(error) from error

    async def write(self, records: Iterable[Record]) -> None:
        """
        Make MongoDB hold what *records* say, acknowledged by majority and journal.

        Raises:
            Unavailable: it is not known to hold all of it; write it again.
        """
        newest: dict[str, Record] = {}
        wipes: list[Operation] = []
        entries: dict[str, list[Operation]] = {}
        for record in records:
            newest[record.session] = _merged(newest.get(record.session), record)
            ended = _wipes(record)
            if ended:
                # An earlier life's entries would keep out those of this one, whose
                # seqs are the same.
                entries.pop(record.session, None)
            wipes += ended
            inserts = (InsertOne(_entry_document(record, e)) for e in record.entries)
            entries.setdefault(record.session, []).extend(inserts)
        await _bulk(self._timeline, wipes)
        await _bulk(self._timeline, list(chain.from_iterable(entries.values())))
        # Sessions last: whoever finds a last_seq here finds its entries, too.
        await _bulk(self._sessions, [_state_operation(r) for r in newest.values()])

    async def page(self, session_id: str, wanted: WarmPage) -> TimelinePage:
        """
        Entries *wanted.first* to *wanted.last*, waiting for the archiver if need be.

        Raises:
            Unavailable: MongoDB is away, or the archiver is too far behind.
        """
        count = wanted.last - wanted.first + 1
        until, wait_s = time.monotonic() + CATCH_UP_S, CATCH_UP_FIRST_S
        while True:
            found = await self._find(session_id, wanted)
            if len(found) == count:
                return page_of(tuple(map(_packed, found)), wanted.last, wanted.end)
            if time.monotonic() + wait_s > until:
                break
            # Ever longer: who asks often keeps the archiver from what it asks for.
            await asyncio.sleep(wait_s)
            wait_s *= 2
        raise Unavailable(
            f"MongoDB holds {len(found)} of {count} entries from {wanted.first} of "
            f"{session_id}: the archiver is behind. Try again later"
        )

    def close(self) -> None:
        """
        Close the connections.
        """
        self._client.close()

    async def _find(self, session_id: str, wanted: WarmPage) -> list[Document]:
        bounds = {"$gte": wanted.first, "$lte": wanted.last}
        query = {"session": session_id, "seq": bounds}
        try:
            async with self._reading:
                found: list[Document] = await (
                    self._timeline.find(query).sort("seq", ASCENDING).to_list(None)
                )
        except PyMongoError as error:
            raise _away(error) from error
        return found


def _merged(held: Record | None, record: Record) -> Record:
    """
    *record* with the state that an earlier one of the same write brought.
    """
    if record.deleted or record.state is not None or held is None or not held.state:
        return record
    state = msgspec.structs.replace(
        held.state, last_seq=record.last_seq, last_active=record.last_active
    )
    return msgspec.structs.replace(record, state=state)


def _state_operation(record: Record) -> Operation:
    """
    What brings the session's document forward to *record*, and never back.
    """
    life = {"_id": record.session, "created_at": record.created_at}
    older = {
        "_id": record.session,
        "$or": [
            {"created_at": {"$lt": record.created_at}},
            {"created_at": record.created_at, "version": {"$lt": record.version}},
        ],
    }
    if record.deleted:
        return DeleteOne(older)
    if record.state is not None:
        return ReplaceOne(older, _session_document(record.state), upsert=True)
    moved = {"last_seq": record.last_seq, "last_active": record.last_active}

    return UpdateOne({**life, "last_seq": {"$lt": record.last_seq}}, {"$set": moved})


def _wipes(record: Record) -> list[Operation]:
    """
    The removal of an earlier life's timeline: an id may be used again.
    """
    kinds = {event.kind for event in record.events}
    if record.deleted:
        bound = {"$lte": record.last_active}
    elif "session.created" in kinds:
        bound = {"$lt": record.created_at}
    else:
        return []
    return [DeleteMany({"session": record.session, "at": bound})]


def _session_document(session: Session) -> Document:
    document: Document = msgspec.structs.asdict(session)
    document["_id"] = document.pop("id")
    document["acl"] = list(session.acl)
    del document["recent_timeline"]

    return document


def _entry_document(record: Record, packed: msgspec.Raw) -> Document:
    entry = msgspec.msgpack.decode(packed, type=TimelineEntry)
    return {
        "session": record.session,
        "seq": entry.seq,
        "at": entry.at,
        "author": entry.author,
        "entry": entry.entry,
    }


def _packed(document: Document) -> bytes:
    return pack(
        TimelineEntry(
            document["seq"], document["at"], document["author"], document["entry"]
        )
    )


async def _bulk(collection: Any, operations: list[Operation]) -> None:
    """
    Run *operations*; that something is there already is what we want.
    """
    if not operations:
        return
    try:
        await collection.bulk_write(operations, ordered=False)
    except BulkWriteError as error:
        details = error.details or {}
        others = [e for e in details["writeErrors"] if e["code"] != DUPLICATE_KEY]
        if others or details.get("writeConcernErrors"):
            raise _away(error) from error
    except PyMongoError as error:
        raise _away(error) from error


def _away(error: PyMongoError) -> Unavailable:
    return Unavailable(f"MongoDB: {type(error).__name__}")
