"""
The hot epoch of a partition: its lineage, and since when its hot tier lost nothing.

Hot data of an earlier lineage is not trusted until the session is claimed, see
`gateway.store.claims`. Whether the server is still the same is asked on each new
connection of the lane (`lua/lineage.lua`).
"""

import time
from typing import Any, NamedTuple

import structlog

from everbus.gateway.lane.connection import Disturbed, LaneConnection, check_fenced
from everbus.gateway.lane.delivery import Now
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import NOTED

log = structlog.get_logger()

# Of the reply of `lua/lineage.lua`: hot data of an earlier lineage is there.
ANOTHER_BEFORE = 2
# The server's clock may move so far against a monotonic one.
CLOCK_TOLERANCE_MS = 1_000


class HotEpoch(NamedTuple):
    """
    What the lane can trust of its hot tier.

    Attributes:
        since_ms: the time from which the hot tier has lost nothing.
        ttl_ms: lifetime of a hot copy after the last write.
        tiers: whether there is any lower tier.
        lineage: hot copies of this lineage are trusted.
        clock_ms: the server's clock at 0 of the monotonic one.
    """

    since_ms: int = 0
    ttl_ms: int = 3_600_000
    tiers: bool = False
    lineage: int = 0
    clock_ms: float = 0.0

    def is_steady(self, now_ms: int) -> bool:
        """
        Whether the server's clock goes as the monotonic one does.
        """
        return abs(_clock_ms(now_ms) - self.clock_ms) <= CLOCK_TOLERANCE_MS


class HotEpochs:
    """
    Looks at the hot epoch of one partition, on the lane's connection.

    Args:
        ttl_ms: lifetime of a hot copy after the last write.
        tiers: whether there is any lower tier.
    """

    def __init__(
        self, wire: LaneConnection, partition: int, ttl_ms: int, *, tiers: bool
    ) -> None:
        self._wire = wire
        self._partition = partition
        self._keys = [
            key_names.owner(partition),
            key_names.lineage(partition),
            key_names.born(partition),
        ]
        self._ttl_ms = ttl_ms
        self._tiers = tiers

    async def current(self, *, moved: bool = False) -> HotEpoch:
        """
        The epoch of the server that the lane is connected to; a new lineage begins if
        it may have lost writes.

        Args:
            moved: the server's clock has moved by itself: it vouches for no age
                before now.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        server, replication, time_there = await self._wire.exchange(
            [("INFO", "server"), ("INFO", "replication"), ("TIME",)]
        )
        now_ms = _now_ms(time_there)
        arguments = (
            *(self._wire.owner, _field(server, "run_id")),
            *(_field(replication, "master_replid2"), round(time.time() * 1000)),
            "moved" if moved else "",
        )
        reply = await self._wire.call(*script("lineage", self._keys, *arguments))
        lineage, since_ms, began = map(int, check_fenced(reply))
        if began:
            metrics.LINEAGES.inc()
            log.warning("lineage.began", lane=self._partition, lineage=lineage)
        if began == ANOTHER_BEFORE:
            NOTED.count("hot_tier_went_back", within_s=10)

        return HotEpoch(since_ms, self._ttl_ms, self._tiers, lineage, _clock_ms(now_ms))

    async def steady(self, epoch: HotEpoch, now: Now) -> HotEpoch:
        """
        *epoch*, or the next if the server's clock has moved by itself.

        *now* is as old as the last read, so a suspicion is looked at once more.
        """
        if epoch.is_steady(now.ms):
            return epoch
        if epoch.is_steady(_now_ms(await self._wire.call("TIME"))):
            return epoch
        return await self.current(moved=True)

    async def check(self, epoch: HotEpoch) -> None:
        """
        Accept a new connection if the server is still the one of *epoch*.

        Raises:
            Disturbed: it is not; whatever the lane knows may be of a dead branch.
        """
        if (await self.current()).lineage != epoch.lineage:
            raise Disturbed("the bus may have lost writes", cause="lineage")


def _now_ms(reply: Any) -> int:
    return int(reply[0]) * 1000 + int(reply[1]) // 1000


def _clock_ms(now_ms: int) -> float:
    return now_ms - time.monotonic() * 1000


def _field(info: bytes, wanted: str) -> str:
    """
    The value of a line of INFO; empty if the server does not tell.
    """
    for line in info.decode().splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return value.strip()
    return ""
