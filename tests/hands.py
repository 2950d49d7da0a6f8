"""
An archiver in the test's process, whose every step a test can set going and watch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from everbus.archiver.archiving import ArchiveReport, Archiving
from everbus.archiver.confirmation import ConfirmationLimits
from everbus.archiver.drain import Backoff, Drain
from everbus.archiver.gateway_commands import gateway_commands
from everbus.archiver.retirement import Retirement
from everbus.archiver.schedule import ScheduledJob, run_schedule
from everbus.archiver.tier_jobs import TierJobs
from everbus.bus.wire import Wire
from everbus.compose.settings import Settings
from everbus.compose.tier_settings import cold_tier, warm_tier
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.store.breaker import GuardedTier, TierBreaker
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.warm_roles import WarmTier

# How long the breakers of this process stay open at first.
OPEN_S = 0.1


class Hands:
    """
    An archiver's parts, each to be set going by the test.
    """

    retirement: Retirement

    def __init__(
        self,
        settings: Settings,
        warm: GuardedTier[WarmTier],
        vault: Archives,
        archiving: Archiving,
        fail: FailPoint,
    ) -> None:
        self.warm, self.vault = warm, vault
        self.archiving = archiving
        self.upkeep = TierJobs(warm, vault, fail, rest_s=0)
        self._settings = settings
        self._fail = fail

    @asynccontextmanager
    async def draining(self, *, hot_ttl_s: float = 3600) -> AsyncIterator[Drain]:
        """
        Write-behind, for as long as the block runs.
        """
        drain = Drain(
            self._settings.redis_url,
            self._settings.partitions,
            self.warm,
            "hands",
            fail=self._fail,
            terms=ConfirmationLimits(hot_ttl_ms=round(hot_ttl_s * 1000)),
            backoff=Backoff(0.1, 0.5),
        )
        stop = asyncio.Event()
        running = asyncio.create_task(drain.run(stop))
        try:
            yield drain
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await running

    async def archive(self, **options: Any) -> ArchiveReport:
        """
        One pass over everything that is idle now.
        """
        return await self.archiving.run(a_moment_on(), **options)

    @asynccontextmanager
    async def at_it(
        self, hot_ttl_s: float = 3600, every_s: float = 0.1
    ) -> AsyncIterator[None]:
        """
        Everything that an archiver does, again and again.
        """
        stop = asyncio.Event()
        async with self.draining(hot_ttl_s=hot_ttl_s) as drain:
            works = [
                ScheduledJob("archive", every_s, self.archive),
                ScheduledJob("purge", every_s, self.upkeep.purge),
                ScheduledJob("restore", every_s, self.upkeep.restore),
                ScheduledJob("remove", every_s, self.upkeep.remove),
            ]
            running = asyncio.create_task(
                run_schedule(stop, lambda: drain.lease.held, works)
            )
            try:
                yield
            finally:
                stop.set()
                await running


@asynccontextmanager
async def hands_on(settings: Settings, fail: FailPoint) -> AsyncIterator[Hands]:
    """
    An archiver that does nothing unasked.
    """
    warm, vault = tiers_here(settings, fail)
    url, partitions = settings.redis_url, settings.partitions
    wire = Wire(url, name="everbus-hands")
    try:
        async with gateway_commands(url, partitions) as send:
            hot = RedisHot(wire, partitions)
            archiving = Archiving(warm, vault, send, hot.exists, fail)
            hands = Hands(settings, warm, vault, archiving, fail)
            hands.retirement = Retirement(warm, send)
            yield hands
    finally:
        await wire.close()
        warm.close()
        vault.close()


def tiers_here(
    settings: Settings, fail: FailPoint
) -> tuple[GuardedTier[WarmTier], Archives]:
    """
    The tiers that this process uses; a server that was killed is asked again soon.
    """
    warm, cold = warm_tier(settings), cold_tier(settings)
    assert isinstance(warm, GuardedTier)
    assert isinstance(cold, GuardedTier)
    for tier in (warm, cold):
        tier.breaker = TierBreaker(tier.breaker.name, open_s=OPEN_S)

    return warm, Archives(cold, fail=fail)


def a_moment_on() -> datetime:
    """
    A time before which everything so far was idle.
    """
    return datetime.now(UTC) + timedelta(seconds=5)
