"""
The edge in this process, on a real bus with a manager, an archiver and MongoDB.

All of it lives as long as a test module, in that module's event loop; tests keep
apart by their principals and by their sessions.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
import redis.asyncio
from fastapi import FastAPI

from everbus.bus import Mad, keys
from everbus.bus.connection import connected_as
from everbus.compose.edge_role import run_edge
from everbus.compose.keyring import grants_of, identity_of
from everbus.compose.role_processes import run_archiver, run_manager
from everbus.compose.settings import Settings, load_settings
from everbus.compose.stack_folder import free_port
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.context import EdgeContext, EdgeLimits
from everbus.gateway.edge.fallback import ReadFallback
from everbus.gateway.identity.principal import Claimed
from everbus.gateway.identity.tokens import mint
from everbus.gateway.store import key_names
from tests.replicas import SECRET, settings_of, until
from tests.servers import secantus, valkey

PARTITIONS = 2
WITHIN_S = 15.0
# Tests of something else than limits must not meet them.
AMPLE = EdgeLimits(
    rate=1e6, tenant_rate=1e6, concurrency=10_000, tenant_concurrency=10_000
)
Role = Callable[[Settings, asyncio.Event], Awaitable[None]]


class House(NamedTuple):
    """
    A bus, MongoDB, and who serves them; edges are opened on it.
    """

    settings: Settings

    @property
    def url(self) -> str:
        """
        The bus.
        """
        return self.settings.redis_url

    @asynccontextmanager
    async def parts(self, limits: EdgeLimits = AMPLE) -> AsyncIterator[EdgeContext]:
        """
        What an edge is built from, with an instance on the bus of its own.
        """
        async with connected_as(
            self.url, keys.EDGE, None, WITHIN_S, lease=False
        ) as base:
            yield self.parts_on(base, limits)

    def parts_on(self, base: Mad, limits: EdgeLimits = AMPLE) -> EdgeContext:
        return EdgeContext(
            bus=base,
            fallback=ReadFallback(),
            identity=identity_of(self.settings),
            grants=grants_of(self.settings),
            limits=limits,
            now=time.time,
        )

    @asynccontextmanager
    async def edge(self, limits: EdgeLimits = AMPLE) -> AsyncIterator["Edge"]:
        """
        An edge of its own, and its clients.
        """
        async with self.parts(limits) as parts:
            yield Edge(edge_app(parts), parts)

    @asynccontextmanager
    async def served(self, **chosen: Any) -> AsyncIterator[str]:
        """
        The URL of an edge as it is deployed, on a port of its own; *chosen*: settings.
        """
        given = {"edge_port": free_port(), "edge_drain_s": 1.0, **chosen}
        settings = self.settings.model_copy(update=given)
        url = f"http://127.0.0.1:{given['edge_port']}"
        async with running(run_edge, settings), httpx.AsyncClient() as client:

            async def ready() -> bool:
                try:
                    return (await client.get(f"{url}/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(ready, WITHIN_S, "the edge serves")
            yield url


class Edge(NamedTuple):
    """
    One edge process's application.
    """

    app: FastAPI
    parts: EdgeContext

    def client(
        self, name: str = "", role: Claimed = "user", tenant: str = "", **headers: str
    ) -> httpx.AsyncClient:
        """
        A client of *name*; without a name, of nobody.
        """
        if name:
            headers["Authorization"] = f"Bearer {a_token(name, role, tenant)}"
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://edge",
            headers=headers,
            timeout=WITHIN_S,
        )


def a_token(name: str, role: Claimed = "user", tenant: str = "", **fields: Any) -> str:
    """
    A token that edge and manager of these tests accept.
    """
    if tenant:
        fields["tenant"] = tenant
    given = {"ttl_s": 3600, "now": time.time()} | fields
    return mint(
        SECRET, name=name, role=role, issuer="everbus", audience="everbus", **given
    )


def fresh(name: str = "user") -> str:
    """
    A principal that no other test knows.
    """
    return f"{name}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def running(role: Role, settings: Settings) -> AsyncIterator[None]:
    """
    One role in this process, from its start to its orderly end.
    """
    stop = asyncio.Event()
    serving = asyncio.create_task(role(settings, stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(WITHIN_S):
            await serving


async def until_served(url: str) -> None:
    """
    Return when every lane has an owner.
    """
    owners = [key_names.owner(p) for p in range(PARTITIONS)]
    async with redis.asyncio.from_url(url) as client:

        async def owned() -> bool:
            return await client.exists(*owners) == PARTITIONS

        await until(owned, WITHIN_S, "every lane owned")


async def until_listed(client: httpx.AsyncClient, count: int, **filters: str) -> None:
    """
    Return when MongoDB lists *count* sessions that fit *filters*.
    """
    asked: dict[str, str | int] = {**filters, "limit": 1000}

    async def listed() -> bool:
        page = await client.get("/sessions", params=asked)
        return len(page.json()["sessions"]) == count

    await until(listed, WITHIN_S, f"{count} sessions of {filters}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """
    Valkey, SecantusDB, a manager and an archiver.
    """
    folder = tmp_path_factory.mktemp("edge")
    async with valkey(folder, aof=False) as bus, secantus(folder) as mongo:
        chosen = settings_of(
            bus.url,
            partitions=PARTITIONS,
            mongo_url=mongo.url,
            mongo_database=f"t{uuid.uuid4().hex[:8]}",
            redis_unsafe="true",
        )
        settings = load_settings(chosen)
        async with running(run_manager, settings):
            await until_served(bus.url)
            async with running(run_archiver, settings):
                yield House(settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(house: House) -> AsyncIterator[Edge]:
    """
    An edge whose limits nobody meets.
    """
    async with house.edge() as made:
        yield made
