"""
The clock of a bus in memory: the machine's clock, plus what a test has skipped.

fakeredis reads `time.time()` where a server reads its own clock. Each bus in memory
runs in a thread of its own, so the skipped seconds are kept per thread: another bus,
and a fakeredis of the user's own, keep the machine's time.
"""

import threading
import time
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

# The modules of fakeredis that read the clock.
_READERS = (
    "fakeredis._helpers",
    "fakeredis._socket._base",
    "fakeredis.commands_mixins.server_mixin",
    "fakeredis.model._stream",
)


class _Skipped(threading.local):
    seconds: float = 0.0


_skipped = _Skipped()


class BusTime:
    """
    Stands for the module `time` in fakeredis.
    """

    def time(self) -> float:
        """
        Seconds since the epoch, as this thread's bus counts them.
        """
        return time.time() + _skipped.seconds

    def __getattr__(self, name: str) -> Any:  # whatever the module has
        return getattr(time, name)


_BUS_TIME = BusTime()


def install() -> None:
    """
    Have fakeredis read the bus's clock; twice is the same as once.

    Raises:
        RuntimeError: this fakeredis is built otherwise than the tried ones.
    """
    for name in _READERS:
        module = import_module(name)
        if not hasattr(module, "time"):
            raise RuntimeError(
                f"{name} does not read the clock, so TestBus cannot move it; install "
                "a fakeredis that everbus[testing] allows"
            )
        # mypy knows no attributes of a module that is imported by name.
        module.time = _BUS_TIME  # type: ignore[attr-defined]


def skip(seconds: float) -> None:
    """
    Move the clock of this thread's bus forward.
    """
    _skipped.seconds += seconds


def now_ms() -> int:
    """
    Milliseconds since the epoch, as this thread's bus counts them.
    """
    return int(_BUS_TIME.time() * 1000)


def utc_now() -> datetime:
    """
    The time of this thread's bus.
    """
    return datetime.fromtimestamp(_BUS_TIME.time(), UTC)
