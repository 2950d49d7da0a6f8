"""
A bus, a replica of it and one MongoDB: what fails over, lags behind, or splits.

Each side is a `Stack`, so a test starts managers, MADs and archivers on either. What
is to follow a failover reaches its side through a `Door`, which leads to another side
when the test says so.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio

from everbus.gateway.store import key_names
from tests.lineages import lost_nothing
from tests.proxy import Proxy
from tests.replicas import until
from tests.servers import DEBIAN_REDIS, RealServer, secantus, valkey
from tests.stack import PARTITIONS, Stack

# A user that may do all but follow: the replica's link stays down.
UNFOLLOWED = ("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
FOLLOWED = ("ACL", "SETUSER", "default", "+psync", "+sync", "+replconf")


class Door(RealServer):
    """
    A server's address that can come to lead to another server.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.url = f"{proxy.url()}/0"
        self.port = proxy.port

    @property
    def alive(self) -> bool:
        return True

    def lead_to(self, side: Stack) -> None:
        """
        Lead to *side* from now on; all connections are cut.
        """
        self.proxy.heal()
        self.proxy.move("127.0.0.1", side.bus.port)
        self.proxy.cut()


class BusPair:
    """
    Two sides over one MongoDB.

    Attributes:
        one: the primary.
        two: its replica, until `promote`.
    """

    def __init__(self, one: Stack, two: Stack, ends: AsyncExitStack) -> None:
        self.one, self.two = one, two
        self._ends = ends

    async def empty(self) -> None:
        """
        Both empty; the second follows the first.
        """
        for side in (self.one, self.two):
            if not side.bus.alive:
                await side.bus.restart()
            await side.client.execute_command("REPLICAOF", "NO", "ONE")
            # Also after a restart: else each synchronisation takes 5 s.
            await side.client.config_set("repl-diskless-sync-delay", 0)
        await self.one.client.execute_command(*FOLLOWED)
        await self.one.empty()
        self.two.database = self.one.database
        port = self.one.bus.port
        await self.two.client.execute_command("REPLICAOF", "127.0.0.1", port)
        await self.followed()
        # The identity is another one since somebody follows.
        for p in range(PARTITIONS):
            await lost_nothing(self.one.client, p)

    async def followed(self) -> None:
        """
        Wait until the replica has all that the primary has.
        """

        async def has_all() -> bool:
            here = await replication(self.one.client)
            there = await replication(self.two.client)
            up = there.get("master_link_status") == "up"
            return up and (here["master_repl_offset"] == there["slave_repl_offset"])

        await until(has_all, 20, "the replica has all")

    async def part(self) -> None:
        """
        Let the replica lag from now on.
        """
        await self.one.client.execute_command(*UNFOLLOWED)
        await self.one.client.execute_command("CLIENT", "KILL", "TYPE", "replica")

        async def down() -> bool:
            told = await replication(self.two.client)
            return told.get("master_link_status") == "down"

        await until(down, 20, "the replica is cut off")

    async def promote(self) -> None:
        """
        Let the second side be a primary, with what it has.

        Its lanes are free at once, as after the TTL of their owners.
        """
        await self.two.client.execute_command("REPLICAOF", "NO", "ONE")
        for p in (*range(PARTITIONS), "mads", "archiver"):
            await self.two.client.delete(key_names.owner(p))

    async def door(self, side: Stack) -> Stack:
        """
        A stack whose bus can move; its servers are those of *side*.
        """
        proxy = Proxy("127.0.0.1", side.bus.port)
        await self._ends.enter_async_context(proxy)
        made = Stack(side.folder, Door(proxy), side.mongo, side.s3)
        made.database = side.database
        self._ends.push_async_callback(made.close)
        return made


async def replication(client: redis.asyncio.Redis) -> dict[str, Any]:
    """
    INFO replication.
    """
    found: dict[str, Any] = await client.info("replication")
    return found


class _NoS3(RealServer):
    """
    An address where nobody answers: nothing of these tests is archived.
    """

    def __init__(self) -> None:
        self.url = "http://127.0.0.1:9"
        self.port = 9

    @property
    def alive(self) -> bool:
        return True


@asynccontextmanager
async def bus_pair(folder: Path) -> AsyncIterator[BusPair]:
    """
    Debian's Redis where it is installed, else Valkey, twice; and SecantusDB.
    """
    sides = []
    async with AsyncExitStack() as ends:
        mongo = await ends.enter_async_context(secantus(folder))
        for name in ("one", "two"):
            (folder / name).mkdir()
            server = await ends.enter_async_context(
                valkey(folder / name, program=DEBIAN_REDIS)
            )
            side = Stack(folder, server, mongo, _NoS3())
            ends.push_async_callback(side.close)
            sides.append(side)
        await sides[0].grow()
        yield BusPair(*sides, ends)
