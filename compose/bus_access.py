"""
How commands for operators reach the bus itself, past managers and tokens.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from bus.cluster import wire_to
from bus.introduction import partitions_in
from bus.keys import CONFIG
from bus.wire import Wire
from compose.logs import configure_logs
from compose.settings import Settings, load_settings


class BusAccess(NamedTuple):
    """
    One connection as the user in EVERBUS_REDIS_URL, and what it leads to.
    """

    settings: Settings
    wire: Wire
    partitions: int


@asynccontextmanager
async def bus_access(command: str) -> AsyncIterator[BusAccess]:
    """
    Access to the bus that the environment names, for `everbus <command>`.

    Raises:
        SettingsError: the environment does not say how to run.
        Unavailable: no bus, or none that a manager has ever started on.
        Forbidden, Unauthenticated: the bus turns the URL's user away.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    wire = wire_to(settings.redis_url, name=f"everbus-{command}")
    try:
        yield BusAccess(settings, wire, await partitions_of(wire))
    finally:
        await wire.close()


async def partitions_of(wire: Wire) -> int:
    """
    The number of partitions that the bus was set up with.

    Raises:
        Unavailable: no manager has ever started on it.
    """
    return partitions_in(await wire.call("HGET", CONFIG, "partitions"))


def when(at_ms: int) -> datetime:
    """
    A time of the bus's clock.
    """
    return datetime.fromtimestamp(at_ms / 1000, UTC)
