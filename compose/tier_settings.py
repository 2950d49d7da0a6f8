"""
Settings → tiers: the stores of a process, each behind its breaker.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from everbus.bus.cluster_wire import wire_to
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.settings import Settings
from everbus.gateway.edge.warm_reads import WarmReads
from everbus.gateway.failpoints import FailPoint, armed, disarmed
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.breaker import TierBreaker, guarded
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.local import FolderCold
from everbus.gateway.store.hot_walk import hot_totals
from everbus.gateway.store.outbox_reader import OutboxReader
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.reader import NoTiers, Reader
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import ColdTier
from everbus.gateway.store.warm_roles import WarmTier

WARM_READS_TIMEOUT_S = 1.5


def warm_tier(settings: Settings, sealing: Sealing | None = None) -> WarmTier | None:
    """
    The warm tier; None if none is configured. *sealing* encrypts what MongoDB holds.

    Raises:
        Failed: the user's own class cannot be imported.
    """
    if settings.warm_store != "mongo":
        tier: WarmTier = _instance_of("EVERBUS_WARM_STORE", settings.warm_store)
    elif settings.mongo_url:
        # Imported late: the drivers of a tier take 7 to 10 MB.
        from everbus.gateway.store.mongo.warm import MongoWarm

        tier = MongoWarm(
            settings.mongo_url,
            settings.mongo_database,
            driver=settings.mongo_driver,
            timeout_ms=round(settings.warm_timeout_s * 1000),
            sealing=sealing,
        )
    else:
        return None
    # The driver's own deadline comes first, since its error has more details.
    return guarded(tier, TierBreaker("warm"), settings.warm_timeout_s + 2)


def fail_point_of(settings: Settings) -> FailPoint:
    """
    The fail point of EVERBUS_FAIL_POINT.
    """
    return armed(settings.fail_point) if settings.fail_point else disarmed


def cold_tier(settings: Settings) -> ColdTier | None:
    """
    The cold tier; None if none is configured.

    Raises:
        Failed: the user's own class cannot be imported, or a folder is missing.
    """
    tier = _cold(settings)
    if tier is None:
        return None
    return guarded(tier, TierBreaker("cold"), settings.cold_timeout_s + 2)


def archives_of(
    settings: Settings, fail: FailPoint = disarmed, sealing: Sealing | None = None
) -> Archives | None:
    """
    The archives in the cold tier; None if none is configured. *sealing* encrypts them.
    """
    cold = cold_tier(settings)

    return None if cold is None else Archives(cold, fail=fail, sealing=sealing)


@asynccontextmanager
async def lower_tiers(
    settings: Settings,
    fail: FailPoint = disarmed,
    sealing: Sealing | None = None,
) -> AsyncIterator[Reader | NoTiers]:
    """
    The reader of the warm and the cold tier, for a manager; the block closes it.
    """
    warm = warm_tier(settings, sealing)
    sealed = None if sealing is None else SealedCopies(sealing)
    outbox = outbox_of(settings, sealed)
    if warm is None:
        try:
            yield NoTiers(outbox, settings.page_max_bytes)
        finally:
            await outbox.close()
        return
    archives = archives_of(settings, fail, sealing)
    prices = Prices(
        hot=settings.price_hot_gib_month,
        warm=settings.price_warm_gib_month,
        cold=settings.price_cold_gib_month,
    )
    reader = Reader(
        warm,
        archives,
        prices,
        hot_counts=partial(hot_totals, settings.redis_url),
        outbox=outbox,
        page_bytes=settings.page_max_bytes,
        fail=fail,
        sealed=sealed,
    )
    try:
        yield reader
    finally:
        await reader.close()
        await outbox.close()
        warm.close()
        if archives is not None:
            archives.close()


@contextmanager
def warm_reads(
    settings: Settings, sealing: Sealing | None = None
) -> Iterator[WarmReads | None]:
    """
    The reads of an edge while the bus is away; None without MongoDB.

    Calls of a tier have a shorter deadline here, since the client has waited already.
    """
    hasty = settings.model_copy(
        update={"warm_timeout_s": min(settings.warm_timeout_s, WARM_READS_TIMEOUT_S)}
    )
    warm = warm_tier(hasty, sealing)
    sealed = None if sealing is None else SealedCopies(sealing)
    if warm is None:
        yield None
        return
    archives = archives_of(settings, sealing=sealing)
    try:
        yield WarmReads(
            warm, archives, page_bytes=settings.page_max_bytes, sealed=sealed
        )
    finally:
        warm.close()
        if archives is not None:
            archives.close()


def outbox_of(settings: Settings, sealed: SealedCopies | None = None) -> OutboxReader:
    """
    The reader of the outboxes for subscribers; it connects at its first use.
    """
    return OutboxReader(
        lambda: wire_to(settings.redis_url, name="everbus-feed"),
        settings.partitions,
        sealed,
    )


def fields_type(settings: Settings) -> type[msgspec.Struct] | None:
    """
    The type of the application's own session fields; None: any JSON object.

    Raises:
        Failed: it cannot be imported, or is no msgspec Struct.
    """
    if not settings.session_fields:
        return None
    found = _imported("EVERBUS_SESSION_FIELDS", settings.session_fields)
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
        tier: ColdTier = _instance_of("EVERBUS_COLD_STORE", settings.cold_store)
        return tier
    if not settings.s3_endpoint:
        return None
    from everbus.gateway.store.cold.s3 import S3Cold

    return S3Cold(
        settings.s3_endpoint,
        settings.s3_bucket,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        timeout_s=settings.cold_timeout_s,
        ca=settings.s3_ca,
    )


def _instance_of(setting: str, path: str) -> Any:
    """
    An instance of the user's class, made without arguments.
    """
    return _imported(setting, path)()


def _imported(setting: str, path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Failed(f"{setting}={path} cannot be imported: {error}", USAGE) from error
