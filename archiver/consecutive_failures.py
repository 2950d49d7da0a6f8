"""
The drain's failures in a row: the wait after each, and the alert after many.
"""

import time

import structlog

from everbus.bus.backoff import Backoff
from everbus.bus.errors import EverbusError
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

# From this many failures in a row on, somebody has to look.
ALERT_FAILURES = 5


# From so long on a failure is no moment of a hand-over.
TROUBLE_S = 5.0


class ConsecutiveFailures:
    """
    The failures since the last success.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._since = 0.0
        self._error = ""

    @property
    def trouble(self) -> str:
        """
        The last failure, when they have lasted for TROUBLE_S; else empty.
        """
        lasting = self._since and time.monotonic() - self._since >= TROUBLE_S

        return self._error if lasting else ""

    def note(self, error: EverbusError) -> float:
        """
        Tell of a failure; how long to wait now, however fast it failed.
        """
        now = time.monotonic()
        self._since = self._since or now
        self._error = error.message
        wait_s = self._backoff.next_s()
        failures = self._backoff.failures
        metrics.DRAIN_FAILING.set(max(now - self._since, 0.001))
        report = log.error if failures >= ALERT_FAILURES else log.warning
        report("drain.waits", error=error.message, failures=failures, wait_s=wait_s)

        return wait_s

    def clear(self) -> None:
        """
        Begin anew: something was done, or there is nothing to do.
        """
        if self._backoff.failures:
            log.info("drain.recovered", failures=self._backoff.failures)
        self._backoff.reset()
        self._since = 0.0
        metrics.DRAIN_FAILING.set(0)
