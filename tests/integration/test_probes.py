"""
Probes of manager and archiver as processes, while things go wrong around them.
"""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio

from everbus.compose.exit_codes import CONFLICT
from everbus.compose.probes import serve_health
from everbus.compose.settings import Settings
from everbus.compose.stack_folder import free_port
from tests import replicas
from tests.replicas import Part, until
from tests.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON_S = 0.5


@pytest_asyncio.fixture(loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as made:
        yield made


class Probed:
    """
    A process of ours, and what its port says.
    """

    def __init__(self, part: Part, port: int, client: httpx.AsyncClient) -> None:
        self.part = part
        self.url = f"http://127.0.0.1:{port}"
        self._client = client

    async def code(self, path: str) -> int:
        try:
            return (await self._client.get(self.url + path)).status_code
        except httpx.TransportError:
            return 0

    async def health(self) -> dict[str, Any]:
        told: dict[str, Any] = (await self._client.get(f"{self.url}/health")).json()
        return told

    async def until(self, path: str, code: int) -> None:
        async def told() -> bool:
            return await self.code(path) == code

        await until(told, 30, f"{path} is {code}")

    async def until_without_bus(self) -> None:
        async def told() -> bool:
            [bus] = (await self.health())["checks"]["bus"]
            return bool(bus["status"] == "fail")

        await until(told, 30, "the check of the bus fails")


async def test_probes_of_a_manager_and_an_archiver_tell_how_they_are(
    stack: Stack, client: httpx.AsyncClient
):
    """
    Without the bus they live and are not ready; they come back by themselves. One that
    stands still does not say that it lives.
    """
    ports = free_port(), free_port()
    async with (
        stack.manager(health_port=ports[0]) as manager,
        stack.archiver(health_port=ports[1]) as archiver,
    ):
        both = [
            Probed(part, port, client)
            for part, port in zip((manager, archiver), ports, strict=True)
        ]
        for one in both:
            await one.until("/readyz", 200)
            assert await one.code("/startupz") == await one.code("/health") == 200
        served, drained = [await one.health() for one in both]
        metrics = await client.get(f"http://127.0.0.1:{ports[0]}/metrics")
        stack.bus.pause()
        try:
            for one in both:
                await one.until("/readyz", 503)
                assert await one.code("/livez") == 200
                assert await one.code("/startupz") == 200
                # Its lanes or its lease may miss the bus before the pings do.
                await one.until_without_bus()
        finally:
            stack.bus.resume()
        for one in both:
            await one.until("/readyz", 200)
            one.part.send(signal.SIGSTOP)
            with pytest.raises(httpx.TimeoutException):
                await client.get(one.url + "/livez", timeout=SOON_S)
            one.part.send(signal.SIGCONT)
            await one.until("/livez", 200)

    assert (served["role"], drained["role"]) == ("manager", "archiver")
    assert {"bus", "rights", "warm", "cold", "lanes", "deployment"} == served[
        "checks"
    ].keys()
    assert {"bus", "rights", "warm", "cold", "lease", "drain"} == drained[
        "checks"
    ].keys()
    assert "everbus_lane_owned" in metrics.text


async def test_a_port_that_is_taken_ends_the_start_and_names_the_setting(stack: Stack):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = stack.environment(health_port=port)
        part = await replicas.start(stack.folder, "manager", "no", env)
        code = await part.ended()

    assert code == CONFLICT
    assert f"EVERBUS_HEALTH_PORT={port}" in part.output()
    assert "Traceback" not in part.output()


@contextmanager
def a_probed_loop(port: int) -> Iterator[asyncio.AbstractEventLoop]:
    """
    The probes in an event loop of another thread.
    """
    running: list[asyncio.AbstractEventLoop] = []
    stop, begun = asyncio.Event(), threading.Event()
    settings = Settings(redis_url="redis://127.0.0.1:1", health_port=port)

    async def serve() -> None:
        async with serve_health("manager", settings, stop):
            running.append(asyncio.get_running_loop())
            begun.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert begun.wait(10)
    try:
        yield running[0]
    finally:
        running[0].call_soon_threadsafe(stop.set)
        thread.join(10)


async def test_a_blocked_event_loop_fails_its_liveness(client: httpx.AsyncClient):
    """
    The port is served by the loop that does the work, and by no thread beside it.
    """
    port = free_port()
    with a_probed_loop(port) as loop:
        url = f"http://127.0.0.1:{port}/livez"
        before = await client.get(url)
        loop.call_soon_threadsafe(time.sleep, 4 * SOON_S)
        await asyncio.sleep(SOON_S)
        with pytest.raises(httpx.TimeoutException):
            await client.get(url, timeout=SOON_S)
        after = await client.get(url)

    assert (before.status_code, after.status_code) == (200, 200)
