"""
Commands a second of one MAD and of one tenant, by token buckets of one replica.

A request above the rate is refused as overloaded, with the time to wait. A command that
nobody waits for waits itself, in order, so it is not lost.
"""

import time
from collections.abc import Callable

from cachetools import LRUCache

from everbus.bus.errors import Overloaded
from everbus.bus.keys import EDGE, GATEWAY
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.delivery import Delivery
from everbus.gateway.telemetry import metrics

# No manager settles so many, so nothing is counted from this rate on.
UNLIMITED = 1_000_000
# Buckets that are kept; a forgotten one is full again.
MAX_BUCKETS = 10_000


class CommandRates:
    """
    The rates of one replica, for all its lanes.

    Args:
        mad_rate: commands a second of one MAD; the edge bounds its callers itself.
        tenant_rate: those of one tenant, by whatever MAD or edge.
    """

    def __init__(
        self,
        mad_rate: float = UNLIMITED,
        tenant_rate: float = UNLIMITED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = {"mad_rate": mad_rate, "tenant_rate": tenant_rate}
        self._clock = clock
        self._buckets: LRUCache[tuple[str, str], tuple[float, float]] = LRUCache(
            MAX_BUCKETS
        )

    @property
    def unlimited(self) -> bool:
        """
        Whether no command can be above a rate.
        """
        return min(self._rates.values()) >= UNLIMITED

    def take(self, delivery: Delivery, sender: Principal) -> None:
        """
        Count a command of *sender*.

        Raises:
            Overloaded: it is above a rate; `retry_after_s` is the time to wait.
        """
        mad = delivery.entry.mad
        if mad == GATEWAY or not (delivery.envelope.reply or delivery.session):
            return  # the latter cannot wait by itself
        if mad != EDGE:
            self._take("mad_rate", mad)
        self._take("tenant_rate", sender.tenant)

    def _take(self, bound: str, name: str) -> None:
        rate = self._rates[bound]
        if rate >= UNLIMITED:
            return
        now, most = self._clock(), max(rate, 1.0)
        left, at = self._buckets.get((bound, name), (most, now))
        left = min(most, left + (now - at) * rate)
        if left < 1:
            self._buckets[bound, name] = (left, now)
            metrics.BOUND_REACHED.labels(bound).inc()
            raise Overloaded(
                f"more than {rate:g} commands a second; slow down and send it again",
                limit=bound,
                retry_after_s=round((1 - left) / rate, 3),
            )
        self._buckets[bound, name] = (left - 1, now)
