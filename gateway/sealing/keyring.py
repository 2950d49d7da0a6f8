"""
The data keys of all tenants, in memory, and where they are kept wrapped.

A wrapped key lies in Redis before Redis holds anything that it sealed, and in MongoDB
before MongoDB does: so no value outlives its key, and managers need no MongoDB.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
import structlog

from everbus.bus.errors import EverbusError
from everbus.gateway.sealing.cipher import (
    MOST_SEALED,
    DataKey,
    KeyMissing,
    key_id_of,
    new_key_id,
    new_secret,
)
from everbus.gateway.sealing.key_encryption import KeyEncryption

log = structlog.get_logger()

_TICK = timedelta(milliseconds=1)


class WrappedKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    A data key as it is kept.

    Attributes:
        id: see `DataKey`.
        wrapped: the secret, wrapped; empty: the key was dropped, and what it sealed
            can never be read again.
        wrapped_by: name of the key-encryption key.
        at: when it was made; a tenant's newest key seals.
    """

    id: str
    tenant: str
    wrapped: bytes
    wrapped_by: str
    at: datetime

    @property
    def is_dropped(self) -> bool:
        """
        Whether the secret is gone for good.
        """
        return not self.wrapped


class KeyStore(Protocol):
    """
    Keeps wrapped keys.
    """

    async def changes(self) -> int:
        """
        A number that is another one after each `keep`.
        """
        ...

    async def all(self) -> Mapping[str, WrappedKey]:
        """
        Key id → wrapped key.
        """
        ...

    async def keep(self, key: WrappedKey) -> None:
        """
        Keep *key*, durable when this returns; it replaces one of the same id.
        """
        ...


