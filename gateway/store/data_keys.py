"""
Wrapped data keys in Redis: one hash, read by every process that opens values.
"""

from collections.abc import Mapping

import msgspec

from everbus.bus.messages import pack
from everbus.bus.wire import Wire
from everbus.gateway.sealing.keyring import WrappedKey
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import write_at_all_times

# Counts the changes; no key id has this form.
_CHANGES = b"changes"
_key = msgspec.msgpack.Decoder(WrappedKey)


class RedisKeyStore:
    """
    A `gateway.sealing.keyring.KeyStore` in Redis.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def changes(self) -> int:
        """
        How often a key was kept.
        """
        return int(await self._wire.call("HGET", key_names.DATA_KEYS, _CHANGES) or 0)

    async def all(self) -> Mapping[str, WrappedKey]:
        """
        Key id → wrapped key.
        """
        found = await self._wire.call("HGETALL", key_names.DATA_KEYS)
        pairs = zip(found[::2], found[1::2], strict=True)

        return {
            name.decode(): _key.decode(packed)
            for name, packed in pairs
            if name != _CHANGES
        }

    async def keep(self, key: WrappedKey) -> None:
        """
        Keep *key*, also when the server is out of memory: data wait for it.
        """
        hash_name = key_names.DATA_KEYS
        await write_at_all_times(self._wire, "HSET", hash_name, key.id, pack(key))
        await write_at_all_times(self._wire, "HINCRBY", hash_name, _CHANGES, 1)
