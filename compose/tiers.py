"""
Settings → tiers: which stores a process uses, each behind its breaker.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from bus.cluster import wire_to
from bus.routing import is_cluster
from bus.wire import Wire
from compose.exits import USAGE, Failed
from compose.settings import Settings
from gateway.edge.below import Below
from gateway.failpoints import FailPoint, disarmed
from gateway.store.breaker import Breaker, GuardedCold, GuardedWarm
from gateway.store.cold.objects import FolderCold
from gateway.store.cold.vault import Vault
from gateway.store.hot import RedisHot
from gateway.store.pricing import Prices
from gateway.store.reader import NoTiers, Reader
from gateway.store.tiers import ColdTier, WarmTier
from gateway.store.unconfirmed import Unconfirmed

WARM_SIDE_S = 1.5


def warm_tier(settings: Settings) -> WarmTier | None:
    """
    The warm tier; None if none is configured.

    Raises:
        Failed: a class of the user's own cannot be had.
    """
    if settings.warm_store != "mongo":
        made: WarmTier = _made("EVERBUS_WARM_STORE", settings.warm_store)
    elif settings.mongo_url:
        # The drivers of a tier take 7 to 10 MB, so only who has the tier loads them.
        from gateway.store.mongo.warm import MongoWarm

        made = MongoWarm(
            settings.mongo_url,
            settings.mongo_database,
            driver=settings.mongo_driver,
            timeout_ms=round(settings.warm_timeout_s * 1000),
        )
    else:
        return None
    # The driver's own deadline comes first; it says more.
    return GuardedWarm(made, Breaker("warm"), settings.warm_timeout_s + 2)


def cold_tier(settings: Settings) -> ColdTier | None:
    """
    The cold tier; None if none is configured.

    Raises:
        Failed: a class of the user's own cannot be had, or a folder is missing.
    """
    made = _cold(settings)
    if made is None:
        return None
    return GuardedCold(made, Breaker("cold"), settings.cold_timeout_s + 2)


def vault_of(settings: Settings, fail: FailPoint = disarmed) -> Vault | None:
    """
    The archives in the cold tier; None if none is configured.
    """
    cold = cold_tier(settings)

    return None if cold is None else Vault(cold, fail=fail)


@asynccontextmanager
async def tiers_below(
    settings: Settings, wire: Wire, fail: FailPoint = disarmed
) -> AsyncIterator[Reader | NoTiers]:
    """
    What managers read from the tiers below the hot one; closed with the block.
    """
    warm = warm_tier(settings)
    outbox = outbox_of(settings)
    if warm is None:
        try:
            yield NoTiers(outbox)
        finally:
            await outbox.close()
        return
    vault = vault_of(settings, fail)
    prices = Prices(
        hot=settings.price_hot_gib_month,
        warm=settings.price_warm_gib_month,
        cold=settings.price_cold_gib_month,
    )
    # Counted by walking one server's keys, so a cluster has none.
    whole = not is_cluster(settings.redis_url)
    counts = hot_counts(wire, settings.partitions) if whole else None
    reader = Reader(warm, vault, prices, hot_counts=counts, outbox=outbox, fail=fail)
    try:
        yield reader
    finally:
        await reader.close()
        await outbox.close()
        warm.close()
        if vault is not None:
            vault.close()


@contextmanager
def warm_side(settings: Settings) -> Iterator[Below | None]:
    """
    What an edge reads while the bus is away; None if no MongoDB is configured.

    Calls of a tier have a shorter deadline here: who reads has waited already.
    """
    hasty = settings.model_copy(
        update={"warm_timeout_s": min(settings.warm_timeout_s, WARM_SIDE_S)}
    )
    warm = warm_tier(hasty)
    if warm is None:
        yield None
        return
    vault = vault_of(settings)
    try:
        yield Below(warm, vault)
    finally:
        warm.close()
        if vault is not None:
            vault.close()


def outbox_of(settings: Settings) -> Unconfirmed:
    """
    The outboxes, for those who watch; connected when somebody does.
    """
    return Unconfirmed(
        lambda: wire_to(settings.redis_url, name="everbus-feed"), settings.partitions
    )


def hot_counts(wire: Wire, partitions: int) -> Callable[[], Any]:
    """
    What asks how many sessions are hot, and the bytes that Redis takes.
    """
    hot = RedisHot(wire, partitions)

    async def counts() -> tuple[int, int]:
        told = (await wire.call("INFO", "memory")).decode()
        used = next(x for x in told.splitlines() if x.startswith("used_memory:"))
        return await hot.count(), int(used.partition(":")[2])

    return counts


def fields_type(settings: Settings) -> type[msgspec.Struct] | None:
    """
    The type of the application's own session fields; None: any JSON object.

    Raises:
        Failed: it cannot be had, or is no msgspec Struct.
    """
    if not settings.session_fields:
        return None
    found = _named("EVERBUS_SESSION_FIELDS", settings.session_fields)
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        raise Failed(
            f"EVERBUS_SESSION_FIELDS={settings.session_fields} is no msgspec.Struct",
            USAGE,
        )
    return found


def _cold(settings: Settings) -> ColdTier | None:
    if settings.cold_store == "folder":
        if not settings.cold_folder:
            raise Failed(
                "EVERBUS_COLD_STORE=folder needs EVERBUS_COLD_FOLDER, a folder", USAGE
            )
        return FolderCold(Path(settings.cold_folder))
    if settings.cold_store != "s3":
        made: ColdTier = _made("EVERBUS_COLD_STORE", settings.cold_store)
        return made
    if not settings.s3_endpoint:
        return None
    from gateway.store.cold.s3 import S3Cold

    return S3Cold(
        settings.s3_endpoint,
        settings.s3_bucket,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        timeout_s=settings.cold_timeout_s,
    )


def _made(setting: str, path: str) -> Any:
    """
    An instance of the user's class, which is made without arguments.
    """
    return _named(setting, path)()


def _named(setting: str, path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Failed(f"{setting}={path} cannot be imported: {error}", USAGE) from error
