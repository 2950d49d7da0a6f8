"""
A Redis Cluster of real servers for tests and benches, on loopback.

Each node is a server as of `tests.servers`, in a folder of its own; slots are shared
out in equal runs. Nothing is replicated unless a test adds a follower: a primary that
dies takes its slots away until it is started again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from everbus.bus.cluster_routing import SLOTS, slot_of
from everbus.bus.wire import Wire
from everbus.compose.processes import start
from everbus.compose.servers import valkey_server
from everbus.compose.stack_folder import free_port
from tests.servers import RealServer

HOST = "127.0.0.1"
FORMED_WITHIN_S = 10.0


class Cluster:
    """
    A cluster that serves all slots.

    Attributes:
        url: names every node.
        nodes: one RealServer a primary; `pid`, `kill`, `restart` as of any server.
    """

    def __init__(self, nodes: Sequence[RealServer]) -> None:
        self.nodes = list(nodes)
        self.wires = [Wire(node.url, name="test") for node in nodes]
        named = ",".join(f"{HOST}:{node.port}" for node in nodes)
        self.url = f"redis+cluster://{named}"

    @property
    def pids(self) -> list[int]:
        """
        The processes of the primaries, in their order.
        """
        return [node.pid for node in self.nodes]

    async def owner(self, key: str) -> int:
        """
        Which of the nodes serves the slot of *key*.
        """
        for n, wire in enumerate(self.wires):
            for first, last, *_ in await self._ranges(wire):
                if first <= slot_of(key) <= last and await self._is_mine(wire, first):
                    return n
        raise AssertionError(f"nobody serves the slot of {key}")

    async def migrate(self, key: str, to: int) -> int:
        """
        Move the slot of *key* with all its keys, as `redis-cli --cluster reshard`
        does it; returns how many keys went.
        """
        moved = 0
        async with self.migrating(key, to) as step:
            while (some := await step()) > 0:
                moved += some
        return moved

    @asynccontextmanager
    async def migrating(self, key: str, to: int) -> AsyncIterator[Any]:
        """
        The slot of *key* on its way: each call of what is yielded moves some keys and
        returns how many; the slot itself goes at the end of the block.
        """
        slot, source = slot_of(key), await self.owner(key)
        old, new = self.wires[source], self.wires[to]
        ids = [(await wire.call("CLUSTER", "MYID")).decode() for wire in (old, new)]
        await new.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await old.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])

        async def step(count: int = 100) -> int:
            keys = await old.call("CLUSTER", "GETKEYSINSLOT", slot, count)
            if keys:
                port = self.nodes[to].port
                head = ("MIGRATE", HOST, port, "", 0, 5000, "KEYS")
                await old.call(*head, *keys)
            return len(keys)

        yield step
        # What was written meanwhile goes as well, or it would be left behind.
        while await step():
            pass
        for wire in (new, old, *self.wires):
            await wire.call("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    @asynccontextmanager
    async def follower(self, folder: Path, of: int) -> AsyncIterator[Wire]:
        """
        One more node, which follows that primary; the test's connection to it.
        """
        node = await _node(folder / "follower", aof=True, program="")
        wire = Wire(node.url, name="test")
        try:
            leader, port = self.wires[of], self.nodes[of].port
            gossip = (await leader.call("CONFIG", "GET", "cluster-port"))[1]
            await wire.call("CLUSTER", "MEET", HOST, port, gossip)
            # Else it waits for more followers to come.
            await leader.call("CONFIG", "SET", "repl-diskless-sync-delay", 0)
            me = (await leader.call("CLUSTER", "MYID")).decode()

            async def accepted() -> bool:
                # It is refused until the gossip has told of the other.
                [told] = await wire.exchange([("CLUSTER", "REPLICATE", me)])
                return bool(told == b"OK")

            async def known() -> bool:
                # Only whom all primaries know as a follower can be elected.
                tables = [await one.call("CLUSTER", "NODES") for one in self.wires]
                replication = await wire.call("INFO", "replication")
                up = b"master_link_status:up" in replication
                return up and all(f" slave {me} ".encode() in one for one in tables)

            await _until(accepted)
            await _until(known)
            yield wire
        finally:
            await wire.close()
            await node.stop()

    @asynccontextmanager
    async def newcomer(self, folder: Path) -> AsyncIterator[Wire]:
        """
        One more node, without slots; the test's connection to it.
        """
        node = await _node(folder / "newcomer", aof=True, program="")
        wire = Wire(node.url, name="test")
        try:
            gossip = (await wire.call("CONFIG", "GET", "cluster-port"))[1]
            await self.wires[0].call("CLUSTER", "MEET", HOST, node.port, gossip)
            yield wire
        finally:
            await wire.close()
            await node.stop()

    async def empty(self) -> None:
        """
        Forget every key; nodes that a test left dead are started again.
        """
        # Those that a test has restarted have left our connections broken.
        await self.close()
        for node in self.nodes:
            if not node.alive:
                await node.restart()
        for wire in self.wires:
            await wire.call("FLUSHALL")

    async def keys(self, pattern: str = "*") -> list[str]:
        """
        The keys of all nodes; for small keyspaces.
        """
        found = [await wire.call("KEYS", pattern) for wire in self.wires]

        return sorted(key.decode() for some in found for key in some)

    async def close(self) -> None:
        """
        Close the test's own connections; the next use opens them again.
        """
        for wire in self.wires:
            await wire.close()

    async def form(self) -> None:
        """
        Make one cluster of the nodes; returns when each of them serves.
        """
        share, count = SLOTS / len(self.nodes), len(self.nodes)
        for n, wire in enumerate(self.wires):
            first, last = round(n * share), round((n + 1) * share) - 1
            await wire.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            await wire.call("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            gossip = (await self.wire_of(node).call("CONFIG", "GET", "cluster-port"))[1]
            await self.wires[0].call("CLUSTER", "MEET", HOST, node.port, gossip)

        async def formed() -> bool:
            return all([await self._formed(wire, count) for wire in self.wires])

        await _until(formed)

    def wire_of(self, node: RealServer) -> Wire:
        """
        The test's own connection to one node.
        """
        return self.wires[self.nodes.index(node)]

    async def _formed(self, wire: Wire, count: int) -> bool:
        told = (await wire.call("CLUSTER", "INFO")).decode().split()
        return (
            "cluster_state:ok" in told
            and f"cluster_known_nodes:{count}" in told
            and f"cluster_slots_ok:{SLOTS}" in told
        )

    async def _ranges(self, wire: Wire) -> list[Any]:
        ranges: list[Any] = await wire.call("CLUSTER", "SLOTS")
        return ranges

    async def _is_mine(self, wire: Wire, first: int) -> bool:
        me = await wire.call("CLUSTER", "MYID")
        ranges = await self._ranges(wire)

        return any(told[0] == first and told[2][2] == me for told in ranges)


@asynccontextmanager
async def cluster(
    folder: Path, *, primaries: int = 3, aof: bool = False, program: str = ""
) -> AsyncIterator[Cluster]:
    """
    A cluster of that many primaries, each a Valkey (or *program*) of its own.
    """
    async with AsyncExitStack() as ends:
        nodes = []
        for n in range(primaries):
            node = await _node(folder / f"node-{n}", aof=aof, program=program)
            ends.push_async_callback(node.stop)
            nodes.append(node)
        made = Cluster(nodes)
        ends.push_async_callback(made.close)
        await made.form()
        yield made


async def _node(folder: Path, *, aof: bool, program: str) -> RealServer:
    folder.mkdir()  # noqa: ASYNC240 - one call, of a test
    server = valkey_server(folder, free_port(), aof=aof, program=program)
    options = (
        "cluster-enabled yes",
        "cluster-node-timeout 2000",
        f"cluster-port {free_port()}",
    )
    with (folder / "valkey.conf").open("a") as config:
        config.write("\n".join(("", *options, "")))
    url = f"redis://{HOST}:{server.port}/0"

    return RealServer(await start(server), url)


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """
    Return when *holds* does; what nodes tell each other has no event of ours.
    """
    async with asyncio.timeout(FORMED_WITHIN_S):
        while not await holds():  # noqa: ASYNC110 - as told above
            await asyncio.sleep(0.02)
