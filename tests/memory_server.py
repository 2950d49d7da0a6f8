"""
A Redis in memory for unit tests of what speaks to one: fakeredis, our scripts included.

Its `call` is synchronous, so a test can look into it between two steps of a loop. What
only a real server can show (persistence, expiry events, clusters, speed) is tested on
one: `servers.py`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from everbus.bus.wire import Wire
from everbus.compose.testing.bus.fake_redis import FakeRedisServer
from everbus.compose.testing.bus.server_door import ServerDoor


class MemoryRedis:
    """
    A server on a loopback port of this process.

    Attributes:
        url: where clients connect.
        call: runs one command of the test's own, at once.
    """

    def __init__(self, server: FakeRedisServer, door: ServerDoor) -> None:
        self.url = door.url
        self.call = server.call
        self.cut = door.cut
        self.mend = door.mend


@asynccontextmanager
async def memory_redis() -> AsyncIterator[MemoryRedis]:
    server = FakeRedisServer(lambda _, message: message)
    door = ServerDoor(server)
    await door.open()
    try:
        yield MemoryRedis(server, door)
    finally:
        await door.close()


@asynccontextmanager
async def wire_to_memory(redis: MemoryRedis) -> AsyncIterator[Wire]:
    wire = Wire(redis.url)
    try:
        yield wire
    finally:
        await wire.close()
