"""
The embedded stack: real servers and everbus's own processes, on one folder.

Processes start in the order of their needs and stop in the reverse order. In between,
each is started again when it ends. Leftovers of a killed supervisor are ended first,
so there are never two servers on one folder.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from everbus.compose.process_records import Say, end_orphans
from everbus.compose.processes import ProcessSpec
from everbus.compose.servers import (
    HOST,
    nanio_server,
    role_server,
    secantus_server,
)
from everbus.compose.stack_environment import (
    JUDGES,
    STORES,
    environment_of,
    own_key,
    write_environments,
)
from everbus.compose.stack_folder import (
    DEFAULT_PORTS,
    DefaultPorts,
    FolderLock,
    delete_data,
    generated_secrets,
    remembered_ports,
    write_whole,
)
from everbus.compose.supervision import SupervisedProcess
from everbus.compose.topologies import (
    PORTS,
    Topology,
    bus_servers,
    bus_url,
    claim_topology,
)

_TIERS = ("secantus", "nanio")
_EDGE = "edge"
# All that keeps data in the folder, of every topology.
_STORES = (*(name for names in PORTS.values() for name in names), *_TIERS)
# A start that takes longer names the part that it waits for; so does each part after it
# that takes longer than this.
SLOW_S, SLOW_PART_S = 10.0, 1.0
# Live streams end at once with a place to resume from; other requests get this time.
_EDGE_DRAIN_S = 3


def _silent(_: str) -> None:
    pass


class EmbeddedStack:
    """
    A whole everbus on one folder, for the time of its `async with`.
    """

    def __init__(
        self,
        data: Path,
        *,
        managers: int = 1,
        archiver: bool = True,
        edge: bool = False,
        topology: Topology = "server",
        extra: Mapping[str, str] | None = None,
        usual_ports: bool = False,
        reset: bool = False,
        say: Say = _silent,
    ) -> None:
        """
        Prepare a stack; nothing is started yet.

        Args:
            data: the folder of all its files, made if missing.
            managers: number of replicas, 0 or more.
            edge: whether to start an edge, too.
            topology: the bus is one server, a primary with two replicas behind three
                Sentinels, or a cluster of three primaries.
            extra: more `EVERBUS_*` settings for everbus's own processes.
            usual_ports: take DEFAULT_PORTS, as far as they are free.
            reset: delete all data of the folder's stack first.
            say: gets each event as a line of text.
        """
        self.data = data
        self.parts: dict[str, SupervisedProcess] = {}
        self._managers = managers
        self._archiver = archiver
        self._edge = edge
        self._topology = topology
        self._extra = dict(extra or {})
        self._usual_ports = usual_ports
        self._reset = reset
        self._say = say
        self._environment: dict[str, str] = {}
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """
        Start all processes and wait until they serve; then write `env`.

        Raises:
            StackError: the folder or a port is in use, a wheel is missing, or a
                process does not come up.
        """
        try:
            await self._open()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        End all processes, the last started first, within their time limits.

        Raises:
            ProcessFailed: a process died too often while the stack ran.
        """
        try:
            await self._closing.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # The task group is a detail of supervision; callers get its first error.
            raise group.exceptions[0] from None

    def environment(self) -> dict[str, str]:
        """
        The settings by which any everbus command finds this stack.
        """
        return dict(self._environment)

    def pid(self, name: str) -> int:
        """
        The id of a process's present or last incarnation.
        """
        return self.parts[name].pid

    async def restart(self, name: str) -> None:
        """
        End a process in order, and wait until it serves again.
        """
        await self.parts[name].restart()

    async def kill(self, name: str) -> None:
        """
        End a process by SIGKILL; its supervisor starts it again at once.
        """
        await self.parts[name].kill()

    async def until_ready(self, name: str, timeout: float = 60.0) -> None:
        """
        Wait until a process serves (again); raises TimeoutError.
        """
        await self.parts[name].until_ready(timeout)

    async def _open(self) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Secrets and databases must not get into a repository.
        write_whole(self.data / ".gitignore", "*\n")
        lock = FolderLock(self.data)
        self._closing.callback(lock.close)
        await end_orphans(self.data, self._say)
        if self._reset:
            delete_data(self.data, _STORES)
        self._prepare()
        self._closing.push_async_callback(self._stop)
        watch = await self._closing.enter_async_context(asyncio.TaskGroup())
        slow_at = asyncio.get_running_loop().time() + SLOW_S
        for part in self.parts.values():
            await self._start(part, slow_at)
            watcher = watch.create_task(part.keep(), name=f"keep {part.server.name}")
            self._closing.callback(watcher.cancel)
        write_environments(self.data, self._environment)

    async def _start(self, part: SupervisedProcess, slow_at: float) -> None:
        """
        Start *part*; at *slow_at* say that it is not ready yet.
        """
        name, log = part.server.name, part.server.log
        self._say(f"starting {name}")
        slow = f"{name} is not ready yet, {SLOW_S:g} s after the start; its log: {log}"
        loop = asyncio.get_running_loop()
        late = loop.call_at(max(slow_at, loop.time() + SLOW_PART_S), self._say, slow)
        try:
            await part.start()
        finally:
            late.cancel()

    async def _stop(self) -> None:
        async with AsyncExitStack() as ends:
            for part in self.parts.values():
                ends.push_async_callback(part.stop)

    def _prepare(self) -> None:
        claim_topology(self.data, self._topology)
        served = (*PORTS[self._topology], *_TIERS, *((_EDGE,) if self._edge else ()))
        ports = remembered_ports(self.data, served, self._default_ports())
        secrets = generated_secrets(self.data)
        redis = bus_url(self._topology, ports)
        self._environment = environment_of(redis, ports, secrets)
        servers = [
            *bus_servers(self._topology, self.data, ports),
            secantus_server(self.data, ports["secantus"]),
            nanio_server(
                self.data,
                ports["nanio"],
                secrets["s3_access_key"],
                secrets["s3_secret_key"],
            ),
            *self._roles(),
            *self._edges(ports),
        ]
        self.parts = {
            server.name: SupervisedProcess(replace(server, rank=rank), self._say)
            for rank, server in enumerate(servers)
        }

    def _default_ports(self) -> Mapping[str, int]:
        if not self._usual_ports:
            return {}
        right = DefaultPorts()
        self._closing.callback(right.close)

        return DEFAULT_PORTS if right.ours else {}

    def _roles(self) -> list[ProcessSpec]:
        stores = self._settings(STORES)
        roles = [self._role("archiver", "archiver", stores)] if self._archiver else []
        for n in range(1, self._managers + 1):
            name = f"manager-{n}"
            settings = self._judging("mad") | {"EVERBUS_REPLICA": name}
            roles.append(self._role(name, "manager", settings))

        return roles

    def _edges(self, ports: Mapping[str, int]) -> list[ProcessSpec]:
        if not self._edge:
            return []
        port = ports[_EDGE]
        settings = self._judging("edge") | {
            "EVERBUS_EDGE_HOST": HOST,
            "EVERBUS_EDGE_PORT": str(port),
            "EVERBUS_EDGE_DRAIN_S": str(_EDGE_DRAIN_S),
        }
        return [self._role(_EDGE, "edge", settings, port)]

    def _role(
        self, name: str, role: str, settings: dict[str, str], port: int = 0
    ) -> ProcessSpec:
        common = {
            "EVERBUS_DEVELOPMENT": "true",
            "EVERBUS_LOG_FORMAT": "json",
            "EVERBUS_LOG_LEVEL": "info",
        }
        given = common | self._extra | settings

        return role_server(self.data, name, role, given, port)

    def _judging(self, kind: str) -> dict[str, str]:
        """
        The settings of a role that checks tokens and seals the grants of *kind*.
        """
        return self._settings((*STORES, *JUDGES)) | own_key(kind, self._environment)

    def _settings(self, names: tuple[str, ...]) -> dict[str, str]:
        return {name: self._environment[name] for name in names}
