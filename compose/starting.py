"""
What a manager looks at before it serves: whether the bus can keep its promises.

One round trip. A server on which sessions could be lost is refused, unless a setting
says that this is meant; what only weakens a promise is warned of, once.
"""

import structlog

from bus.routing import is_cluster, node_urls
from bus.wire import Wire, WireFailed
from compose.exits import CONFLICT, USAGE, Failed
from compose.settings import Settings
from gateway.health.server import COMMANDS, Trouble, server_of, troubles

log = structlog.get_logger()


async def check_servers(settings: Settings) -> None:
    """
    As `check_server`, for each server that EVERBUS_REDIS_URL names.

    Of a Redis Cluster some may be away; of them it is warned.

    Raises:
        Failed: as there, by the first that does.
        WireFailed: all of them are away.
    """
    urls = node_urls(settings.redis_url)
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


def refuse_cluster(settings: Settings, command: str, why: str) -> None:
    """
    Refuse to run *command* on a Redis Cluster.

    Raises:
        Failed: EVERBUS_REDIS_URL names one.
    """
    if is_cluster(settings.redis_url):
        raise Failed(
            f"everbus {command} does not run on a Redis Cluster yet: {why}", USAGE
        )


async def check_server(wire: Wire, settings: Settings) -> None:
    """
    Refuse the server behind *wire*, or warn of it, as far as it tells of itself.

    Raises:
        Failed: sessions could be lost on it, and EVERBUS_REDIS_UNSAFE is not set.
        WireFailed: the bus is away.
    """
    server = server_of(await wire.exchange(list(COMMANDS)))
    found = troubles(server)
    unsafe = [one for one in found if one.unsafe]
    if unsafe and not settings.redis_unsafe:
        raise Failed(_refusal(unsafe), CONFLICT)
    for one in found:
        log.warning(
            "bus.unsafe" if one.unsafe else "bus.weak",
            setting=one.setting,
            reason=one.what,
            remedy=one.remedy,
        )


def _refusal(unsafe: list[Trouble]) -> str:
    said = "; ".join(f"{one.what}. Remedy: {one.remedy}" for one in unsafe)

    return (
        f"this bus may lose sessions: {said}. Where that is meant (a test, a bench), "
        "set EVERBUS_REDIS_UNSAFE=true"
    )
