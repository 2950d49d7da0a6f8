"""
How long the bus is away, and when the next try is due.

The publisher never gives up, but tries less and less often. Every pause has full
jitter, the first one as well: a thousand MADs that lose the bus at the same instant
must not come back at the same instant.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from everbus.bus.backoff import FULL_JITTER, Backoff
from everbus.bus.errors import EverbusError, Overloaded, Unavailable

log = structlog.get_logger()

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 1.0
# An outage that lasts longer is reported to callers that would wait for a reply.
OPEN_AFTER_S = 3.0


class BusBreaker:
    """
    Closed, requests pass. Open, after OPEN_AFTER_S without one success, they are
    refused at once; commands queued before probe the bus, and the first success
    closes the breaker.

    Attributes:
        trouble: why commands fail at the moment; None if they do not.
    """

    def __init__(
        self,
        mad: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.last_error: EverbusError | None = None
        self._mad = mad
        self._clock = clock
        self._backoff = Backoff(
            FIRST_BACKOFF_S, MAX_BACKOFF_S, jitter=FULL_JITTER, draw=draw
        )
        # Time of the first failure since the last success. The begin of that try says
        # little: the event loop may have been busy with other work.
        self._since: float | None = None
        self._next_at = 0.0
        self._reported = False

    @property
    def away_s(self) -> float:
        """
        Seconds since the first failure after the last success; 0 without failure.
        """
        return 0.0 if self._since is None else self._clock() - self._since

    @property
    def open(self) -> bool:
        """
        Whether requests are refused.
        """
        return self._since is not None and self.away_s >= OPEN_AFTER_S

    def check(self) -> None:
        """
        Let a request pass.

        Raises:
            Unavailable: the bus is away; the details say for how long, and when the
                next try is due.
            Overloaded: the same of a bus that is there and whose memory is full.
        """
        if self.open:
            raise self._refusal()

    def begin(self) -> None:
        """
        Record the begin of a try.
        """
        self._next_at = 0.0

    def failed(self, error: EverbusError) -> float:
        """
        Record a try without any success; return the seconds to wait.
        """
        self.record(error)
        pause_s = self._backoff.next_s()
        if self._since is None:
            self._since = self._clock()
        self._next_at = self._clock() + pause_s
        if self.open and not self._reported:
            self._reported = True
            log.warning("bus.away", mad=self._mad, error=error.message)

        return pause_s

    def record(self, error: EverbusError) -> None:
        """
        Record the error of a failed write.
        """
        if self.last_error is None:
            log.warning("publisher.waits", mad=self._mad, error=error.message)
        self.last_error = error

    def succeeded(self) -> None:
        """
        Record a success.
        """
        if self._reported:
            log.info("bus.back", mad=self._mad, away_s=round(self.away_s, 1))
        self.last_error = None
        self._since = None
        self._backoff.reset()
        self._reported = False

    def _refusal(self) -> EverbusError:
        away_s = self.away_s
        left_s = max(0.0, self._next_at - self._clock())
        since = datetime.now(UTC) - timedelta(seconds=away_s)
        reason = f" ({self.last_error.message})" if self.last_error is not None else ""
        next_try = f"next try in {left_s:.1f} s" if self._next_at else "being tried now"
        full = isinstance(self.last_error, Overloaded)
        kind, state = (Overloaded, "full") if full else (Unavailable, "away")
        return kind(
            f"the bus is {state} since {since:%H:%M:%S} UTC{reason}; {next_try}. "
            "Nothing was sent, it will not be applied",
            away_s=round(away_s, 3),
            retry_after_s=round(left_s, 3),
        )
