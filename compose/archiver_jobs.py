"""
Settings → the archiver's scheduled jobs.
"""

from datetime import UTC, datetime, timedelta

from everbus.archiver.archiving import ArchiveReport, Archiving
from everbus.archiver.gateway_commands import Send
from everbus.archiver.retirement import Retirement
from everbus.archiver.schedule import ScheduledJob
from everbus.archiver.tier_jobs import TierJobs
from everbus.compose.settings import Settings
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.warm_roles import WarmTier

# Looking for marks is cheap: one indexed query, which mostly finds none.
MARKS_EVERY_S = 2.0
REMOVALS_EVERY_S = 10.0
# After an update of everbus: sessions a minute whose search words are made anew.
WORDS, WORDS_EVERY_S = 500, 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def archiver_jobs(
    settings: Settings,
    warm: WarmTier,
    archives: Archives | None,
    send: Send,
    hot: RedisHot,
    fail: FailPoint,
) -> list[ScheduledJob]:
    """
    The jobs words, archive, purge, restore, remove and retire, as far as configured.
    """
    jobs = [ScheduledJob("words", WORDS_EVERY_S, lambda: warm.renew_words(WORDS))]
    if archives is not None:
        archiving = Archiving(warm, archives, send, hot.exists, fail)
        tier_jobs = TierJobs(warm, archives, fail)
        idle_days = settings.archive_after_days

        async def archive() -> ArchiveReport:
            return await archiving.run(days_ago(idle_days))

        jobs += [
            ScheduledJob("archive", settings.archive_every_s, archive),
            ScheduledJob("purge", MARKS_EVERY_S, tier_jobs.purge),
            ScheduledJob("restore", MARKS_EVERY_S, tier_jobs.restore),
            ScheduledJob("remove", REMOVALS_EVERY_S, tier_jobs.remove),
        ]
    if settings.retention_days:
        retirement, kept_days = Retirement(warm, send), settings.retention_days

        async def retire() -> int:
            return await retirement.run(days_ago(kept_days))

        jobs.append(ScheduledJob("retire", settings.archive_every_s, retire))
    return jobs


def days_ago(days: float) -> datetime:
    """
    The time *days* before now; 1970 if that is earlier, since no session is older.
    """
    now = datetime.now(UTC)
    if days >= (now - _EPOCH).days:
        return _EPOCH
    return now - timedelta(days=days)
