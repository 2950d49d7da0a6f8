"""
Settings → what the archiver does by the clock.
"""

from datetime import UTC, datetime, timedelta

from archiver.archiving import Archiving, Report
from archiver.commands import Send
from archiver.retirement import Retirement
from archiver.schedule import Work
from archiver.upkeep import Upkeep
from compose.settings import Settings
from gateway.failpoints import FailPoint
from gateway.store.cold.vault import Vault
from gateway.store.tiers import HotTier, WarmTier

# Marks are looked for so often, at the least cost: one indexed query that finds none.
MARKS_EVERY_S = 2.0
REMOVALS_EVERY_S = 10.0


def archiver_works(
    settings: Settings,
    warm: WarmTier,
    vault: Vault | None,
    send: Send,
    hot: HotTier,
    fail: FailPoint,
) -> list[Work]:
    """
    Archiving, purging, bringing back, removing and clean-up, as far as configured.
    """
    works = []
    if vault is not None:
        archiving = Archiving(warm, vault, send, hot.exists, fail)
        upkeep = Upkeep(warm, vault, fail)
        idle_days = settings.archive_after_days

        async def archive() -> Report:
            return await archiving.run(_ago(idle_days))

        works += [
            Work("archive", settings.archive_every_s, archive),
            Work("purge", MARKS_EVERY_S, upkeep.purge),
            Work("restore", MARKS_EVERY_S, upkeep.restore),
            Work("remove", REMOVALS_EVERY_S, upkeep.remove),
        ]
    if settings.retention_days:
        retirement, kept_days = Retirement(warm, send), settings.retention_days

        async def retire() -> int:
            return await retirement.run(_ago(kept_days))

        works.append(Work("retire", settings.archive_every_s, retire))
    return works


def _ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)
