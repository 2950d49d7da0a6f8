"""
Waits between tries: doubled after each failure, with jitter.

Without jitter all clients that one outage has cut off come back at the same instant.
"""

import math
import random
from collections.abc import Callable

Jitter = tuple[float, float]

NO_JITTER: Jitter = (1.0, 1.0)
# Around the wait: 50 % to 150 % of it.
HALF_JITTER: Jitter = (0.5, 1.5)
# The whole span from zero ("full jitter", AWS Architecture Blog, 2015).
FULL_JITTER: Jitter = (0.0, 1.0)

# 2.0 ** 1024 overflows a float.
_MAX_DOUBLINGS = 60


class Backoff:
    """
    The wait after each failure in a row: *first_s*, then twice as long each time.

    Args:
        first_s: the wait after the first failure, in seconds.
        most_s: no wait is longer, before jitter.
        steady_s: a run of so long between two failures ends the row.
        jitter: the lowest and the highest factor that a wait is multiplied by.
        draw: picks a factor between two bounds; tests replace it.

    Attributes:
        failures: how many waits were handed out since the last reset.
    """

    def __init__(
        self,
        first_s: float,
        most_s: float = math.inf,
        *,
        steady_s: float = math.inf,
        jitter: Jitter = NO_JITTER,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.failures = 0
        self._steady_s = steady_s
        self._first_s = first_s
        self._most_s = most_s
        self._jitter = jitter
        self._draw = draw

    def next_s(self, ran_s: float = 0.0) -> float:
        """
        Count one more failure, after a run of *ran_s*; the seconds to wait after it.
        """
        if ran_s > self._steady_s:
            self.reset()
        self.failures += 1

        return self.after(self.failures)

    def after(self, failures: int) -> float:
        """
        The seconds to wait after the *failures*-th failure in a row, counted from 1.
        """
        doublings = min(failures - 1, _MAX_DOUBLINGS)
        wait_s = min(self._most_s, self._first_s * 2.0**doublings)

        return jittered(wait_s, self._jitter, self._draw)

    def reset(self) -> None:
        """
        Start again with the first wait.
        """
        self.failures = 0


def jittered(
    wait_s: float,
    jitter: Jitter,
    draw: Callable[[float, float], float] = random.uniform,
) -> float:
    """
    *wait_s* multiplied by a random factor within *jitter*.
    """
    # Not a draw between two products: with an endless wait that would be NaN.
    return wait_s * draw(*jitter)
