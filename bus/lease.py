"""
The lease of one MAD instance: the epoch of its commands.

An instance numbers its own epochs 1, 2, 3 …; no other instance has its id, so it
needs no permission. An epoch ends when the managers declare it lost, or when no
heartbeat arrived for a TTL, so that they may have declared it lost. The instance goes
on under the next epoch; late commands of the old one are refused.
"""

import threading
import time
from collections.abc import Callable

DEFAULT_TTL_S = 30.0

# Includes the sleep of the machine, where the system offers such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_s() -> float:
    """
    Seconds of a clock that nobody sets, the sleep of the machine included.
    """
    return time.clock_gettime(_CLOCK)


class Lease:
    """
    The epoch of one instance; safe to use from several threads.

    Attributes:
        instance: id of the instance.
        ttl_s: seconds after a heartbeat during which the instance counts as alive.
        losses: number of epochs that the managers knew, or may have known, and that
            ended: declared lost, or silent for a whole TTL.
    """

    def __init__(
        self,
        instance: str,
        ttl_s: float = DEFAULT_TTL_S,
        *,
        clock: Callable[[], float] = clock_s,
    ) -> None:
        self.instance = instance
        self.ttl_s = ttl_s
        self.losses = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._epoch = 1
        self._published_at = clock()
        # The newest epoch with a heartbeat on the bus; 0 for none yet.
        self._published = 0
        # The newest ended epoch that is not reported yet; 0 for none.
        self._unreported = 0
        self._changed = threading.Event()

    @property
    def changed(self) -> threading.Event:
        """
        Set when the epoch has changed, so that a heartbeat is due at once.
        """
        return self._changed

    def epoch(self) -> int:
        """
        The current epoch.
        """
        with self._lock:
            if self._clock() - self._published_at > self.ttl_s:
                # In an outage of hours many epochs end, but only the first was known.
                self.losses += self._published == self._epoch
                self._advance(unreported=self._published > 0)
            return self._epoch

    def heartbeat_published(self, epoch: int, sent_at: float) -> int:
        """
        Record that a heartbeat of *epoch*, begun at `now()` = *sent_at*, is on the bus.

        Returns the newest ended epoch, once, with the first heartbeat after it; else 0.
        So each end is reported at most once.
        """
        with self._lock:
            if epoch != self._epoch:
                return 0
            # From its begin: the managers cannot have read it earlier.
            self._published_at = max(self._published_at, sent_at)
            self._published = epoch
            ended, self._unreported = self._unreported, 0
            return ended

    def now(self) -> float:
        """
        The lease's clock, in seconds.
        """
        return self._clock()

    def declare_lost(self, epoch: int) -> bool:
        """
        Record that the managers declared *epoch* lost; return whether that is new.
        """
        with self._lock:
            if epoch < self._epoch:
                return False
            self.losses += 1
            self._epoch = epoch
            self._advance(unreported=True)
            return True

    def _advance(self, *, unreported: bool) -> None:
        if unreported:
            self._unreported = self._epoch
        self._epoch += 1
        self._published_at = self._clock()
        self._changed.set()
