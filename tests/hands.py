"""
An archiver in the test's process, whose every step a test can set going and watch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.archiving import Archiving, Report
from archiver.commands import gateway_commands
from archiver.confirmation import Terms
from archiver.drain import Backoff, Drain
from archiver.retirement import Retirement
from archiver.schedule import Work, run_schedule
from archiver.upkeep import Upkeep
from bus.wire import Wire
from compose.settings import Settings
from compose.tiers import cold_tier, warm_tier
from gateway.failpoints import FailPoint
from gateway.store.breaker import Breaker, GuardedCold, GuardedWarm
from gateway.store.cold.vault import Vault
from gateway.store.hot import RedisHot

# How long the breakers of this process stay open at first.
OPEN_S = 0.1
BACKOFF = Backoff(0.1, 0.5)


class Hands:
    """
    An archiver's parts, each to be set going by the test.
    """

    retirement: Retirement

    def __init__(
        self,
        settings: Settings,
        warm: GuardedWarm,
        vault: Vault,
        archiving: Archiving,
        fail: FailPoint,
    ) -> None:
        self.warm, self.vault = warm, vault
        self.archiving = archiving
        self.upkeep = Upkeep(warm, vault, fail, rest_s=0)
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
            terms=Terms(hot_ttl_ms=round(hot_ttl_s * 1000)),
            backoff=BACKOFF,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(drain.run(stop))
        try:
            yield drain
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await running

    async def archive(self, **options: Any) -> Report:
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
                Work("archive", every_s, self.archive),
                Work("purge", every_s, self.upkeep.purge),
                Work("restore", every_s, self.upkeep.restore),
                Work("remove", every_s, self.upkeep.remove),
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


def tiers_here(settings: Settings, fail: FailPoint) -> tuple[GuardedWarm, Vault]:
    """
    The tiers that this process uses; a server that was killed is asked again soon.
    """
    warm, cold = warm_tier(settings), cold_tier(settings)
    assert isinstance(warm, GuardedWarm)
    assert isinstance(cold, GuardedCold)
    for tier in (warm, cold):
        tier.breaker = Breaker(tier.breaker.name, open_s=OPEN_S)

    return warm, Vault(cold, fail=fail)


def a_moment_on() -> datetime:
    """
    A time before which everything so far was idle.
    """
    return datetime.now(UTC) + timedelta(seconds=5)
