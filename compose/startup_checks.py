"""
Checks of a manager before it serves: whether the bus can keep its promises.

They take one round trip. A manager refuses a server that may lose sessions, unless
EVERBUS_REDIS_UNSAFE is set. A setting that only weakens a promise gets one warning.
"""

import structlog

from everbus.bus.known_nodes import server_urls
from everbus.bus.sentinel import is_sentinel
from everbus.bus.wire import Wire, WireFailed
from everbus.compose.exit_codes import CONFLICT, Failed
from everbus.compose.settings import Settings
from everbus.gateway.health.server_report import (
    COMMANDS,
    NO_MIN_REPLICAS,
    Weakness,
    server_of,
    weaknesses,
)

log = structlog.get_logger()


async def check_servers(settings: Settings) -> None:
    """
    Run `check_server` for each server in EVERBUS_REDIS_URL.

    Some nodes of a Redis Cluster may be away; each of them gets a warning.

    Raises:
        Failed: a server may lose sessions, and EVERBUS_REDIS_UNSAFE is not set.
        WireFailed: all servers are away.
    """
    urls = server_urls(settings.redis_url)
    away: list[WireFailed] = []
    for url in urls:
        wire = Wire(url, name="everbus-start")
        try:
            await check_server(wire, settings)
        except WireFailed as error:
            away.append(error)
        finally:
            await wire.close()
    if len(away) == len(urls):
        raise away[0]
    for one in away:
        log.warning("bus.unchecked", error=one.message)


async def check_server(wire: Wire, settings: Settings) -> None:
    """
    Refuse the server behind *wire*, or warn of it, after its own report.

    Raises:
        Failed: it may lose sessions, and EVERBUS_REDIS_UNSAFE is not set.
        WireFailed: the bus is away.
    """
    server = server_of(await wire.exchange(list(COMMANDS)))
    found = weaknesses(server)
    unsafe = [one for one in found if one.unsafe and _counts_here(one, settings)]
    if unsafe and not settings.redis_unsafe:
        raise Failed(_refusal(unsafe), CONFLICT)
    for one in found:
        log.warning(
            "bus.unsafe" if one.unsafe else "bus.weak",
            setting=one.setting,
            reason=one.what,
            remedy=one.remedy,
        )


def _counts_here(one: Weakness, settings: Settings) -> bool:
    """
    Without Sentinels somebody decides on each failover, and a warning must do: the
    first replica of a bus that runs must not end its managers.
    """
    return one is not NO_MIN_REPLICAS or is_sentinel(settings.redis_url)


def _refusal(unsafe: list[Weakness]) -> str:
    reasons = "; ".join(f"{one.what}. Remedy: {one.remedy}" for one in unsafe)

    return (
        f"this bus may lose sessions: {reasons}. For a test or a bench "
        "set EVERBUS_REDIS_UNSAFE=true"
    )
