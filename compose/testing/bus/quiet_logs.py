"""
Keeps the logs of a bus in memory out of the output of tests.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

_lock = threading.Lock()
_running = 0


@contextmanager
def quiet_logs(wanted: bool) -> Iterator[None]:
    """
    Log errors only, if *wanted* and if structlog is not configured.

    The setting counts for the whole process; the last of several buses resets it.
    """
    global _running
    with _lock:
        ours = wanted and (_running > 0 or not structlog.is_configured())
        if ours and _running == 0:
            errors = structlog.make_filtering_bound_logger(logging.ERROR)
            structlog.configure(wrapper_class=errors)
        _running += ours
    try:
        yield
    finally:
        with _lock:
            _running -= ours
            if ours and _running == 0:
                structlog.reset_defaults()
