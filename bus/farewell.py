"""
The end of the interpreter while a connection is open: send what waits, say goodbye.

A notebook, or a program that never leaves the block, ends so. Threads still run then;
the event loop of the connection may run in one of them, or has stopped for good.
"""

import asyncio
import atexit
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import structlog

from everbus.bus.errors import EverbusError
from everbus.bus.heartbeat import HeartbeatThread
from everbus.bus.publisher import Publisher
from everbus.bus.requests import ClientAffinity

log = structlog.get_logger()


class Ending(NamedTuple):
    """
    The parts of a connection that its end needs.

    Attributes:
        within_s: seconds for the last flush.
    """

    affinity: ClientAffinity
    publisher: Publisher
    heartbeat: HeartbeatThread | None
    within_s: float


_open: dict[int, Ending] = {}


@contextmanager
def farewell_at_exit(ending: Ending) -> Iterator[None]:
    """
    Flush and say goodbye at the end of the interpreter, if it comes in the block.
    """
    _open[id(ending)] = ending
    try:
        yield
    finally:
        _open.pop(id(ending), None)


@atexit.register
def _end_all() -> None:
    for ending in tuple(_open.values()):
        if ending.affinity.same_process:
            _end(ending)


def _end(ending: Ending) -> None:
    affinity, publisher, heartbeat, within_s = ending
    if publisher.waiting and affinity.loop.is_running():
        flushed = asyncio.run_coroutine_threadsafe(publisher.flush(), affinity.loop)
        with suppress(EverbusError, TimeoutError):
            flushed.result(within_s)
    elif publisher.waiting:
        publisher.last_words(within_s)
    if publisher.waiting:
        log.warning("appends.unsent", count=publisher.waiting)
    if heartbeat is not None:
        heartbeat.close()
    affinity.end()
