"""
The bounds on an HTTP server's connections, on real sockets and a trivial application.
"""

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

from everbus.gateway.health.connections import (
    HEAD,
    PER_ADDRESS,
    TOTAL,
    ConnectionLimits,
    Connections,
)
from everbus.gateway.health.embedded_server import EmbeddedServer
from everbus.gateway.telemetry import metrics
from tests.certificates import Authority
from tests.replicas import until

WITHIN_S = 20.0
AMPLE = ConnectionLimits(total=100, per_address=100, head_timeout_s=WITHIN_S)
HASTY_S = 0.2
GET = b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: ed"


class Served(NamedTuple):
    port: int
    connections: Connections


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def live(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(RuntimeError):
        async for text in websocket.iter_text():
            await websocket.send_text(text)


@asynccontextmanager
async def a_server(limits: ConnectionLimits) -> AsyncIterator[Served]:
    app = Starlette(
        routes=[Route("/", hello, methods=["GET"]), WebSocketRoute("/live", live)]
    )
    connections = Connections(limits)
    options = {"lifespan": "off", "log_config": None, "timeout_keep_alive": 60}
    config = uvicorn.Config(app, **options, **connections.protocols())
    server = EmbeddedServer(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started, what="a server")
    try:
        yield Served(listener.getsockname()[1], connections)
    finally:
        server.should_exit = True
        await serving


class Client:
    """
    One connection that sends bytes and no more than those.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._port
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def rest(self) -> bytes:
        """
        All up to the end of the connection.
        """
        async with asyncio.timeout(WITHIN_S):
            return await self.reader.read()

    async def ask(self, sent: bytes = GET) -> bytes:
        """
        The head of the answer to *sent*.
        """
        self.writer.write(sent)
        async with asyncio.timeout(WITHIN_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            await self.reader.readexactly(len(b"hello"))
        return head


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def met(bound: str) -> float:
    return metrics.BOUND_REACHED.labels(bound)._value.get()


async def test_half_a_head_is_answered_and_closed_at_its_deadline():
    before = met(HEAD)
    async with (
        a_server(AMPLE._replace(head_timeout_s=HASTY_S)) as server,
        Client(server.port) as client,
    ):
        client.writer.write(HALF)
        answer = await client.rest()
        head, _, body = answer.partition(b"\r\n\r\n")
        await until(lambda: not server.connections, what="an empty server")

    assert status_of(head) == 408
    assert json.loads(body)["code"] == "expired"
    assert met(HEAD) == before + 1


async def test_a_connection_that_says_nothing_has_the_same_deadline():
    async with (
        a_server(AMPLE._replace(head_timeout_s=HASTY_S)) as server,
        Client(server.port) as client,
    ):
        assert status_of(await client.rest()) == 408


async def test_a_trickle_of_bytes_does_not_extend_the_deadline():
    async with (
        a_server(AMPLE._replace(head_timeout_s=HASTY_S)) as server,
        Client(server.port) as client,
    ):

        async def trickle() -> None:
            client.writer.write(GET[:-4])
            while True:
                client.writer.write(b"\r\nA: b")
                await asyncio.sleep(HASTY_S / 10)

        trickling = asyncio.create_task(trickle())
        answer = await client.reader.readuntil(b"\r\n\r\n")
        trickling.cancel()

    assert status_of(answer) == 408


async def test_the_second_head_of_a_connection_has_a_deadline_too():
    async with (
        a_server(AMPLE._replace(head_timeout_s=HASTY_S)) as server,
        Client(server.port) as client,
    ):
        first = await client.ask()
        client.writer.write(HALF)
        second = await client.rest()

    assert (status_of(first), status_of(second)) == (200, 408)


async def test_a_body_that_trickles_behind_its_answer_ends():
    """
    uvicorn forgets its keep-alive deadline at the first byte of it.
    """
    head = GET[:-2] + b"Content-Length: 100000\r\n\r\n"
    async with (
        a_server(AMPLE._replace(head_timeout_s=HASTY_S)) as server,
        Client(server.port) as client,
    ):
        await client.ask(head)
        client.writer.write(b"x")

        assert status_of(await client.rest()) == 408


async def test_heads_in_time_have_no_deadline_afterwards():
    async with (
        a_server(AMPLE._replace(head_timeout_s=HASTY_S)) as server,
        Client(server.port) as client,
        connect(f"ws://127.0.0.1:{server.port}/live") as websocket,
    ):
        await client.ask()
        async with Client(server.port) as later:
            # Its deadline is after theirs.
            await later.rest()
        await websocket.send("still there")

        assert await websocket.recv() == "still there"
        assert status_of(await client.ask()) == 200


async def test_one_address_takes_no_more_than_its_share():
    before = met(PER_ADDRESS)
    limits = AMPLE._replace(total=3, per_address=2)
    async with a_server(limits) as server, AsyncExitStack() as opened:
        url = f"ws://127.0.0.1:{server.port}/live"
        websocket = await opened.enter_async_context(connect(url))
        client = await opened.enter_async_context(Client(server.port))
        await client.ask()
        async with Client(server.port) as third:
            refused = await third.rest()
        await websocket.close()
        await until(lambda: len(server.connections) == 1, what="a place")
        async with Client(server.port) as fourth:
            served = await fourth.ask()

    assert (status_of(refused), status_of(served)) == (429, 200)
    assert met(PER_ADDRESS) == before + 1


async def test_addresses_that_speak_for_many_have_only_the_servers_bound():
    before = met(TOTAL)
    limits = AMPLE._replace(total=2, per_address=1, counted=lambda _: "")
    async with (
        a_server(limits) as server,
        Client(server.port) as one,
        Client(server.port) as two,
    ):
        served = [status_of(await client.ask()) for client in (one, two)]
        async with Client(server.port) as three:
            refused = await three.rest()

    assert served == [200, 200]
    assert (status_of(refused), b"\r\nRetry-After: 1\r\n" in refused) == (503, True)
    assert met(TOTAL) == before + 1


def an_authority(folder: Path) -> tuple[Authority, ssl.SSLContext]:
    """
    An authority, and what a server needs that has its certificate.
    """
    authority = Authority(folder)
    mine = authority.issued("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(mine.cert, mine.key)

    return authority, context


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_that_speaks_before_its_handshake_begins_is_served(run, tmp_path):
    """
    Its first bytes come along with the connection: the server's loop was busy.
    """
    authority, context = an_authority(tmp_path)
    client = ssl.create_default_context(cafile=authority.ca)
    clients = 20

    async def serve_while_busy() -> list[httpx.Response]:
        async with a_server(AMPLE._replace(tls=context)) as served:
            url, responses = f"https://127.0.0.1:{served.port}/", []

            def ask() -> None:
                responses.append(httpx.get(url, verify=client, timeout=WITHIN_S))

            threads = [threading.Thread(target=ask) for _ in range(clients)]
            for one in threads:
                one.start()
            while any(one.is_alive() for one in threads):
                time.sleep(0.02)  # noqa: ASYNC251 - the busy loop
                await asyncio.sleep(0)
        return responses

    responses = run(serve_while_busy())

    assert [one.text for one in responses] == ["hello"] * clients


@pytest.mark.parametrize("said", [b"", HALF], ids=["nothing", "plain text"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_clients_that_go_before_their_handshake_are_counted_no_more(
    run, said, tmp_path
):
    """
    As the probes of a load balancer do, which only connect.
    """
    _, context = an_authority(tmp_path)

    async def connect_and_go() -> None:
        async with a_server(AMPLE._replace(tls=context)) as served:
            for _ in range(10):
                with socket.create_connection(("127.0.0.1", served.port)) as client:
                    client.sendall(said)
            async with Client(served.port):
                await until(lambda: len(served.connections) == 1, WITHIN_S, "the last")

    run(connect_and_go())
