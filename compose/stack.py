"""
The embedded stack: real servers and our own processes, from one folder.

Parts start in the order of what they need and stop in the reverse; between the
two, each is started again when it ends. What a killed supervisor left behind is
ended first, so that there are never two servers on one folder.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from compose.folder import (
    FolderLock,
    generated_secrets,
    remembered_ports,
    write_whole,
)
from compose.parts import Part
from compose.processes import Server
from compose.records import Say, end_orphans
from compose.servers import (
    BUCKET,
    HOST,
    nanio_server,
    role_server,
    secantus_server,
    valkey_server,
)

TOKEN_TTL_S = 30 * 24 * 3600

_SERVERS = ("valkey", "secantus", "nanio")
_EDGE = "edge"
_STORES = (
    "EVERBUS_REDIS_URL",
    "EVERBUS_MONGO_URL",
    "EVERBUS_S3_ENDPOINT",
    "EVERBUS_S3_BUCKET",
    "EVERBUS_S3_ACCESS_KEY",
    "EVERBUS_S3_SECRET_KEY",
)
# Only what judges tokens may know the key that makes them.
_JUDGES = ("EVERBUS_JWT_SECRET", "EVERBUS_JWT_ISSUER", "EVERBUS_JWT_AUDIENCE")
# A client that follows a session is told to come back, then the others finish.
_EDGE_DRAIN_S = 3


def _silent(_: str) -> None:
    pass


class EmbeddedStack:
    """
    A whole everbus on one folder, for as long as its `async with` lasts.
    """

    def __init__(
        self,
        data: Path,
        *,
        managers: int = 1,
        archiver: bool = True,
        edge: bool = False,
        extra: Mapping[str, str] | None = None,
        say: Say = _silent,
    ) -> None:
        """
        Prepare a stack; nothing is started yet.

        Args:
            data: its folder, made if missing; everything it keeps is in there.
            managers: how many replicas, 0 or more.
            edge: whether it is to be reached by HTTP, too.
            extra: more `EVERBUS_*` settings for the parts that are ours.
            say: is told, line by line, what happens.
        """
        self.data = data
        self.parts: dict[str, Part] = {}
        self._managers = managers
        self._archiver = archiver
        self._edge = edge
        self._extra = dict(extra or {})
        self._say = say
        self._environment: dict[str, str] = {}
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """
        Start all parts and wait until they serve; then write `env`.

        Raises:
            StackError: the folder or a port is in use, a wheel is missing, or a
                part does not come up.
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
        End all parts, the last started first, within their bounds.

        Raises:
            PartFailed: a part died too often while the stack ran.
        """
        try:
            await self._closing.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # The group is how the parts are watched, no affair of the caller's.
            raise group.exceptions[0] from None

    def environment(self) -> dict[str, str]:
        """
        The settings with which any everbus command finds this stack.
        """
        return dict(self._environment)

    def pid(self, name: str) -> int:
        """
        The process id of a part's present or last incarnation.
        """
        return self.parts[name].pid

    async def restart(self, name: str) -> None:
        """
        End a part in order, and wait until it serves again.
        """
        await self.parts[name].restart()

    async def kill(self, name: str) -> None:
        """
        End a part by SIGKILL; the watch starts it again at once.
        """
        await self.parts[name].kill()

    async def until_ready(self, name: str, timeout: float = 60.0) -> None:
        """
        Wait until a part serves (again); raises TimeoutError.
        """
        await self.parts[name].until_ready(timeout)

    async def _open(self) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Secrets and databases are not for anybody's repository.
        write_whole(self.data / ".gitignore", "*\n")
        lock = FolderLock(self.data)
        self._closing.callback(lock.close)
        await end_orphans(self.data, self._say)
        self._prepare()
        self._closing.push_async_callback(self._stop)
        watch = await self._closing.enter_async_context(asyncio.TaskGroup())
        for part in self.parts.values():
            await part.start()
            watcher = watch.create_task(part.keep(), name=f"keep {part.server.name}")
            self._closing.callback(watcher.cancel)
        lines = (f"{name}={value}\n" for name, value in self._environment.items())
        write_whole(self.data / "env", "".join(lines))

    async def _stop(self) -> None:
        async with AsyncExitStack() as ends:
            for part in self.parts.values():
                ends.push_async_callback(part.stop)

    def _prepare(self) -> None:
        served = (*_SERVERS, _EDGE) if self._edge else _SERVERS
        ports = remembered_ports(self.data, served)
        secrets = generated_secrets(self.data)
        self._environment = _environment(ports, secrets)
        servers = [
            valkey_server(self.data, ports["valkey"]),
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
            server.name: Part(replace(server, rank=rank), self._say)
            for rank, server in enumerate(servers)
        }

    def _roles(self) -> list[Server]:
        stores = self._settings(_STORES)
        roles = [self._role("archiver", "archiver", stores)] if self._archiver else []
        for n in range(1, self._managers + 1):
            name = f"manager-{n}"
            settings = self._settings((*_STORES, *_JUDGES)) | {"EVERBUS_REPLICA": name}
            roles.append(self._role(name, "manager", settings))

        return roles

    def _edges(self, ports: Mapping[str, int]) -> list[Server]:
        if not self._edge:
            return []
        port = ports[_EDGE]
        settings = self._settings((*_STORES, *_JUDGES)) | {
            "EVERBUS_EDGE_HOST": HOST,
            "EVERBUS_EDGE_PORT": str(port),
            "EVERBUS_EDGE_DRAIN_S": str(_EDGE_DRAIN_S),
        }
        return [self._role(_EDGE, "edge", settings, port)]

    def _role(
        self, name: str, role: str, settings: dict[str, str], port: int = 0
    ) -> Server:
        common = {
            "EVERBUS_DEVELOPMENT": "true",
            "EVERBUS_LOG_FORMAT": "json",
            "EVERBUS_LOG_LEVEL": "info",
        }
        given = common | self._extra | settings

        return role_server(self.data, name, role, given, port)

    def _settings(self, names: tuple[str, ...]) -> dict[str, str]:
        return {name: self._environment[name] for name in names}


def _environment(
    ports: Mapping[str, int], secrets: Mapping[str, str]
) -> dict[str, str]:
    redis = f"redis://{HOST}:{ports['valkey']}/0"
    edge = (
        {"EVERBUS_EDGE_URL": f"http://{HOST}:{ports[_EDGE]}"} if _EDGE in ports else {}
    )

    return edge | {
        "EVERBUS_REDIS_URL": redis,
        # Direct: there is no replica set to discover.
        "EVERBUS_MONGO_URL": f"mongodb://{HOST}:{ports['secantus']}/?directConnection=true",
        "EVERBUS_S3_ENDPOINT": f"http://{HOST}:{ports['nanio']}",
        "EVERBUS_S3_BUCKET": BUCKET,
        "EVERBUS_S3_ACCESS_KEY": secrets["s3_access_key"],
        "EVERBUS_S3_SECRET_KEY": secrets["s3_secret_key"],
        "EVERBUS_JWT_SECRET": secrets["jwt_secret"],
        "EVERBUS_JWT_ISSUER": "everbus",
        "EVERBUS_JWT_AUDIENCE": "everbus",
        "EVERBUS_TOKEN": _admin_token(secrets["jwt_secret"]),
        "EVERBUS_MAD_URL": redis + "?client_name={mad}",
    }


def _admin_token(secret: str) -> str:
    # Late: servers alone need no PyJWT.
    from gateway.identity.tokens import mint

    return mint(
        secret,
        name="dev",
        role="admin",
        issuer="everbus",
        audience="everbus",
        ttl_s=TOKEN_TTL_S,
        now=time.time(),
    )
