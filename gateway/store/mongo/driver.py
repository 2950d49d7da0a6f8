"""
Access to MongoDB: the one file that knows its drivers.

Two drivers serve, behind one adapter: motor, as the customer asked, and PyMongo's
own async client, which motor's maintainers recommend since motor's end of life in
May 2026. What a driver or a server says becomes Unavailable, or a refusal of the
one operation that it can never take.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC
from typing import Any, Literal

from bson.codec_options import CodecOptions, TypeDecoder, TypeRegistry
from bson.errors import BSONError
from bson.int64 import Int64
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, DeleteMany, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from everbus.bus.errors import Unavailable
from everbus.gateway.store.mongo.operations import (
    PERMANENT,
    WHOLE,
    Document,
    Done,
    Insert,
    Operation,
    Remove,
    Replace,
    Sort,
    Update,
    both,
    judged,
    passing,
)

Driver = Literal["motor", "pymongo"]
# So that readers, however many, leave the archiver its share of MongoDB.
READS_AT_ONCE = 4
SELECTION_TIMEOUT_MS = 2_000
# Operations per bulk, so that each bulk stays far below the deadline of a call.
BULK_OPERATIONS = 500
# What the drivers cannot even send.
_UNSENDABLE = (BSONError, OverflowError, UnicodeEncodeError)


class _PlainInteger(TypeDecoder):
    """
    Integers beyond 32 bits as Python's own; msgspec knows no others.
    """

    bson_type = Int64

    def transform_bson(self, value: Any) -> int:
        return int(value)


class Mongo:
    """
    One MongoDB database, for the event loop in which it is first used.

    All methods raise Unavailable when MongoDB cannot answer within *timeout_ms*.
    """

    def __init__(self, url: str, database: str, driver: Driver, timeout_ms: int):
        make: Any = AsyncMongoClient if driver == "pymongo" else AsyncIOMotorClient
        # Two clients with the same methods, for our purposes; see _cursor and close.
        self._client: Any = make(
            url,
            timeoutMS=timeout_ms,
            # That no server is there is known sooner than that one is slow.
            serverSelectionTimeoutMS=min(timeout_ms, SELECTION_TIMEOUT_MS),
            appname="everbus",
        )
        options: CodecOptions[Document] = CodecOptions(
            tz_aware=True, tzinfo=UTC, type_registry=TypeRegistry([_PlainInteger()])
        )
        durable = WriteConcern(w="majority", j=True)
        self._database = self._client.get_database(
            database, codec_options=options, write_concern=durable
        )
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None

    async def index(self, collection: str, keys: Sort, **options: Any) -> None:
        """
        Make an index, unless it is there.
        """
        target = self._collection(collection)
        await _answered(target.create_index(list(keys), **options))

    async def bulk(
        self,
        collection: str,
        operations: Sequence[Operation],
        own: Sequence[tuple[str, ...]] = (("_id",),),
    ) -> Done:
        """
        Run *operations*, in no particular order; on disk when this returns.

        Args:
            own: the caller's unique keys. A duplicate under one of them is a
                repeat; under any other, a refusal.
        """
        done = Done(0, {}, {})
        for first in range(0, len(operations), BULK_OPERATIONS):
            part = operations[first : first + BULK_OPERATIONS]
            done = both(done, await self._bulk(collection, part, own), first)

        return done

    async def delete(self, collection: str, where: Document) -> int:
        """
        Delete all documents that are as *where* says; how many there were.
        """
        target = self._collection(collection)
        result = await _answered(target.delete_many(where))

        return int(result.deleted_count)

    async def find(
        self,
        collection: str,
        where: Document,
        fields: Mapping[str, int] | None = None,
        **options: Any,
    ) -> list[Document]:
        """
        As `look`, for readers: READS_AT_ONCE of these run at once.
        """
        async with self._reading:
            return await self.look(collection, where, fields, **options)

    async def look(
        self,
        collection: str,
        where: Document,
        fields: Mapping[str, int] | None = None,
        *,
        sort: Sort = (),
        limit: int = 0,
        goes_on: Callable[[Document], bool] | None = None,
        batch_size: int = 0,
    ) -> list[Document]:
        """
        The documents that are as *where* says; the last one is the first for which
        *goes_on* is false. MongoDB sends *batch_size* of them at once, at most.
        """
        cursor = self._cursor(collection, where, fields, sort, limit)
        if goes_on is not None:
            cursor = cursor.batch_size(batch_size)
            taken: list[Document] = await _answered(_taken(cursor, goes_on))
            return taken
        found: list[Document] = await _answered(cursor.to_list(None))

        return found

    async def explain(
        self, collection: str, where: Document, *, sort: Sort, limit: int
    ) -> Document:
        """
        The plan by which MongoDB finds what `find` asks for.
        """
        cursor = self._cursor(collection, where, None, sort, limit)
        reply: Document = await _answered(cursor.explain())

        return reply

    async def aggregate(
        self, collection: str, stages: Sequence[Document]
    ) -> list[Document]:
        """
        What comes out of an aggregation.
        """
        async with self._reading:
            cursor = self._collection(collection).aggregate(list(stages))
            if asyncio.iscoroutine(cursor):
                cursor = await _answered(cursor)
            found: list[Document] = await _answered(cursor.to_list(None))

            return found

    async def size(self) -> int:
        """
        The bytes that documents and indexes take; 0 if the server does not tell.
        """
        self._check_loop()
        try:
            reply = await _answered(self._database.command("dbStats"))
        except Unavailable:
            # Asking may be forbidden, or unknown to the server; counting is not.
            return 0
        return int(reply.get("storageSize", 0)) + int(reply.get("indexSize", 0))

    def close(self) -> None:
        """
        Give the connections back; of PyMongo's, soon: see `closed`.
        """
        closing = self._client.close()
        if not asyncio.iscoroutine(closing):
            return
        if self._loop is None or self._loop.is_closed():
            # Never used, or its loop is gone and its sockets with it.
            closing.close()
        else:
            self._closing = self._loop.create_task(closing)

    async def closed(self) -> None:
        """
        Return when the connections are given back, after `close`.
        """
        if self._closing is not None:
            await self._closing

    async def _bulk(
        self,
        collection: str,
        operations: Sequence[Operation],
        own: Sequence[tuple[str, ...]],
    ) -> Done:
        target = self._collection(collection)
        requests = [_request(operation) for operation in operations]
        try:
            result = await target.bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            return _partly(error, own)
        except _UNSENDABLE as error:
            reason = f"MongoDB's driver cannot send it: {type(error).__name__}"
        except OperationFailure as error:
            if error.code not in WHOLE:
                raise _away(error) from error
            reason = f"MongoDB: {PERMANENT[error.code]} (code {error.code})"
        except PyMongoError as error:
            raise _away(error) from error
        else:
            return Done(result.matched_count + result.upserted_count, {}, {})
        if len(operations) == 1:
            return Done(0, {}, {0: reason})
        # It was refused as a whole: halve it until the culprit is alone. What is
        # done twice by this is the same as done once.
        half = len(operations) // 2
        first = await self._bulk(collection, operations[:half], own)

        return both(first, await self._bulk(collection, operations[half:], own), half)

    def _cursor(
        self,
        collection: str,
        where: Document,
        fields: Mapping[str, int] | None,
        sort: Sort,
        limit: int,
    ) -> Any:
        cursor = self._collection(collection).find(where, fields).limit(limit)

        return cursor.sort(list(sort)) if sort else cursor

    def _collection(self, name: str) -> Any:
        self._check_loop()
        return self._database[name]

    def _check_loop(self) -> None:
        """
        Refuse another event loop: PyMongo's locks would hang in it, and motor waits
        for the first one for ever, even after its end.
        """
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            raise RuntimeError(
                "this MongoDB client belongs to another event loop, in which it was "
                "first used; make a client per event loop"
            )


async def _taken(cursor: Any, goes_on: Callable[[Document], bool]) -> list[Document]:
    # MongoDB sends at most 16 MiB at once, so that is all of what is read in vain.
    found: list[Document] = []
    try:
        async for document in cursor:
            found.append(document)
            if not goes_on(document):
                break
    finally:
        await cursor.close()
    return found


async def _answered(question: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await question
    except PyMongoError as error:
        raise _away(error) from error


def _request(operation: Operation) -> Any:
    match operation:
        case Insert(document):
            # The driver adds an _id; ours must stay as it is for a repeat.
            return InsertOne(dict(document))
        case Update(where, change):
            return UpdateOne(where, change)
        case Replace(where, document):
            return ReplaceOne(where, document, upsert=True)
        case Remove(where):
            return DeleteMany(where)


def _partly(error: BulkWriteError, own: Sequence[tuple[str, ...]]) -> Done:
    details: Document = dict(error.details or {})
    if (code := passing(details)) is not None:
        raise _away(error, code) from error
    return judged(details, own)


def _away(error: PyMongoError, code: int | None = None) -> Unavailable:
    code = code or getattr(error, "code", None)
    reply = f"MongoDB: {type(error).__name__}" + (f", code {code}" if code else "")

    return Unavailable(f"{reply}; it is tried again")
