"""
A bus behind three Redis Sentinels for tests: a primary, two replicas, all on loopback.

Debian's `redis-server --sentinel` runs each Sentinel. Each process has a folder of its
own below the folder of the test, and is ended by pid.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from everbus.bus.wire import Wire
from everbus.compose.processes import start
from everbus.compose.servers import sentinel_server, valkey_server
from everbus.compose.stack_folder import free_port
from tests.servers import DEBIAN_REDIS, RealServer

NAME = "bus"
HOST = "127.0.0.1"
DOWN_AFTER_MS = 1000
WITHIN_S = 20.0


class Sentinels:
    """
    Servers and Sentinels, for the time of `sentinels`.

    Attributes:
        url: names every Sentinel.
    """

    def __init__(
        self, servers: Sequence[RealServer], sentinels: Sequence[RealServer], name: str
    ) -> None:
        self.servers = list(servers)
        self.sentinels = list(sentinels)
        named = ",".join(f"{HOST}:{one.port}" for one in sentinels)
        self.url = f"redis+sentinel://{named}/{name}"

    async def primary(self) -> RealServer:
        """
        The server that the first living Sentinel names.
        """
        alive = next(one for one in self.sentinels if one.alive)
        told = await ask(alive.url, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return next(one for one in self.servers if one.port == int(told[1]))

    async def fail_over(self) -> None:
        """
        An orderly failover; returns when the Sentinels name another primary.
        """
        before = await self.primary()
        told = await ask(self.sentinels[0].url, "SENTINEL", "FAILOVER", NAME)
        assert told == b"OK"
        await self.switched(before)

    async def switched(self, before: RealServer) -> RealServer:
        """
        The next primary, when every living Sentinel names it.
        """

        async def agreed() -> bool:
            alive = [one for one in self.sentinels if one.alive]
            named = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
            told = [await ask(one.url, *named) for one in alive]
            return len({int(one[1]) for one in told} | {before.port}) == 2 and (
                before.port not in {int(one[1]) for one in told}
            )

        await until_true(agreed)
        return await self.primary()


async def ask(url: str, *command: Any) -> Any:
    """
    The reply to one command on a connection of its own.
    """
    wire = Wire(url, name="test")
    try:
        return await wire.call(*command)
    finally:
        await wire.close()


async def until_true(holds: Callable[[], Awaitable[bool]]) -> None:
    """
    Return when *holds* does; what servers tell each other has no event of ours.
    """
    async with asyncio.timeout(WITHIN_S):
        while not await holds():  # noqa: ASYNC110 - as told above
            await asyncio.sleep(0.02)


@asynccontextmanager
async def sentinels(
    folder: Path, *, program: str = DEBIAN_REDIS, min_replicas: int = 1
) -> AsyncIterator[Sentinels]:
    """
    A primary with two replicas and three Sentinels, which know each other.
    """
    async with AsyncExitStack() as ends:
        servers: list[RealServer] = []
        for n in range(3):
            of = servers[0].port if servers else 0
            server = await _server(folder / f"server-{n}", program, of, min_replicas)
            ends.push_async_callback(_end, server)
            servers.append(server)
        watchers = []
        for n in range(3):
            (folder / f"sentinel-{n}").mkdir()
            spec = sentinel_server(
                folder / f"sentinel-{n}",
                free_port(),
                NAME,
                servers[0].port,
                down_after_ms=DOWN_AFTER_MS,
                program=program,
            )
            url = f"redis://{HOST}:{spec.port}"
            watchers.append(RealServer(await start(spec), url))
            ends.push_async_callback(_end, watchers[-1])
        made = Sentinels(servers, watchers, NAME)
        await until_true(lambda: _complete(made))
        yield made


async def _complete(made: Sentinels) -> bool:
    for one in made.sentinels:
        told = await ask(one.url, "SENTINEL", "MASTER", NAME)
        fields = dict(zip(told[::2], told[1::2], strict=True))
        known = int(fields[b"num-slaves"]), int(fields[b"num-other-sentinels"])
        if known != (2, 2):
            return False
    info = await ask(made.servers[0].url, "INFO", "replication")

    return info.count(b"state=online") == 2


async def _server(folder: Path, program: str, of: int, min_replicas: int) -> RealServer:
    folder.mkdir()  # noqa: ASYNC240 - one call, of a test
    server = valkey_server(folder, free_port(), program=program)
    lines = [
        f"min-replicas-to-write {min_replicas}",
        "repl-diskless-sync-delay 0",
        *([f"replicaof {HOST} {of}"] if of else []),
    ]
    with (folder / "valkey.conf").open("a") as config:
        config.write("\n".join(("", *lines, "")))

    return RealServer(await start(server), f"redis://{HOST}:{server.port}/0")


async def _end(server: RealServer) -> None:
    if server.alive:
        await server.kill()
