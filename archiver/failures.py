"""
The drain's failures in a row: how long to wait after each, and whom to tell.
"""

import time
from typing import NamedTuple

import structlog

from bus.errors import EverbusError
from gateway import metrics

log = structlog.get_logger()

# From this many failures in a row on, somebody has to look.
ALERT_FAILURES = 5


class Backoff(NamedTuple):
    """
    How long the drain waits after failures in a row: 2, 4, 8, 16, 32, 32 … s.
    """

    first_s: float = 2.0
    most_s: float = 32.0

    def wait_s(self, failures: int) -> float:
        """
        The wait after the *failures*-th failure in a row, from 1.
        """
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 60))


BACKOFF = Backoff()


class Failures:
    """
    What has failed since something was last done.
    """

    def __init__(self, backoff: Backoff = BACKOFF) -> None:
        self._backoff = backoff
        self._count = 0
        self._since = 0.0

    def note(self, error: EverbusError) -> float:
        """
        Tell of a failure; how long to wait now, however fast it failed.
        """
        now = time.monotonic()
        self._since = self._since or now
        self._count += 1
        wait_s = self._backoff.wait_s(self._count)
        metrics.DRAIN_FAILING.set(max(now - self._since, 0.001))
        tell = log.error if self._count >= ALERT_FAILURES else log.warning
        tell("drain.waits", error=error.message, failures=self._count, wait_s=wait_s)

        return wait_s

    def clear(self) -> None:
        """
        Begin anew: something was done, or there is nothing to do.
        """
        if self._count:
            log.info("drain.recovered", failures=self._count)
        self._count, self._since = 0, 0.0
        metrics.DRAIN_FAILING.set(0)
