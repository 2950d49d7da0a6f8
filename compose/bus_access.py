"""
How commands for operators reach the bus itself, past managers and tokens.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from bus.errors import Unavailable
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
    wire = Wire(settings.redis_url, name=f"everbus-{command}")
    try:
        partitions = await wire.call("HGET", CONFIG, "partitions")
        if partitions is None:
            raise Unavailable(
                "no manager ever started on this bus, so it holds nothing; see "
                "whether EVERBUS_REDIS_URL names the right one"
            )
        yield BusAccess(settings, wire, int(partitions))
    finally:
        await wire.close()


def when(at_ms: int) -> datetime:
    """
    A time of the bus's clock.
    """
    return datetime.fromtimestamp(at_ms / 1000, UTC)
