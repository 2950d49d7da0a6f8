"""
MongoDB with sensitive fields sealed: on the way in and on the way out.

All of the warm tier's code sees plain values; only timeline entries stay sealed
between the hot tier, MongoDB and the archive, see `store.timeline`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from everbus.gateway.sealing.cipher import DataKey, KeyMissing, SealBroken, is_sealed
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.mongo.documents import SESSIONS, TIMELINE
from everbus.gateway.store.mongo.driver import Driver, Mongo
from everbus.gateway.store.mongo.operations import (
    Document,
    Done,
    Insert,
    Operation,
    Replace,
    Update,
)
from everbus.gateway.store.mongo.sealed_fields import (
    HOLDERS,
    PLACED_BY,
    SealedField,
    sealed_fields,
)
from everbus.gateway.store.search_words import words_in_values

log = structlog.get_logger()


class SealedMongo(Mongo):
    """
    A MongoDB database that holds no sensitive value in plain.
    """

    def __init__(
        self,
        url: str,
        database: str,
        driver: Driver,
        timeout_ms: int,
        sealing: Sealing,
    ) -> None:
        super().__init__(url, database, driver, timeout_ms)
        self._sealing = sealing

    async def bulk(
        self,
        collection: str,
        operations: Sequence[Operation],
        own: Sequence[tuple[str, ...]] = (("_id",),),
    ) -> Done:
        """
        As `Mongo.bulk`, with sensitive fields sealed.
        """
        tenants = {tenant for one in operations for tenant in self._tenant(one)}
        await self._sealing.keyring.ready(tenants)
        values: list[bytes] = []
        sealed = [self._sealed(collection, one, values) for one in operations]
        await self._sealing.keyring.keep_in_warm(values)

        return await super().bulk(collection, sealed, own)

    async def look(
        self,
        collection: str,
        where: Document,
        fields: Mapping[str, int] | None = None,
        **options: Any,
    ) -> list[Document]:
        """
        As `Mongo.look`, with sensitive fields opened.

        Raises:
            SealBroken: a value was changed, or moved from another place.
            KeyMissing: the key of a value was dropped.
        """
        if fields and any(fields.values()) and self._holds_sealed(collection, fields):
            fields = {**fields, **dict.fromkeys(PLACED_BY, 1)}
        found = await super().look(collection, where, fields, **options)
        # Entries stay sealed, see `store.timeline`.
        if collection != TIMELINE:
            await self._open_all(collection, where, found)
        return found

    def _holds_sealed(self, collection: str, fields: Mapping[str, int]) -> bool:
        holder = HOLDERS.get(collection)

        return holder in fields or not self._sealing.fields.isdisjoint(fields)

    async def _open_all(
        self, collection: str, where: Document, found: list[Document]
    ) -> None:
        fields = [
            one
            for document in found
            for one in sealed_fields(collection, document, self._sealing)
            if is_sealed(one.holder[one.name])
        ]
        await self._sealing.keyring.learn(one.holder[one.name] for one in fields)
        several = collection == SESSIONS and not _names_ids(where)
        for one in fields:
            try:
                value = self._sealing.opened(one.holder[one.name], one.place)
            except (SealBroken, KeyMissing) as error:
                if not several:
                    raise
                # A list goes on without it; a read of the session itself fails.
                log.error(  # noqa: TRY400 - the message says it all
                    "sealed.refused", session=one.place.session, error=error.message
                )
                value = {}
            one.holder[one.name] = value

    def _tenant(self, operation: Operation) -> list[str]:
        written = _written(operation)

        return [] if written is None else [written.get("tenant", "")]

    def _sealed(
        self, collection: str, operation: Operation, values: list[bytes]
    ) -> Operation:
        """
        The operation with its sensitive fields sealed; *values* gets what it then
        writes, also what other processes have sealed.
        """
        written = _written(operation)
        if written is None:
            return operation
        document = _copied(collection, written)
        placed = {**document, **_place_in(operation)}
        found = list(sealed_fields(collection, placed, self._sealing))
        if not found:
            return operation
        key = self._sealing.keyring.active(written.get("tenant", ""))
        if key is None:
            raise AssertionError("bulk() has made the keys ready")
        for one in found:
            holder = document if one.holder is placed else one.holder
            self._seal(key, one, holder)
            value: Any = holder.get(one.name)
            if is_sealed(value):
                values.append(value)
        if "words" in document and "owner_id" in document:
            document["words"] = self._words(written)
        return _with(operation, document)

    def _seal(self, key: DataKey, one: SealedField, holder: Document) -> None:
        if one.name in holder and not isinstance(holder[one.name], bytes):
            holder[one.name] = self._sealing.value(key, holder[one.name], one.place)

    def _words(self, written: Document) -> list[str]:
        """
        The search words without those of sealed fields: they would tell their content.
        """
        plain = [
            written.get(name, {})
            for name in ("context_summary", "fields")
            if name not in self._sealing.fields
        ]
        return words_in_values(written["owner_id"], written.get("tags", ()), plain)


def _written(operation: Operation) -> Document | None:
    """
    The fields that an operation writes; None if it writes no values.
    """
    match operation:
        case Insert(document) | Replace(_, document):
            return document
        case Update(_, change):
            found: Document | None = change.get("$set")
            return found
    return None


def _copied(collection: str, written: Document) -> Document:
    """
    A copy that can be sealed: the original stays plain, for another try.
    """
    holder = HOLDERS.get(collection)
    if holder and isinstance(written.get(holder), dict):
        return {**written, holder: dict(written[holder])}
    return dict(written)


def _place_in(operation: Operation) -> Document:
    """
    What tells the place of an update: the fields that it asks for.
    """
    if not isinstance(operation, Update):
        return {}
    asked = operation.where

    return {name: asked[name] for name in ("_id", "created_at") if name in asked}


def _with(operation: Operation, document: Document) -> Operation:
    match operation:
        case Insert():
            return Insert(document)
        case Replace(where, _):
            return Replace(where, document)
        case Update(where, change):
            return Update(where, {**change, "$set": document})
    return operation


def _names_ids(where: Document) -> bool:
    wanted = where.get("_id")

    return isinstance(wanted, str) or (isinstance(wanted, dict) and "$in" in wanted)
