"""
The whole of everbus on real servers: what a test starts, kills, fills up and reads.

The archiver is either a process, to be killed, or `Hands`: the same parts in the
test's process.
"""

import asyncio
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis.asyncio
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from everbus.bus import Mad
from everbus.bus.keys import partition_of
from everbus.compose.processes import ProcessSpec, start
from everbus.compose.servers import BUCKET, nanio_server, secantus_server, valkey_server
from everbus.compose.settings import Settings, load_settings
from everbus.compose.stack_folder import free_port
from everbus.compose.tier_settings import outbox_of
from everbus.gateway.failpoints import FailPoint, disarmed
from everbus.gateway.store import key_names
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.reader import Reader
from tests import replicas
from tests.conversations import Conversation
from tests.hands import Hands, hands_on, tiers_here
from tests.lineages import lost_nothing
from tests.replicas import Part, a_mad, replica_here, settings_of, settled, until
from tests.servers import RealServer

PARTITIONS = 2
ACCESS_KEY, SECRET_KEY = "everbus", "a-secret-of-the-tests"
# Small, so that sessions of some dozen entries have several chunks.
CHUNK_ENTRIES = 16
# A process of ours with such chunks, that does not wait to be asked twice.
ROLES = f"""
from everbus.compose import archiver_jobs
from everbus.gateway.store.cold import format

format.CHUNK_ENTRIES = {CHUNK_ENTRIES}
archiver_jobs.MARKS_EVERY_S = archiver_jobs.REMOVALS_EVERY_S = 0.1
{replicas.ROLES}
"""
# What a server that finds no room is to be told of it, instead of being killed:
# Python ignores SIGXFSZ, and what it executes inherits that.
_EXEC = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
# While servers are killed again and again, little gets on.
PATIENCE_S = 150.0
# The hashes of their names fall into each of SecantusDB's 16 tables.
COLLECTIONS = 18
# The identity of a server that never followed another one.


