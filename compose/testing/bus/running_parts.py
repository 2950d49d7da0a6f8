"""
The processes of a bus in memory, as tasks: replicas and the archiver.

Each has a port of its own. To kill a part is to cut its port: nothing arrives that its
tasks send while they end.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, NamedTuple

from everbus.archiver.archiving import ArchiveReport, Archiving
from everbus.archiver.confirmation import ConfirmationLimits
from everbus.archiver.drain import Drain
from everbus.archiver.gateway_commands import gateway_commands
from everbus.bus import keys
from everbus.bus.cluster_wire import wire_to
from everbus.compose.keyring import grants_of, identity_of
from everbus.compose.role_processes import lane_parts
from everbus.compose.settings import Settings
from everbus.compose.testing.bus import bus_time
from everbus.compose.testing.bus.fake_redis import FakeRedisServer
from everbus.compose.testing.bus.server_door import ServerDoor
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.failpoints import disarmed
from everbus.gateway.identity.token_exchange import TokenExchange
from everbus.gateway.session_manager import SessionManager
from everbus.gateway.store import key_names
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.outbox_reader import OutboxReader
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.reader import Reader

ARCHIVER = "archiver"
READY_S = 10.0
POLL_S = 0.001


class SharedParts(NamedTuple):
    """
    Server, settings and tiers, the same for all parts of one bus.
    """

    server: FakeRedisServer
    settings: Settings
    warm: MemoryWarm
    cold: Archives

    def settings_for(self, door: ServerDoor) -> Settings:
        """
        The settings of a part that connects through *door*.
        """
        return self.settings.model_copy(update={"redis_url": door.url})


class RunningReplica:
    """
    One SessionManager behind a door of its own, which can be cut.
    """

    def __init__(self, shared: SharedParts, name: str) -> None:
        self._shared = shared
        self._name = name
        self._door = ServerDoor(shared.server)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """
        Serve; returns when the replica answers tokens and is registered.
        """
        server, heard = self._shared.server, keys.token("*")
        listeners = server.listeners(heard)
        await self._door.open()
        url, settings = self._door.url, self._shared.settings_for(self._door)
        self._outbox = OutboxReader(lambda: wire_to(url), settings.partitions)
        self._tiers = Reader(
            self._shared.warm,
            self._shared.cold,
            Prices(),
            outbox=self._outbox,
            now=bus_time.utc_now,
        )
        parts = lane_parts(settings, settings.partitions, self._tiers)
        manager = SessionManager(self._name, parts, ttl_ms=settings.lane_ttl_ms)
        tokens = TokenExchange(url, identity_of(settings), grants_of(settings))
        self._tasks = [_begun(manager.run(self._stop)), _begun(tokens.run())]
        await until(
            lambda: (
                server.listeners(heard) > listeners
                and server.call("ZSCORE", key_names.REPLICAS, self._name) is not None
            )
        )

    async def kill(self) -> None:
        """
        End it as SIGKILL does: nothing that it sends arrives any more.
        """
        await self._door.close()
        await _ended(self._tasks)
        await self._tiers.close()
        await self._outbox.close()


class RunningArchiver:
    """
    The Drain into the warm tier in memory.
    """

    def __init__(self, shared: SharedParts) -> None:
        self._shared = shared
        self._door = ServerDoor(shared.server)

    async def start(self) -> None:
        """
        Drain from now on.
        """
        await self._door.open()
        settings = self._shared.settings_for(self._door)
        drain = Drain(
            settings.redis_url,
            settings.partitions,
            self._shared.warm,
            ARCHIVER,
            fail=disarmed,
            terms=ConfirmationLimits(
                round(settings.hot_ttl_s * 1000), settings.reply_ttl_s * 1000
            ),
        )
        self._tasks = [_begun(drain.run(asyncio.Event()))]

    async def archive(self, before: datetime) -> ArchiveReport:
        """
        One pass of the archiving.
        """
        url, partitions = self._door.url, self._shared.settings.partitions
        wire = wire_to(url)
        hot = RedisHot(wire, partitions)
        try:
            async with gateway_commands(url, partitions) as send:
                archiving = Archiving(
                    self._shared.warm, self._shared.cold, send, hot.exists, disarmed
                )
                return await archiving.run(before)
        finally:
            await wire.close()

    async def kill(self) -> None:
        """
        End it at once.
        """
        await self._door.close()
        await _ended(self._tasks)


async def until(condition: Callable[[], bool]) -> None:
    """
    Return when *condition* holds.

    Raises:
        TimeoutError: it does not within READY_S.
    """
    async with asyncio.timeout(READY_S):
        while not condition():  # noqa: ASYNC110 - of the server's data nobody tells
            await asyncio.sleep(POLL_S)


def _begun(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
