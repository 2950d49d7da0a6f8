"""
Quotas of MADs: bytes of their streams, and connections of their users.

At a slow beat each manager measures the ingress streams of the lanes that it serves;
the one with the `mads` lane also measures the heartbeats, and counts connections. The
user of a MAD above its quota is switched off: a MAD that fills the bus would else stop
everybody. Its acknowledged commands stay and are settled.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import structlog
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.gateway.store import mad_access
from everbus.gateway.store.mad_access import DisabledMad
from everbus.gateway.store.scripts import load_scripts, script
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

BEAT_S = 1.0
# Streams of one script, and of one beat; the next beat goes on behind them.
STREAMS_AT_ONCE = 200
STREAMS_A_BEAT = 2_000
# A stream is counted node by node, so one of many entries is measured less often.
ENTRIES_A_BEAT = 50_000
CONNECTIONS_EVERY_S = 5.0
# A MAD that cannot be disabled is reported so often.
REPORT_EVERY_S = 60.0

Lane = int | str


class QuotaLimits(NamedTuple):
    """
    What one MAD may take: bytes of its streams that one manager serves, and
    connections to one node.
    """

    ingress_bytes: int = 256 * 1024 * 1024
    connections: int = 1_000


class MadQuotas:
    """
    Watches the quotas until cancelled.

    Args:
        name: this manager's.
        lanes: gives the lanes that it serves now; mads: the registered MADs.
    """

    def __init__(
        self,
        url: str,
        name: str,
        limits: QuotaLimits,
        lanes: Callable[[], Collection[Lane]],
        mads: Callable[[], Collection[str]],
        *,
        beat_s: float = BEAT_S,
    ) -> None:
        self._url = url
        self._name = name
        self._limits = limits
        self._lanes = lanes
        self._mads = mads
        self._beat_s = beat_s
        self._wire = wire_to(url, name="everbus-quotas")
        self._sizes: dict[tuple[Lane, str], int] = {}
        self._skip: dict[tuple[Lane, str], int] = {}
        self._behind = 0
        self._counted_at = 0.0
        self._reported_at: dict[str, float] = {}

    async def run(self) -> None:
        """
        Watch; an absent bus is not news of this task.
        """
        checked = False
        try:
            while True:
                await asyncio.sleep(self._beat_s)
                try:
                    if not checked:
                        await self._begin()
                        checked = True
                    await self.beat()
                except (EverbusError, ResponseError) as error:
                    await self.close()
                    log.debug("quotas.not_measured", error=str(error))
        finally:
            await self.close()

    async def close(self) -> None:
        """
        Close the connection, if there is one.
        """
        await self._wire.close()

    async def beat(self) -> None:
        """
        Measure once, and disable what is above its quota.

        Raises:
            EverbusError: the bus is away, or refuses.
        """
        await self._measure()
        limit = self._limits.ingress_bytes
        for mad, size in self._totals().items():
            if size > limit:
                await self._exceeded(mad, "ingress_max_bytes", size, limit)
        if keys.PRESENCE in self._lanes():
            await self._count_connections()

    async def _begin(self) -> None:
        """
        Find out whether users can be disabled, and switch those of the records off
        again: a failover, or a restart without an aclfile, has switched them on.
        """
        reason = await mad_access.missing_rights(self._url)
        if reason:
            log.warning(
                "quotas.not_enforced",
                reason=reason,
                remedy="give managers the rights of `everbus acl --role manager`",
            )
        await mad_access.record_rights(self._wire, reason)
        for one in await mad_access.disabled_mads(self._wire):
            if one.off and not reason:
                await mad_access.switch_user(self._url, one.mad, on=False)

    async def _measure(self) -> None:
        # Each time: the server may be another one by now.
        await load_scripts(self._wire, "sizes")
        mads = sorted(self._mads())
        every = [(lane, mad) for lane in self._lanes() for mad in mads]
        self._sizes = {one: self._sizes.get(one, 0) for one in every}
        due = self._due(every)
        by_lane: dict[Lane, list[str]] = {}
        for lane, mad in due:
            by_lane.setdefault(lane, []).append(mad)
        for lane, some in by_lane.items():
            for first in range(0, len(some), STREAMS_AT_ONCE):
                await self._measure_some(lane, some[first : first + STREAMS_AT_ONCE])

    def _due(self, every: list[tuple[Lane, str]]) -> list[tuple[Lane, str]]:
        """
        The streams of this beat, in turn.
        """
        if len(every) > STREAMS_A_BEAT:
            first = self._behind % len(every)
            every = (every[first:] + every[:first])[:STREAMS_A_BEAT]
            self._behind = first + STREAMS_A_BEAT
        due = []
        for one in every:
            left = self._skip.pop(one, 0)
            if left > 0:
                self._skip[one] = left - 1
            else:
                due.append(one)
        return due

    async def _measure_some(self, lane: Lane, mads: list[str]) -> None:
        streams = [keys.ingress(lane, mad) for mad in mads]
        found = await self._wire.call(*script("sizes", streams))
        for mad, length, size in zip(mads, found[::2], found[1::2], strict=True):
            self._sizes[lane, mad] = size
            if length > ENTRIES_A_BEAT:
                self._skip[lane, mad] = length // ENTRIES_A_BEAT

    def _totals(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for (_, mad), size in self._sizes.items():
            totals[mad] = totals.get(mad, 0) + size
        metrics.INGRESS_BYTES.set(max(totals.values(), default=0))
        return totals

    async def _count_connections(self) -> None:
        now = time.monotonic()
        if now - self._counted_at < CONNECTIONS_EVERY_S:
            return
        self._counted_at = now
        limit = self._limits.connections
        # One INFO; the list of all connections only if somebody can be above the quota.
        if await mad_access.most_connections(self._url) <= limit:
            return
        mads = self._mads()
        for user, count in (await mad_access.connections_by_user(self._url)).items():
            if count > limit and user in mads:
                await self._exceeded(user, "mad_max_connections", count, limit)

    async def _exceeded(self, mad: str, bound: str, value: int, limit: int) -> None:
        """
        Disable a MAD, and report it, unless it is disabled.
        """
        try:
            state = await mad_access.switch_user(self._url, mad, on=False)
        except (EverbusError, ResponseError) as error:
            state = "missing"
            log.debug("mad.not_disabled", mad=mad, error=str(error))
        now = time.monotonic()
        recently = now - self._reported_at.get(mad, -math.inf) < REPORT_EVERY_S
        if state == "unchanged" or (state == "missing" and recently):
            return
        self._reported_at[mad] = now
        metrics.BOUND_REACHED.labels(bound).inc()
        log.error(
            "mad.disabled" if state == "switched" else "mad.over_quota",
            mad=mad,
            bound=bound,
            value=value,
            limit=limit,
            remedy=f"find out why it floods; then everbus mads enable {mad}",
        )
        disabled = DisabledMad(
            mad=mad,
            bound=bound,
            value=value,
            limit=limit,
            at_ms=time.time_ns() // 10**6,
            by=self._name,
            off=state == "switched",
        )
        await mad_access.record(self._wire, disabled)
