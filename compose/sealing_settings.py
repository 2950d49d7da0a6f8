"""
Settings → encryption at rest: the keyring of a process, kept current.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.settings import Settings
from everbus.gateway.sealing.key_encryption import KeyEncryption, LocalKeyEncryption
from everbus.gateway.sealing.keyring import Keyring, KeyStore
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.data_keys import RedisKeyStore
from everbus.gateway.store.sealed_copies import HOUSE

log = structlog.get_logger()

# Every process knows of new keys within so many seconds.
REFRESH_S = 5.0


def seals(settings: Settings) -> bool:
    """
    Whether encryption at rest is on.
    """
    return bool(settings.sealing_kek.get_secret_value() or settings.sealing_kms_key)


@asynccontextmanager
async def sealing_of(settings: Settings) -> AsyncIterator[Sealing | None]:
    """
    What seals and opens values, with its keys loaded; None if encryption is off.

    Raises:
        Failed: the settings contradict each other.
        KeyMissing: no stored key opens: the key-encryption key is a wrong one.
        Unavailable: the keys cannot be read now.
    """
    if not seals(settings):
        yield None
        return
    async with AsyncExitStack() as closing:
        wire = wire_to(settings.redis_url, name="everbus-keys")
        closing.push_async_callback(wire.close)
        warm = _mongo_keys(settings, closing)
        keyring = Keyring(_encryption(settings, closing), RedisKeyStore(wire), warm)
        await keyring.load()
        await keyring.ready([HOUSE])
        refreshing = asyncio.create_task(_refresh(keyring))
        try:
            yield Sealing(keyring, settings.sealing_fields.split(","))
        finally:
            refreshing.cancel()
            await asyncio.gather(refreshing, return_exceptions=True)


@asynccontextmanager
async def opening_of(settings: Settings) -> AsyncIterator[Sealing | None]:
    """
    As `sealing_of`, for an edge: it reads keys from MongoDB alone, as it may not see
    those on the bus, and learns new ones when it meets them.

    Raises:
        Failed: the settings contradict each other.
    """
    async with AsyncExitStack() as closing:
        keys = _mongo_keys(settings, closing) if seals(settings) else None
        if keys is None:
            yield None
            return
        keyring = Keyring(_encryption(settings, closing), keys, None)
        yield Sealing(keyring, settings.sealing_fields.split(","))


async def _refresh(keyring: Keyring) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            await keyring.refresh()
        except EverbusError as error:
            log.warning("keys.not_refreshed", error=error.message)


def _encryption(settings: Settings, closing: AsyncExitStack) -> KeyEncryption:
    encryption = _made(settings)
    closing.callback(encryption.close)

    return encryption


def _made(settings: Settings) -> KeyEncryption:
    kek = settings.sealing_kek.get_secret_value()
    if kek and settings.sealing_kms_key:
        raise Failed(
            "EVERBUS_SEALING_KEK and EVERBUS_SEALING_KMS_KEY are both set; unset one",
            USAGE,
        )
    if kek:
        try:
            return LocalKeyEncryption(kek)
        except ValueError as error:
            raise Failed(f"EVERBUS_SEALING_KEK: {error}", USAGE) from error
    # Imported late: boto3 takes some 20 MB.
    from everbus.gateway.sealing.aws_kms import AwsKeyEncryption

    return AwsKeyEncryption(
        settings.sealing_kms_key,
        region=settings.sealing_kms_region,
        endpoint=settings.sealing_kms_endpoint,
    )


def _mongo_keys(settings: Settings, closing: AsyncExitStack) -> KeyStore | None:
    if settings.warm_store != "mongo":
        raise Failed(
            "encryption at rest seals MongoDB; a store of your own "
            f"(EVERBUS_WARM_STORE={settings.warm_store}) would get plain values, so "
            "unset EVERBUS_SEALING_KEK and EVERBUS_SEALING_KMS_KEY",
            USAGE,
        )
    if not settings.mongo_url:
        return None
    from everbus.gateway.store.mongo.data_keys import MongoKeyStore

    store = MongoKeyStore(
        settings.mongo_url,
        settings.mongo_database,
        driver=settings.mongo_driver,
        timeout_ms=round(settings.warm_timeout_s * 1000),
    )
    closing.callback(store.close)

    return store
