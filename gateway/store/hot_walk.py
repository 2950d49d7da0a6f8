"""
A walk over the hot sessions of a whole bus: every primary is asked for its own keys.
"""

from collections.abc import AsyncIterator

from everbus.bus.bus_servers import bus_servers, reachable
from everbus.bus.wire import Wire

# Keys of one step; other clients of the server wait for it.
SCANNED = 1000


async def hot_sessions(url: str) -> AsyncIterator[str]:
    """
    Ids of the hot sessions of the bus at *url*, each at least once.

    Raises:
        EverbusError: a primary is away, or refuses.
    """
    async with bus_servers(url, name="everbus-walk") as servers:
        for one in reachable(servers):
            if one.is_primary:
                async for session_id in _on(one.wire):
                    yield session_id


async def hot_totals(url: str) -> tuple[int, int]:
    """
    Number of hot sessions on the bus at *url*, and bytes that its primaries use.

    Raises:
        EverbusError: a primary is away, or refuses.
    """
    used = 0
    found = {session_id async for session_id in hot_sessions(url)}
    async with bus_servers(url, name="everbus-walk") as servers:
        for one in reachable(servers):
            if one.is_primary:
                memory = (await one.wire.call("INFO", "memory")).decode()
                lines = memory.splitlines()
                field = next(x for x in lines if x.startswith("used_memory:"))
                used += int(field.partition(":")[2])

    return len(found), used


async def _on(wire: Wire) -> AsyncIterator[str]:
    cursor = b"0"
    while True:
        cursor, keys = await wire.call(
            *("SCAN", cursor, "MATCH", "eb:{*}:session:*", "COUNT", SCANNED)
        )
        for key in keys:
            yield key.decode().partition(":session:")[2]
        if cursor == b"0":
            return
