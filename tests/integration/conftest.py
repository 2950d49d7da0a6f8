"""
A real bus with replicas in this process, MADs on it, and its keys by hand.

Server and manager live as long as a test module, in that module's event loop;
tests keep apart by the names of their MADs and by their sessions.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import redis.asyncio
import uuid_utils

from everbus.bus import Mad, connect, keys
from everbus.bus.messages import (
    Envelope,
    Reply,
    TimelineEntry,
    pack_envelope,
    unpack_reply,
)
from everbus.compose.keyring import grants_of, identity_of
from everbus.compose.role_processes import in_background, run_manager
from everbus.compose.settings import load_settings
from everbus.gateway.identity.token_exchange import TokenExchange
from everbus.gateway.identity.tokens import mint
from everbus.gateway.store import key_names
from everbus.gateway.store.cold import format
from everbus.gateway.store.dead_letters import DeadLetter, letter_of
from everbus.gateway.store.hot_copy import Record, unpack_records
from tests.builders import an_envelope, sealed_grant
from tests.replicas import a_client
from tests.servers import DEBIAN_REDIS, RealServer, debian_redis, valkey
from tests.stack import CHUNK_ENTRIES, Stack, a_stack

SECRET = "of-integration-tests-only-0123456789"
# Few lanes, since each of them waits on connections of its own.
PARTITIONS = 4
WITHIN_S = 15.0

NEEDS_REDIS = pytest.mark.skipif(not DEBIAN_REDIS, reason="no redis-server on the PATH")
# For tests that must hold on every server.
ON_EACH_SERVER = pytest.mark.parametrize(
    "bus_server",
    ["valkey", pytest.param("redis", marks=NEEDS_REDIS)],
    indirect=True,
    scope="module",
)


async def until(
    claim: Callable[[], Awaitable[bool]], what: str, within_s: float = WITHIN_S
) -> None:
    """
    Return when *claim* holds; what another process does has no event of ours.
    """
    deadline = time.monotonic() + within_s
    while not await claim():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


def a_token(name: str, role: str = "mad", *, ttl_s: float = 600) -> str:
    """
    A token that the managers of these tests accept while it lasts.
    """
    return mint(
        SECRET,
        name=name,
        role=role,  # type: ignore[arg-type]
        issuer="everbus",
        audience="everbus",
        ttl_s=ttl_s,
        now=time.time(),
    )


def a_grant(name: str, role: str = "mad", *, mad: str = "", **fields: Any) -> bytes:
    """
    What those managers give for such a token, for commands published by hand: on the
    ingress of *mad*, which is that of the MAD *name* if none is given.
    """
    return sealed_grant(SECRET, name, role, mad=mad or name, **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def only_grants(url: str) -> AsyncIterator[None]:
    """
    Managers that answer to tokens and to nothing else: their lanes stand still.
    """
    settings = load_settings({"EVERBUS_JWT_SECRET": SECRET})
    granting = TokenExchange(url, identity_of(settings), grants_of(settings))
    async with (
        in_background(granting.run(), asyncio.Event()),
        redis.asyncio.from_url(url) as client,
    ):

        async def listening() -> bool:
            return await client.pubsub_numpat() > 0

        await until(listening, "somebody answers to tokens")
        yield


@asynccontextmanager
async def a_replica(url: str, name: str, **settings: str) -> AsyncIterator[None]:
    """
    A manager in this process, from its start to its orderly end.
    """
    given = {
        "EVERBUS_REDIS_URL": url,
        "EVERBUS_REPLICA": name,
        "EVERBUS_JWT_SECRET": SECRET,
        "EVERBUS_PARTITIONS": str(PARTITIONS),
        "EVERBUS_LANE_TTL_MS": "2000",
        # Most of these servers keep no AOF: nothing here survives its test.
        "EVERBUS_REDIS_UNSAFE": "true",
    }
    stop = asyncio.Event()
    running = asyncio.create_task(run_manager(load_settings(given | settings), stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, WITHIN_S)


class Bus:
    """
    What lies on a server, read and written by hand, past the SDK.
    """

    def __init__(self, server: RealServer) -> None:
        self.server = server
        self.url = server.url
        self.client = redis.asyncio.from_url(server.url)

    def partition(self, session_id: str) -> int:
        return keys.partition_of(session_id, PARTITIONS)

    def a_session_id(self, partition: int) -> str:
        """
        A fresh session id of *partition*.
        """
        while True:
            chosen = str(uuid_utils.uuid4())
            if self.partition(chosen) == partition:
                return chosen

    async def register(self, mad: str) -> None:
        await self.client.hset(keys.MADS, mad, "{}")
        await self.client.publish(keys.NEWS, "mads")

    async def publish(
        self, mad: str, partition: int, *commands: Envelope | bytes, field: str = "c"
    ) -> str:
        """
        Put *commands* on the ingress of *mad* as one entry; returns its id.
        """
        parts: list[bytes | str] = []
        for one in commands:
            packed = pack_envelope(one) if isinstance(one, Envelope) else one
            parts += (field, packed)
        stream = keys.ingress(partition, mad)
        entry: bytes = await self.client.execute_command("XADD", stream, "*", *parts)

        return entry.decode()

    async def replies(self, mad: str, partition: int, command: str) -> list[Reply]:
        """
        What lies on the reply stream of one request now.
        """
        entries = await self.client.xrange(keys.reply(partition, mad, command))
        return [unpack_reply(fields[b"r"]) for _, fields in entries]

    async def reply(self, mad: str, partition: int, command: str) -> Reply:
        """
        The reply to one request, waited for on its own stream.
        """
        stream = keys.reply(partition, mad, command)
        wait_ms = int(WITHIN_S * 1000)
        [(_, entries)] = await self.client.xread({stream: "0"}, 1, wait_ms)
        return unpack_reply(entries[0][1][b"r"])

    async def ask(self, mad: str, kind: str, session: str, **fields: object) -> Reply:
        """
        The reply to one command that is published by hand.
        """
        known = {"id": f"free-{uuid_utils.uuid4()}", "reply": True}
        envelope = an_envelope(kind, session=session, **known | fields)
        partition = self.partition(session)
        await self.publish(mad, partition, envelope)

        return await self.reply(mad, partition, envelope.id)

    async def letters(self, mad: str) -> list[DeadLetter]:
        """
        The dead letters of *mad*, in all partitions.
        """
        found = []
        for partition in range(PARTITIONS):
            entries = await self.client.xrange(key_names.dead(partition))
            found += [letter_of(fields) for _, fields in entries]
        return [letter for letter in found if letter.mad == mad]

    async def settled(self, mad: str) -> bool:
        """
        Whether everything on the ingress of *mad* was read and acknowledged.
        """
        for partition in range(PARTITIONS):
            stream = keys.ingress(partition, mad)
            if not await self.client.exists(stream):
                continue
            last = (await self.client.xinfo_stream(stream))["last-generated-id"]
            [group] = await self.client.xinfo_groups(stream) or [None]
            if group is None or group["pending"]:
                return False
            if last not in (group["last-delivered-id"], b"0-0"):
                return False
        return True

    async def until_settled(self, *mads: str, within_s: float = WITHIN_S) -> None:
        """
        Return when nothing of *mads* waits or is pending any more.
        """
        for mad in mads:

            async def claim(mad: str = mad) -> bool:
                return await self.settled(mad)

            await until(claim, f"all of {mad} settled", within_s)

    async def until_served(self) -> None:
        """
        Return when every lane has an owner.
        """
        owners = [key_names.owner(partition) for partition in range(PARTITIONS)]

        async def claim() -> bool:
            return await self.client.exists(*owners) == PARTITIONS

        await until(claim, "every lane owned")

    async def state(self, session_id: str) -> tuple[int, int]:
        """
        Version and last seq as they lie in the session's hash; (0, 0) if nowhere.
        """
        hot = key_names.session(self.partition(session_id), session_id)
        version, last_seq = await self.client.hmget(hot, "version", "last_seq")
        return int(version or 0), int(last_seq or 0)

    async def records(self, session_id: str) -> list[Record]:
        """
        What the commits told the archiver of one session, in their order.
        """
        outbox = key_names.outbox(self.partition(session_id))
        entries = await self.client.xrange(outbox)
        records = [r for _, fields in entries for r in unpack_records(fields[b"b"])]
        return [record for record in records if record.session == session_id]

    async def entries(self, session_id: str) -> list[TimelineEntry]:
        """
        The whole timeline of one session, in the order of its commits.
        """
        return [
            msgspec.msgpack.decode(entry, type=TimelineEntry)
            for record in await self.records(session_id)
            for entry in record.entries
        ]

    async def versions(self, session_id: str) -> list[int]:
        """
        The version after each change of state, in the order of the commits.
        """
        return [
            event.version
            for record in await self.records(session_id)
            for event in record.events
            if event.kind != "timeline.appended"
        ]


def in_order(entries: Iterable[TimelineEntry], author: str) -> list[object]:
    """
    What *author* said, in the order of the timeline.
    """
    return [entry.entry for entry in entries if entry.author == author]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bus_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RealServer]:
    """
    An empty server; Valkey, if the test does not ask for another.
    """
    make = debian_redis if getattr(request, "param", "valkey") == "redis" else valkey
    async with make(tmp_path_factory.mktemp("bus"), aof=False) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bus(bus_server: RealServer) -> AsyncIterator[Bus]:
    """
    The server's keys by hand.
    """
    made = Bus(bus_server)
    async with made.client:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def unserved(tmp_path: Path) -> AsyncIterator[Bus]:
    """
    A server of the test's own, on which no manager was ever started.
    """
    async with valkey(tmp_path, aof=False) as server:
        made = Bus(server)
        async with made.client:
            yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(bus: Bus) -> AsyncIterator[None]:
    """
    A replica that serves every lane.
    """
    async with a_replica(bus.url, "one"):
        await bus.until_served()
        yield


@pytest.fixture(scope="session")
def token_for() -> Callable[..., str]:
    """
    Makes a token of a principal: its name, its role, its life in seconds.
    """
    return a_token


MadFactory = Callable[..., AbstractAsyncContextManager[Mad]]


@pytest.fixture
def mad(bus: Bus) -> MadFactory:
    """
    Connects a MAD under its own token; other arguments are those of `connect`.
    """

    def connected(name: str, **options: str) -> AbstractAsyncContextManager[Mad]:
        given = {"url": bus.url, "token": a_token(name)}
        return connect(mad=name, **given | options)  # type: ignore[arg-type]

    return connected


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealServer]:
    """
    Valkey with its AOF, for tests whose managers come and go.
    """
    async with valkey(tmp_path_factory.mktemp("valkey")) as real:
        yield real


@pytest_asyncio.fixture
async def client(server: RealServer) -> AsyncIterator[redis.asyncio.Redis]:
    """
    A connection to that server, which is emptied before each test.
    """
    async with a_client(server.url) as client:
        await client.flushall()
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """
    Valkey, SecantusDB and nanio.
    """
    async with a_stack(tmp_path_factory.mktemp("stack")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(servers: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """
    Those servers, emptied; sessions of some dozen entries have several chunks.
    """
    monkeypatch.setattr(format, "CHUNK_ENTRIES", CHUNK_ENTRIES)
    await servers.empty()
    return servers
