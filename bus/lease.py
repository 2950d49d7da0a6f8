"""
The lease of one MAD instance: which epoch its commands count under.

An instance numbers its own epochs 1, 2, 3 …; nobody else has its name, so nobody
need be asked. An epoch ends when the managers declare it lost, or when the
instance has not been heard for so long that they may have: it then goes on under
the next one, and a former self that wakes up late is refused.
"""

import threading
import time
from collections.abc import Callable

DEFAULT_TTL_S = 30.0

# Counts while a machine sleeps as well, where the system tells.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _clock_s() -> float:
    return time.clock_gettime(_CLOCK)


class Lease:
    """
    The epoch of one instance; safe to use from several threads.

    Attributes:
        instance: the instance that it is of.
        ttl_s: how long after a heartbeat the managers take the instance for alive.
        losses: how often an epoch ended that the managers may have known of: they
            declared it lost, or the instance was silent for so long that they may.
    """

    def __init__(
        self,
        instance: str,
        ttl_s: float = DEFAULT_TTL_S,
        *,
        clock: Callable[[], float] = _clock_s,
    ) -> None:
        self.instance = instance
        self.ttl_s = ttl_s
        self.losses = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._epoch = 1
        self._heard_at = clock()
        # The newest epoch of which a heartbeat is on the bus; 0 for none yet.
        self._heard = 0
        # The newest epoch that ended and is still to be told of; 0 for none.
        self._over = 0
        self._news = threading.Event()

    @property
    def news(self) -> threading.Event:
        """
        Set when the epoch has moved, so that a heartbeat should tell of it at once.
        """
        return self._news

    def epoch(self) -> int:
        """
        The epoch that counts now.
        """
        with self._lock:
            if self._clock() - self._heard_at > self.ttl_s:
                # In an outage of hours many end, but one is all that is missed.
                self.losses += self._heard == self._epoch
                self._move(told=self._heard > 0)
            return self._epoch

    def beaten(self, epoch: int, sent_at: float) -> int:
        """
        Note that the heartbeat of *epoch*, begun at `now()` = *sent_at*, is on the bus.

        Returns the newest epoch that ended before, the first time that the one after
        it is heard of; else 0. So each is told at most once.
        """
        with self._lock:
            if epoch != self._epoch:
                return 0
            # Since it was begun: the managers cannot have heard it earlier.
            self._heard_at = max(self._heard_at, sent_at)
            self._heard = epoch
            over, self._over = self._over, 0
            return over

    def now(self) -> float:
        """
        The lease's clock, in seconds.
        """
        return self._clock()

    def lost(self, epoch: int) -> bool:
        """
        Note that *epoch* was declared lost; whether that is news.
        """
        with self._lock:
            if epoch < self._epoch:
                return False
            self.losses += 1
            self._epoch = epoch
            self._move(told=True)
            return True

    def _move(self, *, told: bool) -> None:
        if told:
            self._over = self._epoch
        self._epoch += 1
        self._heard_at = self._clock()
        self._news.set()
