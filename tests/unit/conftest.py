"""
What unit tests share: a clock that stands still until a test moves it.
"""

import pytest


class Clock:
    """
    Seconds that pass only when a test says so.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