class Stack:
    """
    Valkey, SecantusDB and nanio, and what a test starts on them.

    Attributes:
        database: the test's own; a new one after each `empty()`.
        client: a connection to the bus.
    """

    def __init__(
        self, folder: Path, bus: RealServer, mongo: RealServer, s3: RealServer
    ) -> None:
        self.folder = folder
        self.bus, self.mongo, self.s3 = bus, mongo, s3
        self.database = "t0"
        # It finds its connections cut when a test restarts the server.
        self.client: redis.asyncio.Redis = redis.asyncio.from_url(
            bus.url, retry=Retry(ConstantBackoff(0.05), 20)
        )
        self._databases = 0
        self._connection: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            mongo.url, tz_aware=True
        )

    async def empty(self) -> None:
        """
        An empty bus, another database; what an earlier test left dead is restarted.

        The bus says that it has lost nothing since long ago, or for its first minute
        even new ids would be looked for in MongoDB.
        """
        for server in (self.bus, self.mongo, self.s3):
            if not server.alive:
                await server.restart()
        await self.client.flushall()
        for p in range(PARTITIONS):
            await lost_nothing(self.client, p)
        self._databases += 1
        self.database = f"t{self._databases}"

    async def grow(self) -> None:
        """
        Let SecantusDB make the tables that it makes when they are first needed: killed
        at that moment, version 0.7 never starts again.
        """
        grown = self._connection["grown"]
        for n in range(COLLECTIONS):
            await grown[f"c{n}"].insert_one({"n": n})

    async def close(self) -> None:
        await self.client.aclose()
        await self._connection.close()

    @property
    def held(self) -> Any:
        """
        What MongoDB holds, read past all of our code.
        """
        return self._connection[self.database]

    def chosen(self, **settings: Any) -> dict[str, Any]:
        """
        The settings of every part, with those of the test.
        """
        return {
            "partitions": PARTITIONS,
            "mongo_url": self.mongo.url,
            "mongo_database": self.database,
            "s3_endpoint": self.s3.url,
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
            **settings,
        }

    def settings(self, **settings: Any) -> Settings:
        return load_settings(settings_of(self.bus.url, **self.chosen(**settings)))

    def environment(self, **settings: Any) -> dict[str, str]:
        """
        What a process of ours is told.
        """
        return settings_of(self.bus.url, **self.chosen(**settings))

    def manager(
        self, name: str = "m1", **settings: Any
    ) -> AbstractAsyncContextManager[Part]:
        """
        A manager as a process.
        """
        chosen = self.chosen(**settings)
        return replicas.manager(self.folder, self.bus.url, name, **chosen)

    @asynccontextmanager
    async def archiver(self, name: str = "a1", **settings: Any) -> AsyncIterator[Part]:
        """
        An archiver as a process, with small chunks.
        """
        env = self.environment(**settings)
        part = await replicas.start(self.folder, "archiver", name, env, ROLES)
        try:
            yield part
        finally:
            await part.end(signal.SIGKILL)

    @asynccontextmanager
    async def replica(
        self, *, fail: FailPoint = disarmed, **settings: Any
    ) -> AsyncIterator[None]:
        """
        A manager in this process.
        """
        chosen = self.settings(**settings)
        warm, vault = tiers_here(chosen, fail)
        outbox = outbox_of(chosen)
        reader = Reader(warm, vault, Prices(), outbox=outbox, fail=fail)
        try:
            async with replica_here(
                self.bus.url, tiers=reader, **self.chosen(**settings)
            ):
                yield
        finally:
            await reader.close()
            await outbox.close()
            warm.close()
            vault.close()

    def mad(self, name: str = "fiedler") -> AbstractAsyncContextManager[Mad]:
        return a_mad(self.bus.url, name)

    def hands(
        self, *, fail: FailPoint = disarmed, **settings: Any
    ) -> AbstractAsyncContextManager[Hands]:
        """
        An archiver in this process that does nothing unasked.
        """
        return hands_on(self.settings(**settings), fail)

    @asynccontextmanager
    async def served(self, **settings: Any) -> AsyncIterator[tuple[Mad, Hands]]:
        """
        A manager and a MAD; an archiver that does nothing unasked.
        """
        async with (
            self.replica(**settings),
            self.mad() as mad,
            self.hands(**settings) as hands,
        ):
            yield mad, hands

    async def archived(
        self, mad: Mad, hands: Hands, entries: int = 60, *, purged: bool = True
    ) -> Conversation:
        """
        A conversation that lies in S3; somebody has to drain.
        """
        one = await Conversation.begin(mad)
        await one.say(entries)
        await one.change()
        await one.check()
        await one.suspend()
        await self.until_cold(one.id)
        report = await hands.archive()
        assert (report.archived, report.failed) == (1, 0)
        if purged:
            await hands.upkeep.purge()
            assert await self.entries_in(one.id) == 0
        return one

    async def entries_in(self, session_id: str) -> int:
        """
        How many timeline entries MongoDB has of it.
        """
        of = {"session": session_id}
        found: int = await self.held["timeline"].count_documents(of)

        return found

    async def is_hot(self, session_id: str) -> bool:
        """
        Whether any key of its hot copy is there.
        """
        p = partition_of(session_id, PARTITIONS)
        found = key_names.session(p, session_id), key_names.recent(p, session_id)

        return bool(await self.client.exists(*found))

    async def until_cold(self, session_id: str, within_s: float = 20.0) -> None:
        """
        Wait until no key of its hot copy is there.
        """

        async def gone() -> bool:
            return not await self.is_hot(session_id)

        await until(gone, within_s, f"{session_id} leaves the hot tier")

    async def drained(self, within_s: float = 30.0) -> None:
        """
        Wait until all is settled, and no outbox holds anything.
        """
        await settled(self.client, within_s)

        async def empty() -> bool:
            outboxes = [key_names.outbox(p) for p in range(PARTITIONS)]
            return not any([await self.client.xlen(outbox) for outbox in outboxes])

        await until(empty, within_s, "outboxes drained")

    async def document(self, session_id: str) -> dict[str, Any] | None:
        """
        The session's document in MongoDB, also while that is killed and started.
        """
        while True:
            with suppress(PyMongoError):
                found: dict[str, Any] | None = await self.held["sessions"].find_one(
                    {"_id": session_id}
                )
                return found
            await asyncio.sleep(replicas.POLL_S)

    async def until_document(self, session_id: str, **fields: Any) -> dict[str, Any]:
        """
        The session's document as soon as it has these fields; None: absent.
        """

        async def found() -> dict[str, Any] | None:
            document = await self.document(session_id) or {}
            is_so = all(document.get(name) == v for name, v in fields.items())
            return document if is_so else None

        document: dict[str, Any] = await until(
            found, PATIENCE_S, f"{session_id} with {fields}"
        )
        return document

    def objects(self, session_id: str) -> list[Path]:
        """
        The session's objects as files on nanio's disk.
        """
        folder = self.folder / "nanio" / BUCKET / "sessions"

        return sorted(
            path for path in folder.glob(f"*/{session_id}/*") if path.is_file()
        )


def fill_disk(server: RealServer, room_bytes: int = 1) -> None:
    """
    Let no file of *server* grow beyond *room_bytes*, as on a full disk; needs Linux.

    Those of `a_stack` are told of it; others are killed by it.
    """
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (room_bytes, hard))


def free_disk(server: RealServer) -> None:
    """
    End `fill_disk`.
    """
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))


@asynccontextmanager
async def a_stack(folder: Path) -> AsyncIterator[Stack]:
    """
    The three servers on *folder*, empty.
    """
    ports = [free_port() for _ in range(3)]
    valkey = valkey_server(folder, ports[0])
    secantus = secantus_server(folder, ports[1])
    nanio = nanio_server(folder, ports[2], ACCESS_KEY, SECRET_KEY)
    async with (
        _serving(valkey, f"redis://127.0.0.1:{ports[0]}/0") as bus,
        _serving(
            secantus, f"mongodb://127.0.0.1:{ports[1]}/?directConnection=true"
        ) as mongo,
        _serving(nanio, f"http://127.0.0.1:{ports[2]}") as s3,
    ):
        stack = Stack(folder, bus, mongo, s3)
        await stack.grow()
        try:
            yield stack
        finally:
            await stack.close()


@asynccontextmanager
async def _serving(server: ProcessSpec, url: str) -> AsyncIterator[RealServer]:
    patient = replace(server, argv=(sys.executable, "-c", _EXEC, *server.argv))
    real = RealServer(await start(patient), url)
    try:
        yield real
    finally:
        if real.alive:
            await real.kill()
