"""
Direct access to the bus for operators' commands, without managers and tokens.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from everbus.bus.bus_servers import BusServer, bus_servers, reachable
from everbus.bus.cluster_wire import wire_to
from everbus.bus.handshake import partitions_in
from everbus.bus.keys import CONFIG
from everbus.bus.wire import Wire
from everbus.compose.command_output import notify
from everbus.compose.logs import configure_logs
from everbus.compose.settings import Settings, load_settings


class BusAccess(NamedTuple):
    """
    One connection as the user in EVERBUS_REDIS_URL, and the facts of its bus.
    """

    settings: Settings
    wire: Wire
    partitions: int


@asynccontextmanager
async def bus_access(command: str) -> AsyncIterator[BusAccess]:
    """
    Access to the bus in the environment, for `everbus <command>`.

    Raises:
        SettingsError: a setting in the environment is wrong.
        Unavailable: the bus is away, or no manager has ever started on it.
        Forbidden, Unauthenticated: the bus refuses the user in the URL.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    wire = wire_to(settings.redis_url, name=f"everbus-{command}")
    try:
        yield BusAccess(settings, wire, await partitions_of(wire))
    finally:
        await wire.close()


@asynccontextmanager
async def servers_of(bus: BusAccess) -> AsyncIterator[list[BusServer]]:
    """
    The servers of the bus that answer; a notice names each replica that does not.

    Raises:
        EverbusError: a primary does not answer.
    """
    async with bus_servers(bus.settings.redis_url, name="everbus-users") as found:
        servers = reachable(found)
        for one in found:
            if one.trouble is not None:
                notify(
                    f"warning: {one.address} is left out ({one.trouble.message}); "
                    "run this again when it answers"
                )
        yield servers


async def partitions_of(wire: Wire) -> int:
    """
    The number of partitions of the bus, fixed at its set-up.

    Raises:
        Unavailable: no manager has ever started on this bus.
    """
    return partitions_in(await wire.call("HGET", CONFIG, "partitions"))


def bus_time(at_ms: int) -> datetime:
    """
    A time on the bus's clock as a datetime in UTC.
    """
    return datetime.fromtimestamp(at_ms / 1000, UTC)
