"""
Seals MongoDB's documents by the newest keys, while everything runs.

Each value is replaced only if it is unchanged since it was read. A document that
changes meanwhile keeps its later value, which has the newest key anyway.
"""

from collections.abc import Callable, Iterator

from everbus.gateway.sealing.cipher import is_sealed, key_id_of
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.mongo.documents import (
    CHECKPOINTS,
    EVENTS,
    NOTICES,
    SESSIONS,
    SNAPSHOTS,
    TIMELINE,
)
from everbus.gateway.store.mongo.driver import Driver, Mongo
from everbus.gateway.store.mongo.operations import Document, Update
from everbus.gateway.store.mongo.sealed_fields import SealedField, sealed_fields

COLLECTIONS = (SESSIONS, TIMELINE, EVENTS, NOTICES, SNAPSHOTS, CHECKPOINTS)
PAGE = 200
CALL_TIMEOUT_MS = 10_000


class Resealing:
    """
    One walk over all documents; it may be ended and begun again.
    """

    def __init__(
        self, url: str, database: str, sealing: Sealing, *, driver: Driver = "motor"
    ) -> None:
        self._mongo = Mongo(url, database, driver, CALL_TIMEOUT_MS)
        self._sealing = sealing

    async def total(self) -> int:
        """
        How many documents there are.
        """
        counting: list[Document] = [{"$count": "documents"}]
        found = [await self._mongo.aggregate(name, counting) for name in COLLECTIONS]

        return sum(int(one[0]["documents"]) for one in found if one)

    async def run(self, tenant: str | None, advance: Callable[[int], None]) -> int:
        """
        Seal what an earlier key sealed, of *tenant* (None: of all);
        how many documents changed. *advance* is called with the documents looked at.

        Raises:
            SealBroken: a value was changed; it stays, and the walk ends.
        """
        changed = 0
        for collection in COLLECTIONS:
            where: Document = {}
            while True:
                page = await self._mongo.look(
                    collection, where, sort=[("_id", 1)], limit=PAGE
                )
                changed += await self._reseal(collection, page, tenant)
                advance(len(page))
                if len(page) < PAGE:
                    break
                where = {"_id": {"$gt": page[-1]["_id"]}}
        return changed

    async def _reseal(
        self, collection: str, page: list[Document], tenant: str | None
    ) -> int:
        sealed = [
            one.holder[one.name]
            for document in page
            for one in sealed_fields(collection, document, self._sealing)
            if is_sealed(one.holder[one.name])
        ]
        await self._sealing.keyring.learn(sealed)
        updates = [
            update
            for document in page
            for update in self._updates(collection, document, tenant)
        ]
        done = await self._mongo.bulk(collection, updates) if updates else None

        return 0 if done is None else done.matched

    def _updates(
        self, collection: str, document: Document, tenant: str | None
    ) -> Iterator[Update]:
        for one in sealed_fields(collection, document, self._sealing):
            update = self._update(document, one, tenant)
            if update is not None:
                yield update

    def _update(
        self, document: Document, one: SealedField, tenant: str | None
    ) -> Update | None:
        before = one.holder[one.name]
        keyring = self._sealing.keyring
        if not is_sealed(before):
            # From before encryption; its tenant stands in sessions and snapshots only.
            return None
        old = keyring.key_of(before)
        active = keyring.active(old.tenant)
        if active is None or key_id_of(before) == active.id:
            return None
        if tenant not in (None, old.tenant):
            return None
        after = active.seal(old.open(before, one.place), one.place)
        where = {"_id": document["_id"], one.path: before}

        return Update(where, {"$set": {one.path: after}})

    def close(self) -> None:
        """
        Give connections back.
        """
        self._mongo.close()