class Keyring:
    """
    The data keys that this process knows.

    Args:
        hot: where keys are kept beside the hot tier.
        warm: where they are kept beside the warm tier; None: there is no warm tier.
    """

    def __init__(
        self, encryption: KeyEncryption, hot: KeyStore, warm: KeyStore | None
    ) -> None:
        self.encryption = encryption
        self._hot = hot
        self._warm = warm
        self._keys: dict[str, DataKey] = {}
        self._active: dict[str, DataKey] = {}
        self._wrapped: dict[str, WrappedKey] = {}
        self._in_warm: set[str] = set()
        self._seen = -1
        self._lock = asyncio.Lock()

    @property
    def wrapped(self) -> Mapping[str, WrappedKey]:
        """
        Key id → wrapped key, as far as they are known.
        """
        return self._wrapped

    def active(self, tenant: str) -> DataKey | None:
        """
        The key that seals the tenant's values; None until `ready` has made one.
        """
        return self._active.get(tenant)

    def key_of(self, sealed: bytes) -> DataKey:
        """
        The key of a sealed value.

        Raises:
            KeyMissing: this process does not know it; `learn` may.
        """
        key = self._keys.get(key_id_of(sealed))
        if key is None:
            raise _missing(key_id_of(sealed), self._wrapped.get(key_id_of(sealed)))
        return key

    async def load(self) -> None:
        """
        Read all keys, and put those into a store that only the other one has.

        Raises:
            KeyMissing: there are keys, and none opens: the key-encryption key is wrong.
            Unavailable: the stores or the key-encryption key cannot be used now.
        """
        async with self._lock:
            await self._load()
        kept = [key for key in self._wrapped.values() if not key.is_dropped]
        if kept and not self._keys:
            raise _missing(kept[0].id, kept[0])

    async def refresh(self) -> None:
        """
        Read the keys again, if the hot store changed.
        """
        if await self._hot.changes() != self._seen:
            async with self._lock:
                await self._load()

    async def ready(self, tenants: Iterable[str], *, warm: bool = False) -> None:
        """
        Have a key that seals for each of *tenants*; *warm*: MongoDB holds it, too.

        Raises:
            Unavailable: a new key cannot be wrapped or kept now.
        """
        for tenant in tenants:
            key = self._active.get(tenant)
            if key is None or key.sealed >= MOST_SEALED:
                key = await self._made(tenant)
            if warm and key.id not in self._in_warm:
                await self._keep_in_warm(self._wrapped[key.id])

    async def learn(self, sealed: Iterable[bytes]) -> None:
        """
        Read the keys again if one of these values has an unknown one.
        """
        if any(self._unknown(value) for value in sealed):
            async with self._lock:
                await self._load()

    async def keep_in_warm(self, sealed: Iterable[bytes]) -> None:
        """
        Have MongoDB hold the keys of these values, whichever process made them: two
        processes that seal a tenant's first values at once make a key each.

        Raises:
            Unavailable: MongoDB cannot keep one now.
        """
        values = list(sealed)
        await self.learn(values)
        for key_id in {key_id_of(value) for value in values} - self._in_warm:
            if key_id in self._wrapped:
                await self._keep_in_warm(self._wrapped[key_id])

    async def rotate(self, tenant: str) -> DataKey:
        """
        Make a new key that seals the tenant's values from now on; other processes
        learn of it by `refresh`. Earlier keys still open what they sealed.
        """
        async with self._lock:
            return await self._make(tenant)

    async def rewrap(self, key: WrappedKey) -> bool:
        """
        Wrap a data key anew by the present key-encryption key; False: it is already.

        Raises:
            KeyMissing: its key-encryption key is unknown.
        """
        if key.is_dropped or key.wrapped_by == self.encryption.name:
            return False
        secret = await self.encryption.unwrap(key.wrapped, key.tenant, key.wrapped_by)
        wrapped = await self.encryption.wrap(secret, key.tenant)
        await self._keep(
            msgspec.structs.replace(
                key, wrapped=wrapped, wrapped_by=self.encryption.name
            )
        )
        return True

    async def drop(self, key: WrappedKey) -> None:
        """
        Forget a data key's secret for good, everywhere: nobody can read again what it
        sealed.
        """
        await self._keep(msgspec.structs.replace(key, wrapped=b""))

    def _unknown(self, sealed: bytes) -> bool:
        key_id = key_id_of(sealed)
        return key_id not in self._keys and key_id not in self._wrapped

    async def _load(self) -> None:
        self._seen = await self._hot.changes()
        hot = await self._hot.all()
        warm = await self._warm_keys()
        # A dropped key is dropped, whichever store tells of it.
        found = {**warm, **hot}
        found |= {k: key for k, key in warm.items() if key.is_dropped}
        for key_id, key in found.items():
            if hot.get(key_id) != key and (key_id not in hot or key.is_dropped):
                await self._hot.keep(key)
        self._in_warm = {k for k, key in warm.items() if key == found[k]}
        for key in found.values():
            await self._unlock(key)
        self._choose()

    async def _warm_keys(self) -> Mapping[str, WrappedKey]:
        if self._warm is None:
            return {}
        try:
            return await self._warm.all()
        except EverbusError as error:
            # The hot store has every key that the hot tier needs.
            log.warning("keys.warm_store_away", error=error.message)
            return {}

    async def _unlock(self, key: WrappedKey) -> None:
        self._wrapped[key.id] = key
        if key.is_dropped:
            self._keys.pop(key.id, None)
            return
        if key.id in self._keys:
            return
        try:
            secret = await self.encryption.unwrap(
                key.wrapped, key.tenant, key.wrapped_by
            )
        except KeyMissing as error:
            log.error(  # noqa: TRY400 - the message says it all
                "key.unreadable", key=key.id, tenant=key.tenant, error=error.message
            )
            return
        self._keys[key.id] = DataKey(key.id, key.tenant, secret)

    def _choose(self) -> None:
        """
        The newest key of each tenant seals.
        """
        newest: dict[str, WrappedKey] = {}
        for key in self._wrapped.values():
            best = newest.get(key.tenant)
            if key.id not in self._keys:
                continue
            if best is None or (key.at, key.id) > (best.at, best.id):
                newest[key.tenant] = key
        self._active = {tenant: self._keys[key.id] for tenant, key in newest.items()}

    async def _made(self, tenant: str) -> DataKey:
        async with self._lock:
            key = self._active.get(tenant)
            if key is None:
                await self._load()
                key = self._active.get(tenant)
            if key is None or key.sealed >= MOST_SEALED:
                key = await self._make(tenant)
        return key

    async def _make(self, tenant: str) -> DataKey:
        secret = new_secret()
        key = WrappedKey(
            id=new_key_id(),
            tenant=tenant,
            wrapped=await self.encryption.wrap(secret, tenant),
            wrapped_by=self.encryption.name,
            at=self._later_than_all(tenant),
        )
        await self._hot.keep(key)
        self._wrapped[key.id] = key
        self._keys[key.id] = DataKey(key.id, tenant, secret)
        self._choose()
        log.info("key.made", key=key.id, tenant=tenant, wrapped_by=key.wrapped_by)

        return self._keys[key.id]

    def _later_than_all(self, tenant: str) -> datetime:
        """
        The time of a new key: it is the newest of its tenant, by any clock.
        """
        mine = [key.at for key in self._wrapped.values() if key.tenant == tenant]
        latest = max(mine, default=None)

        return _now() if latest is None else max(_now(), latest + _TICK)

    async def _keep(self, key: WrappedKey) -> None:
        if self._warm is not None:
            await self._warm.keep(key)
        await self._hot.keep(key)
        self._wrapped[key.id] = key
        if key.is_dropped:
            self._keys.pop(key.id, None)
            self._choose()

    async def _keep_in_warm(self, key: WrappedKey) -> None:
        if self._warm is not None:
            await self._warm.keep(key)
        self._in_warm.add(key.id)


def _now() -> datetime:
    """
    The time in milliseconds, as MongoDB keeps it.
    """
    now = datetime.now(UTC)

    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _missing(key_id: str, known: WrappedKey | None) -> KeyMissing:
    if known is None:
        return KeyMissing(
            f"a value is sealed with the data key {key_id}, which is in no store of "
            "keys; restore eb:data_keys or MongoDB's data_keys from a backup"
        )
    if known.is_dropped:
        return KeyMissing(
            f"the data key {key_id} of tenant {known.tenant!r} was dropped; what it "
            "sealed can never be read again"
        )
    return KeyMissing(
        f"the data key {key_id} of tenant {known.tenant!r} is wrapped by "
        f"{known.wrapped_by}, and does not open with EVERBUS_SEALING_KEK"
    )
