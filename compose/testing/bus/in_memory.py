"""
A whole bus on one event loop: the server in memory, real replicas, a real archiver.

The replicas are SessionManagers with their lanes, the archiver is the Drain, and the
tokens are judged by the TokenExchange, as in production. In memory are the server
(fakeredis) and the tiers below it (MemoryWarm; MemoryCold, unless the settings name
another cold tier).
"""

import asyncio
import secrets
from collections.abc import Mapping
from datetime import timedelta

from everbus.archiver.archiving import ArchiveReport
from everbus.bus import keys
from everbus.bus.messages import SCHEMA
from everbus.compose.settings import load_settings
from everbus.compose.testing.bus import bus_time, skipping
from everbus.compose.testing.bus.fake_redis import FakeRedisServer
from everbus.compose.testing.bus.faults import Fault, FaultPlan, fields_in
from everbus.compose.testing.bus.running_parts import (
    ARCHIVER,
    RunningArchiver,
    RunningReplica,
    SharedParts,
    until,
)
from everbus.compose.testing.bus.server_door import FakeConnection, ServerDoor
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.compose.tier_settings import archives_of
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.local import MemoryCold

CLOSING_TURNS = 3

_NEVER_ADDED = b"0-1"


class InMemoryBus:
    """
    The parts of a bus in memory, while `open` and `close` are on one event loop.

    Attributes:
        url: where MADs connect.
        secret: what tokens are signed with.
        faults: planned faults of the next commands.
        silenced: MADs with lost heartbeats.
    """

    def __init__(
        self, partitions: int, lease_s: float, settings: Mapping[str, str]
    ) -> None:
        self.secret = secrets.token_hex(32)
        self.url = ""
        self.silenced: set[str] = set()
        self.partitions = partitions
        self._settings = load_settings(
            {
                "EVERBUS_JWT_SECRET": self.secret,
                "EVERBUS_PARTITIONS": str(partitions),
                "EVERBUS_LEASE_TTL_S": str(lease_s),
                **settings,
            }
        )
        self._replicas: dict[str, RunningReplica] = {}
        self._named = 0

    async def open(self, replicas: int) -> None:
        """
        Start the server, the archiver and so many *replicas*.
        """
        bus_time.install()
        self.server = FakeRedisServer(self._rewrite)
        self.faults = FaultPlan(self._tell, self.server.drop)
        self.door = ServerDoor(self.server, self._intercept)
        await self.door.open()
        self.url = self.door.url
        self._set_up()
        cold = archives_of(self._settings) or Archives(MemoryCold())
        self._shared = SharedParts(self.server, self._settings, MemoryWarm(), cold)
        self._archiver = RunningArchiver(self._shared)
        await self._archiver.start()
        for _ in range(replicas):
            await self.start_replica()

    async def close(self) -> None:
        """
        End all of it at once, as nothing has to be kept.
        """
        await self.door.close()
        for replica in list(self._replicas.values()):
            await replica.kill()
        await self._archiver.kill()
        self._shared.cold.close()
        # Transports that were closed give their sockets back in the next turns.
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)

    @property
    def replicas(self) -> tuple[str, ...]:
        """
        The names of the replicas that live.
        """
        return tuple(self._replicas)

    async def start_replica(self, name: str = "") -> str:
        """
        Start a replica; returns its name when it answers tokens and serves its lanes.
        """
        self._named += not name
        name = name or f"replica-{self._named}"
        replica = self._replicas[name] = RunningReplica(self._shared, name)
        await replica.start()
        return name

    async def kill_replica(self, name: str = "") -> str:
        """
        Cut a replica off and end it, without goodbye; returns its name.
        """
        name = name or next(iter(self._replicas))
        await self._replicas.pop(name).kill()
        return name

    async def advance(self, seconds: float) -> None:
        """
        Move the server's clock forward; returns when all lanes know the new losses.
        """
        # Heartbeats from before the skip are applied before it.
        await until(self._is_quiet)
        living = {*self._replicas, ARCHIVER}
        skipping.skip(self.server, living, self._hearts(), seconds)
        await until(self._is_quiet)

    async def archive(self, idle_s: float) -> ArchiveReport:
        """
        Move sessions that were idle for *idle_s* into the cold tier.
        """
        before = bus_time.utc_now() - timedelta(seconds=idle_s)
        return await self._archiver.archive(before)

    async def silence(self, mad: str) -> None:
        """
        Lose the heartbeats of *mad*.
        """
        self.silenced.add(mad)

    async def unsilence(self, mad: str) -> None:
        """
        Let the heartbeats of *mad* arrive again, and each instance beat at once.
        """
        self.silenced.discard(mad)
        skipping.beat(self.server, [one for one in self._hearts() if one[0] == mad])

    async def plan(self, fault: Fault) -> None:
        """
        Plan *fault*.
        """
        self.faults.add(fault)

    async def cut(self) -> None:
        """
        Let no MAD reach the bus.
        """
        self.door.cut()

    async def mend(self) -> None:
        """
        Let MADs reach the bus again.
        """
        self.door.mend()

    def _is_quiet(self) -> bool:
        lanes = [*map(str, range(self.partitions)), keys.PRESENCE]
        if not self._replicas:
            return True
        skipping.note_look(self.server)
        return skipping.is_quiet(self.server, {*self._replicas}, lanes)

    def _set_up(self) -> None:
        lease_ms = round(self._settings.lease_ttl_s * 1000)
        config = ("partitions", self.partitions, "schema", SCHEMA, "lease_ms", lease_ms)
        self.server.call("HSET", keys.CONFIG, *config)
        self.server.call("HSET", keys.MADS, keys.GATEWAY, "{}", keys.EDGE, "{}")

    def _tell(self, channel: str, message: bytes) -> None:
        self.server.call("PUBLISH", channel, message)

    def _rewrite(self, channel: bytes, message: bytes) -> bytes:
        return self.faults.on_message(channel, message)

    def _hearts(self) -> list[tuple[str, bytes]]:
        connections = self.door.connections
        beats = [one.beat for one in connections if one.beat is not None]

        return [beat for beat in beats if beat[0] not in self.silenced]

    def _intercept(self, connection: FakeConnection, words: list[bytes]) -> object:
        """
        The answer to a command that gets lost; None for all others.
        """
        if words[0].upper() != b"XADD":
            return None
        slot, _, mad = words[1].decode().partition(":in:")
        if slot.endswith(f"{{{keys.PRESENCE}}}"):
            connection.beat = (mad, words[-1])
            return _NEVER_ADDED if mad in self.silenced else None
        words[:] = self.faults.on_command(mad, words)
        return None if fields_in(words) else _NEVER_ADDED
