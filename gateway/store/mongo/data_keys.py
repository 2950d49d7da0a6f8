"""
Wrapped data keys in MongoDB: what outlives the loss of all of Redis.
"""

from collections.abc import Mapping

import msgspec

from everbus.gateway.sealing.keyring import WrappedKey
from everbus.gateway.store.mongo.driver import Driver, Mongo
from everbus.gateway.store.mongo.operations import Replace

DATA_KEYS = "data_keys"
CALL_TIMEOUT_MS = 10_000


class MongoKeyStore:
    """
    A `gateway.sealing.keyring.KeyStore` in MongoDB; it has no count of changes, since
    processes look for those in Redis.
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

    async def changes(self) -> int:
        """
        Always 0.
        """
        return 0

    async def all(self) -> Mapping[str, WrappedKey]:
        """
        Key id → wrapped key.
        """
        found = await self._mongo.find(DATA_KEYS, {})

        return {
            one["_id"]: WrappedKey(
                id=one["_id"],
                tenant=one["tenant"],
                wrapped=bytes(one["wrapped"]),
                wrapped_by=one["wrapped_by"],
                at=one["at"],
            )
            for one in found
        }

    async def keep(self, key: WrappedKey) -> None:
        """
        Keep *key*, in the journal of the majority when this returns.
        """
        fields = msgspec.structs.asdict(key)
        document = {"_id": fields.pop("id"), **fields}
        await self._mongo.bulk(DATA_KEYS, [Replace({"_id": key.id}, document)])

    def close(self) -> None:
        """
        Give the connections back.
        """
        self._mongo.close()
