"""
How long the bus has been away, and when it is tried again.

The publisher tries for ever, ever less often. Every pause is drawn from the whole
span up to its bound ("full jitter", AWS Architecture Blog, 2015), the first one as
well: a thousand MADs that lose the bus at the same instant must not come back at
the same instant.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from bus.errors import EverbusError, Unavailable

log = structlog.get_logger()

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 1.0
# So long a trouble may last before those who would wait for a reply hear of it.
OPEN_AFTER_S = 3.0


class Breaker:
    """
    Closed, requests pass. Open, after OPEN_AFTER_S without one success, they are
    refused at once; what was queued before is what the bus is probed with, and the
    first success closes it.

    Attributes:
        trouble: why nothing gets through at the moment; None if all is well.
    """

    def __init__(
        self,
        mad: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.trouble: EverbusError | None = None
        self._mad = mad
        self._clock = clock
        self._draw = draw
        # The first failure that nothing has succeeded since. When that try began says
        # little: the event loop may have been busy with something else.
        self._since: float | None = None
        self._failures = 0
        self._next_at = 0.0
        self._told = False

    @property
    def away_s(self) -> float:
        """
        For how long nothing has got through, since the first failure; 0 if all is well.
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
            Unavailable: the bus is away; the details tell for how long, and when it
                is tried again.
        """
        if self.open:
            raise self._refusal()

    def began(self) -> None:
        """
        Note that a try begins.
        """
        self._next_at = 0.0

    def failed(self, error: EverbusError) -> float:
        """
        Note that nothing of a try got through; how many seconds to wait.
        """
        self.note(error)
        most_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures, 10))
        pause_s = self._draw(0.0, most_s)
        self._failures += 1
        if self._since is None:
            self._since = self._clock()
        self._next_at = self._clock() + pause_s
        if self.open and not self._told:
            self._told = True
            log.warning("bus.away", mad=self._mad, error=error.message)

        return pause_s

    def note(self, error: EverbusError) -> None:
        """
        Note why something did not get through.
        """
        if self.trouble is None:
            log.warning("publisher.waits", mad=self._mad, error=error.message)
        self.trouble = error

    def succeeded(self) -> None:
        """
        Note that something got through.
        """
        if self._told:
            log.info("bus.back", mad=self._mad, away_s=round(self.away_s, 1))
        self.trouble = None
        self._since = None
        self._failures = 0
        self._told = False

    def _refusal(self) -> Unavailable:
        away_s = self.away_s
        left_s = max(0.0, self._next_at - self._clock())
        since = datetime.now(UTC) - timedelta(seconds=away_s)
        why = f" ({self.trouble.message})" if self.trouble is not None else ""
        soon = f"next try in {left_s:.1f} s" if self._next_at else "being tried now"
        return Unavailable(
            f"the bus is away since {since:%H:%M:%S} UTC{why}; {soon}. Nothing was "
            "sent, it will not be applied",
            away_s=round(away_s, 3),
            retry_after_s=round(left_s, 3),
        )
