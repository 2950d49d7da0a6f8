"""
`everbus edge` as a process that is ended, killed and started again.
"""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from everbus.bus import Mad
from everbus.bus.keys import partition_of
from everbus.compose.cli import app
from everbus.compose.edge_role import run_edge
from everbus.compose.exit_codes import CONFLICT, USAGE, Failed
from everbus.compose.settings import load_settings
from everbus.compose.stack_folder import free_port
from tests.integration.edge.followers import Follower, a_source, numbers
from tests.replicas import (
    Part,
    a_client,
    a_mad,
    a_token,
    manager,
    owners,
    replica_in,
    settings_of,
    start,
    until,
)
from tests.servers import secantus, valkey

PARTITIONS = 2
EVENTS_BETWEEN = 60
# Whatever else this machine does meanwhile.
START_S = 60.0


class Edge:
    """
    An edge process, and its successors on the same port.
    """

    def __init__(self, folder: Path, bus_url: str, **settings: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.part: Part | None = None
        self.parts: list[Part] = []
        self._folder = folder
        self._env = settings_of(bus_url, edge_port=self.port, **settings)

    async def start(self) -> Part:
        self.part = await start(self._folder, "edge", "edge", self._env)
        self.parts.append(self.part)
        await self.part.logged("edge.ready", START_S)
        return self.part

    async def end(self, number: int = signal.SIGTERM) -> int:
        return await self.part.end(number)


@asynccontextmanager
async def an_edge(folder: Path, bus_url: str, **settings: Any) -> AsyncIterator[Edge]:
    """
    An edge that serves; killed at the end, if it still lives.
    """
    edge = Edge(folder, bus_url, **settings)
    try:
        await edge.start()
        yield edge
    finally:
        await edge.end(signal.SIGKILL)


@asynccontextmanager
async def writing(mad: Mad, session: str) -> AsyncIterator[None]:
    """
    Somebody who speaks, changes and broadcasts all the time.
    """

    async def write() -> None:
        n = 0
        while True:
            n += 1
            mad.append(session, {"n": n})
            if n % 5 == 0:
                await mad.update_session(session, {"context_summary": {"n": n}})
            if n % 7 == 0:
                await mad.broadcast(session, {"n": n})
            await asyncio.sleep(0.005)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        yield stranger.getsockname()[1]


@pytest.mark.timeout(180)
async def test_no_event_is_lost_or_doubled_by_restarts(tmp_path):
    """
    A follower goes on by the last id alone, through an edge that ends in order, one
    that is killed, and a takeover between managers, while somebody writes.
    """
    async with (
        valkey(tmp_path) as bus,
        secantus(tmp_path) as mongo,
        manager(tmp_path, bus.url, "m1", mongo_url=mongo.url) as m1,
        manager(tmp_path, bus.url, "m2", mongo_url=mongo.url) as m2,
        an_edge(tmp_path, bus.url, log_level="debug") as edge,
        a_client(bus.url) as client,
        a_mad(bus.url) as mad,
    ):
        for part in (m1, m2):
            await part.logged("manager.ready", START_S)
        session = (await mad.create_session(user_id="ada")).id
        follower = Follower(edge.url, session, a_token("ada"))
        following = asyncio.create_task(follower.run())

        async def more() -> None:
            await follower.until(len(follower.events) + EVENTS_BETWEEN)

        try:
            async with writing(mad, session):
                await more()
                assert await edge.end(signal.SIGTERM) == 0
                await edge.start()
                await more()
                await edge.end(signal.SIGKILL)
                await edge.start()
                await more()
                lane = partition_of(session, PARTITIONS)
                owner = replica_in((await owners(client, PARTITIONS))[lane])
                await {"m1": m1, "m2": m2}[owner].end(signal.SIGKILL)
                await more()
            await mad.flush()
            now = await mad.get_session(session)
            total = now.version + now.last_seq + now.notices
            await follower.until(total)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        # And all of it once more, by the other way.
        async with a_source(edge.url, session, a_token("ada"), "0") as source:
            await source.next()
            again = await source.take(total)

    assert numbers(follower.events) == list(range(1, total + 1))
    assert follower.events == again
    assert follower.closes[0] == 1012
    written = "".join(part.output() for part in edge.parts)
    assert '"stream.ended"' in written
    assert '"request.answered"' in written
    # No token is in any log, nor what was asked for.
    assert "eyJ" not in written
    assert "after=" not in written


async def test_an_edge_is_there_before_its_bus_and_stays_when_that_goes(tmp_path):
    """
    It says so, refuses in the meantime, and serves as soon as the bus is there.
    """
    async with valkey(tmp_path) as bus:
        await bus.stop()
        async with an_edge(tmp_path, bus.url) as edge, httpx.AsyncClient() as client:
            headers = {"Authorization": f"Bearer {a_token('ada')}"}

            async def get(path: str) -> httpx.Response:
                return await client.get(edge.url + path, headers=headers)

            async def status(path: str) -> int:
                return (await get(path)).status_code

            assert await status("/livez") == 200
            assert await status("/readyz") == 503
            away = await get("/sessions/s-1")
            assert (away.status_code, away.json()["code"]) == (503, "unavailable")
            await bus.restart()
            async with manager(tmp_path, bus.url, "m1"):
                await edge.part.logged("bus.connected")

                async def found() -> bool:
                    return await status("/sessions/s-1") == 404

                await until(found, what="served")
            await bus.kill()

            async def not_ready() -> bool:
                return await status("/readyz") == 503

            await until(not_ready, what="not ready")
            assert await edge.end() == 0
            assert edge.part.records("role.broken") == []


async def test_probes_answer_while_half_sent_heads_fill_the_edge(tmp_path):
    """
    And the edge answers again at the deadline of the heads.
    """
    health = free_port()
    bounds = {"edge_connections": 20, "edge_head_timeout_s": 3}
    async with (
        valkey(tmp_path) as bus,
        an_edge(tmp_path, bus.url, health_port=health, **bounds) as edge,
        httpx.AsyncClient() as client,
    ):
        opened = [
            await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(20)
        ]
        for _, writer in opened:
            writer.write(b"GET /sessions HTTP/1.1\r\nHost: e")
        refused = await client.get(edge.url + "/livez")
        probed = [
            (await client.get(f"http://127.0.0.1:{health}{path}")).status_code
            for path in ("/livez", "/startupz", "/metrics")
        ]

        async def served() -> bool:
            return (await client.get(edge.url + "/livez")).status_code == 200

        await until(served, START_S, "an edge with room")
        metrics = await client.get(edge.url + "/metrics")
        for _, writer in opened:
            writer.close()

    assert (refused.status_code, metrics.status_code) == (503, 404)
    assert probed == [200, 200, 200]


async def test_a_second_signal_ends_it_at_once(tmp_path):
    async with (
        valkey(tmp_path) as bus,
        an_edge(tmp_path, bus.url, edge_drain_s=60) as edge,
    ):
        # A request that never ends would be waited for.
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(
            b"POST /sessions HTTP/1.1\r\nHost: edge\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer %b\r\n\r\n"
            % a_token("ada").encode()
        )
        await writer.drain()
        edge.part.send(signal.SIGTERM)
        await edge.part.logged("edge.draining")

        code = await edge.end(signal.SIGTERM)
        writer.close()

    assert code == -signal.SIGTERM


async def ended(**settings: Any) -> Failed:
    """
    Why an edge with these settings does not even begin.
    """
    chosen = load_settings(settings_of("redis://127.0.0.1:1", **settings))
    with pytest.raises(Failed) as failed:
        await run_edge(chosen, asyncio.Event())
    return failed.value


async def test_a_port_in_use_names_the_setting():
    with taken_port() as port:
        failed = await ended(edge_port=port)

    assert failed.exit_code == CONFLICT
    assert f"EVERBUS_EDGE_PORT={port}" in str(failed)
    assert "in use" in str(failed)


async def test_an_address_of_another_machine_names_the_setting():
    failed = await ended(edge_host="192.0.2.1", edge_port=0, plaintext="edge")

    assert failed.exit_code == CONFLICT
    assert "EVERBUS_EDGE_HOST=192.0.2.1" in str(failed)


async def test_without_a_key_it_does_not_begin():
    failed = await ended(jwt_secret="", edge_port=0)

    assert failed.exit_code == USAGE
    assert "EVERBUS_JWT_SECRET" in str(failed)


def test_help_has_an_example():
    ran = CliRunner().invoke(app, ["edge", "--help"])

    assert ran.exit_code == 0
    assert "Example" in ran.output
