"""
What a manager looks at before it serves: whether the bus can keep its promises.

One round trip. A server on which sessions could be lost is refused, unless a setting
says that this is meant; what only weakens a promise is warned of, once.
"""

import structlog

from bus.wire import Wire
from compose.exits import CONFLICT, Failed
from compose.settings import Settings
from gateway.health.server import COMMANDS, Trouble, server_of, troubles

log = structlog.get_logger()


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
