"""
An arena: one whole stack that outlives many episodes, and can be hurt in every part.

The bus is one server, three servers behind three Sentinels, or a cluster of three
primaries with a replica each. Every client reaches it through links that break.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pymongo import AsyncMongoClient

from everbus.bus import Mad, connect
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.wire import Wire
from everbus.compose.processes import ProcessSpec, start
from everbus.compose.servers import (
    nanio_server,
    secantus_server,
    sentinel_server,
    valkey_server,
)
from everbus.compose.settings import Settings, load_settings
from everbus.compose.stack_folder import free_port
from everbus.compose.tier_settings import archives_of, warm_tier
from tests import replicas
from tests.chaos.campaign.links import HOST, Link
from tests.replicas import Part, a_token, settings_of, until
from tests.servers import DEBIAN_REDIS, S3_KEYS, RealServer

Topology = Literal["server", "clocked", "sentinel", "cluster"]
TOPOLOGIES: tuple[Topology, ...] = ("server", "sentinel", "cluster", "clocked")

NAME = "bus"
MANAGERS = 2
PARTITIONS = 4
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
COLLECTIONS = 18
WITHIN_S = 30.0


class Arena:
    """
    The parts of one stack, by name, and the ways to hurt and to ask them.

    Attributes:
        servers: name → a server of the bus; sentinels: name → a Sentinel.
        links: name → a link that the bus, or MongoDB, is reached by.
        parts: name → a process of everbus.
        wire: the arena's own connection to the bus, past all links.
    """

    def __init__(self, topology: Topology, folder: Path) -> None:
        self.topology = topology
        self.folder = folder
        self.servers: dict[str, RealServer] = {}
        self.sentinels: dict[str, RealServer] = {}
        self.links: dict[str, Link] = {}
        self.parts: dict[str, Part] = {}
        self.clock: Path | None = None
        self.mongo: RealServer
        self.s3: RealServer
        self.wire: Wire
        self.judge: Mad
        self.settings: Settings
        self._ends = AsyncExitStack()
        self._ports: dict[str, int] = {}
        self._env: dict[str, str] = {}

    @property
    def clustered(self) -> bool:
        """
        Whether the bus is a cluster.
        """
        return self.topology == "cluster"

    @property
    def replicated(self) -> bool:
        """
        Whether the bus has replicas, and may fail over.
        """
        return self.topology in ("sentinel", "cluster")

    def url(self, of: str) -> str:
        """
        The bus as *of* (`mads`, `managers` or `arena`) reaches it.
        """
        if self.topology == "sentinel":
            named = ",".join(f"{HOST}:{one.port}" for one in self.sentinels.values())
            return f"redis+sentinel://{named}/{NAME}"
        if self.clustered:
            links = [self.links[name] for name in self.servers]
            return "redis+cluster://" + ",".join(f"{HOST}:{one.port}" for one in links)
        if of == "arena":
            return self.servers["bus"].url
        return f"redis://{HOST}:{self.links[of].port}/0"

    async def direct(self, name: str, *command: Any) -> Any:
        """
        The reply of one server or Sentinel to one command, past all links.
        """
        one = self.servers.get(name) or self.sentinels[name]
        wire = Wire(one.url, name="campaign")
        try:
            return await wire.call(*command, timeout_s=3.0)
        finally:
            await wire.close()

    async def ask(self, *command: Any) -> Any:
        """
        The reply of the bus to one command, as soon as it gives one.
        """
        until_s = asyncio.get_running_loop().time() + WITHIN_S
        while True:
            try:
                return await self.wire.call(*command)
            except EverbusError:
                if asyncio.get_running_loop().time() > until_s:
                    raise
                await asyncio.sleep(0.05)

    async def roles(self) -> dict[str, str]:
        """
        Server → `master` or `slave`, of those that answer.
        """
        found = {}
        for name, server in self.servers.items():
            if server.alive:
                with suppress(EverbusError, TimeoutError):
                    found[name] = (await self.direct(name, "ROLE"))[0].decode()
        return found

    async def primaries(self) -> list[str]:
        """
        The servers that clients are sent to now.
        """
        until_s = asyncio.get_running_loop().time() + WITHIN_S
        while not (found := await self._primaries()):
            if asyncio.get_running_loop().time() > until_s:
                raise AssertionError("nobody names a primary")
            await asyncio.sleep(0.05)
        return found

    async def _primaries(self) -> list[str]:
        if self.topology == "sentinel":
            return await self._told_by_sentinels()
        if self.clustered:
            return await self._cluster_primaries()
        return list(self.servers)

    async def _told_by_sentinels(self) -> list[str]:
        wanted = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        for name, one in self.sentinels.items():
            if one.alive:
                # Another fault may kill it at this moment.
                with suppress(EverbusError, TimeoutError):
                    told = await self.direct(name, *wanted)
                    return [self._behind(int(told[1]))]
        return []

    async def _cluster_primaries(self) -> list[str]:
        for name, server in self.servers.items():
            if not server.alive:
                continue
            with suppress(EverbusError):
                told = await self.direct(name, "CLUSTER", "SLOTS")
                return sorted({self._behind(int(one[2][1])) for one in told})
        return []

    def _behind(self, port: int) -> str:
        return next(n for n, link in self.links.items() if link.port == port)

    def server_of(self, partition: int, primaries: list[str]) -> str:
        """
        Any primary; on one server or behind Sentinels the only one.
        """
        return primaries[partition % len(primaries)]

    async def __aenter__(self) -> "Arena":
        try:
            await self._open()
        except BaseException:
            await self._ends.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ends.aclose()

    async def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self._open_tiers()
        if self.topology == "sentinel":
            await self._open_sentinels()
        elif self.clustered:
            await self._open_cluster()
        else:
            await self._open_server()
        self._env = settings_of(self.url("managers"), **self._chosen())
        own = {**self._env, "EVERBUS_REDIS_URL": self.url("arena")}
        own["EVERBUS_MONGO_URL"] = self.mongo.url
        self.settings = load_settings(own)
        self.warm = warm_tier(self.settings)
        assert self.warm is not None
        self._ends.callback(self.warm.close)
        self.archives = archives_of(self.settings)
        if self.archives is not None:
            self._ends.callback(self.archives.close)
        for name in self.everbus:
            await self.begin(name)
        for name in self.everbus:
            role = "archiver" if name == "archiver" else "manager"
            await self.parts[name].logged(f"{role}.ready", WITHIN_S)
        self._ends.push_async_callback(self._end_parts)
        self.wire = wire_to(self.url("arena"), name="campaign")
        self._ends.push_async_callback(self.wire.close)
        self.judge = await self._ends.enter_async_context(
            connect(self.url("arena"), mad="judge", token=a_token(), timeout=60)
        )

    @property
    def everbus(self) -> tuple[str, ...]:
        """
        The names of everbus's own processes.
        """
        return ("archiver", *self.managers)

    @property
    def managers(self) -> tuple[str, ...]:
        """
        The names of the replicas.
        """
        return tuple(f"manager-{n}" for n in range(1, MANAGERS + 1))

    def _chosen(self) -> dict[str, Any]:
        return {
            "partitions": PARTITIONS,
            "lane_ttl_ms": 1500,
            "lease_ttl_s": 5,
            "hot_ttl_s": 30,
            "redis_unsafe": str(self.topology != "server").lower(),
            "replicated_timeout_ms": 1000,
            "mongo_url": f"mongodb://{HOST}:{self.links['mongo'].port}"
            "/?directConnection=true",
            "mongo_database": "campaign",
            "warm_timeout_s": 2,
            "cold_timeout_s": 2,
            "s3_endpoint": self.s3.url,
            "s3_access_key": S3_KEYS[0],
            "s3_secret_key": S3_KEYS[1],
        }

    async def begin(self, name: str) -> None:
        """
        Start a process of everbus.
        """
        role = "archiver" if name == "archiver" else "manager"
        env = {**self._env, "EVERBUS_REPLICA": name}
        self.parts[name] = await replicas.start(self.folder, role, name, env)

    async def revive(self, name: str) -> None:
        """
        Start whatever was killed, if it is dead.
        """
        if name in self.parts:
            if not self.parts[name].alive:
                await self.begin(name)
            return
        server = self.server(name)
        if not server.alive:
            await server.restart()

    async def mend(self) -> None:
        """
        Start again what an episode left dead, so that the next one is not judged by it.
        """
        for name in (*self.servers, *self.sentinels, "mongo", "s3", *self.parts):
            await self.revive(name)

    def server(self, name: str) -> RealServer:
        """
        A server by its name.
        """
        known = {"mongo": self.mongo, "s3": self.s3, **self.servers, **self.sentinels}
        return known[name]

    async def _end_parts(self) -> None:
        for part in self.parts.values():
            part.send(signal.SIGCONT)
            await part.end(signal.SIGKILL)

    async def _open_tiers(self) -> None:
        mongo = secantus_server(self._folder("mongo"), free_port())
        url = f"mongodb://{HOST}:{mongo.port}/?directConnection=true"
        self.mongo = await self._serve(mongo, url)
        client: AsyncMongoClient[Any] = AsyncMongoClient(url)
        for n in range(COLLECTIONS):
            # Killed while it makes a table, SecantusDB 0.7 never starts again.
            await client["grown"][f"c{n}"].insert_one({"n": n})
        await client.close()
        s3 = nanio_server(self._folder("s3"), free_port(), *S3_KEYS)
        self.s3 = await self._serve(s3, f"http://{HOST}:{s3.port}")
        await self._link("mongo", mongo.port)

    async def _open_server(self) -> None:
        spec = valkey_server(self._folder("bus"), free_port())
        if self.topology == "clocked":
            self.clock = self.folder / "clock"
            self.set_clock(0)
            faked = {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
            spec = replace(spec, env={**spec.env, **faked})
        url = f"redis://{HOST}:{spec.port}/0"
        self.servers["bus"] = await self._serve(spec, url)
        for name in ("mads", "managers"):
            await self._link(name, spec.port)

    def set_clock(self, by_s: int) -> None:
        """
        Set the bus's wall clock; its monotonic clock goes on.
        """
        assert self.clock is not None
        self.clock.write_text(f"{by_s:+d}\n")

    async def _open_sentinels(self) -> None:
        for n in range(3):
            name, port = f"bus-{n + 1}", free_port()
            link = await self._link(name, port)
            lines = [
                "min-replicas-to-write 1",
                f"replica-announce-ip {HOST}",
                f"replica-announce-port {link.port}",
            ]
            if n:
                lines.append(f"replicaof {HOST} {self.links['bus-1'].port}")
            await self._bus_server(name, port, lines, DEBIAN_REDIS)
        for n in range(3):
            name = f"sentinel-{n + 1}"
            spec = sentinel_server(
                self._folder(name),
                free_port(),
                NAME,
                self.links["bus-1"].port,
                down_after_ms=1000,
                program=DEBIAN_REDIS,
            )
            url = f"redis://{HOST}:{spec.port}"
            self.sentinels[name] = await self._serve(spec, url)
        await until(self._sentinels_know_all, WITHIN_S, "Sentinels know all")

    async def _sentinels_know_all(self) -> bool:
        for name in self.sentinels:
            told = await self.direct(name, "SENTINEL", "MASTER", NAME)
            fields = dict(zip(told[::2], told[1::2], strict=True))
            if (fields[b"num-slaves"], fields[b"num-other-sentinels"]) != (b"2", b"2"):
                return False
        return bool(await self.replicas_follow())

    async def replicas_follow(self) -> bool:
        """
        Whether each server that should follow a primary does, up to date.
        """
        if not self.replicated:
            return True
        with suppress(EverbusError, StopIteration, IndexError):
            primaries = await self.primaries()
            if len(primaries) != (3 if self.clustered else 1):
                return False
            followers = 0
            for name in primaries:
                info = await self.direct(name, "INFO", "replication")
                if b"role:master" not in info:
                    return False
                followers += info.count(b"state=online")
            return followers == len(self.servers) - len(primaries)
        return False

    async def _open_cluster(self) -> None:
        gossips: dict[str, int] = {}
        for n in range(6):
            name, port = f"node-{n + 1}", free_port()
            link = await self._link(name, port)
            gossips[name] = free_port()
            lines = [
                "cluster-enabled yes",
                "cluster-node-timeout 2000",
                "cluster-allow-replica-migration no",
                "cluster-replica-validity-factor 0",
                f"cluster-port {gossips[name]}",
                f"cluster-announce-ip {HOST}",
                f"cluster-announce-port {link.port}",
                f"cluster-announce-bus-port {gossips[name]}",
            ]
            await self._bus_server(name, port, lines, "")
        names = list(self.servers)
        share = 16384 / 3
        for n, name in enumerate(names):
            await self.direct(name, "CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if n < 3:
                first, last = round(n * share), round((n + 1) * share) - 1
                await self.direct(name, "CLUSTER", "ADDSLOTSRANGE", first, last)
        for name in names[1:]:
            port = self.servers[name].port
            meet = ("CLUSTER", "MEET", HOST, port, gossips[name])
            await self.direct(names[0], *meet)
        for n in range(3):
            leader = await self.direct(names[n], "CLUSTER", "MYID")

            async def accepted(name: str = names[n + 3], me: bytes = leader) -> bool:
                try:
                    await self.direct(name, "CLUSTER", "REPLICATE", me)
                except EverbusError:
                    return False
                return True

            await until(accepted, WITHIN_S, "a replica of the cluster")
        await until(self._formed, WITHIN_S, "the cluster")

    async def _formed(self) -> bool:
        for name in self.servers:
            told = await self.direct(name, "CLUSTER", "INFO")
            if b"cluster_state:ok" not in told or b"cluster_size:3" not in told:
                return False
        return await self.replicas_follow()

    async def _bus_server(
        self, name: str, port: int, lines: list[str], program: str
    ) -> None:
        folder = self._folder(name)
        spec = valkey_server(folder, port, program=program)
        config = folder / "valkey.conf"
        with config.open("a") as file:
            file.write("\n".join((*lines, "repl-diskless-sync-delay 0", "")))
        url = f"redis://{HOST}:{port}/0"
        self.servers[name] = await self._serve(spec, url)

    async def _link(self, name: str, target: int) -> Link:
        link = Link(target)
        self.links[name] = await self._ends.enter_async_context(link)
        return link

    async def _serve(self, spec: ProcessSpec, url: str) -> RealServer:
        real = RealServer(await start(spec), url)
        self._ends.push_async_callback(_end, real)
        return real

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder


async def _end(server: RealServer) -> None:
    if server.alive:
        server.resume()
        await server.kill()


@asynccontextmanager
async def arena(topology: Topology, folder: Path) -> AsyncIterator[Arena]:
    """
    A stack of that topology, below *folder*.
    """
    async with Arena(topology, folder) as made:
        yield made
