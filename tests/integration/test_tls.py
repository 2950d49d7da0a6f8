"""
The bus by rediss and an edge by HTTPS, with an authority of the test's own.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from everbus.bus import EverbusError, connect
from everbus.compose.processes import start
from everbus.compose.servers import valkey_server
from everbus.compose.settings import load_settings
from everbus.compose.settings_checks import check_settings
from everbus.compose.stack_folder import free_port
from tests.certificates import Authority, Certificate
from tests.replicas import Part, a_token, manager, settings_of, until
from tests.replicas import start as start_role
from tests.servers import DEBIAN_REDIS

START_S = 60.0
pytestmark = pytest.mark.skipif(not DEBIAN_REDIS, reason="no redis-server with TLS")


class SecureBus(NamedTuple):
    url: str
    authority: Authority
    certificate: Certificate


@asynccontextmanager
async def a_secure_bus(folder: Path) -> AsyncIterator[SecureBus]:
    """
    Debian's Redis with a TLS port; its plain one only tells when it serves.
    """
    authority = Authority(folder / "tls")
    mine = authority.issued("server")
    server = valkey_server(folder, free_port(), program=DEBIAN_REDIS)
    port = free_port((server.port,))
    _add(
        Path(server.argv[1]),
        f"tls-port {port}\ntls-cert-file {mine.cert}\ntls-key-file {mine.key}\n"
        f"tls-ca-cert-file {authority.ca}\ntls-auth-clients optional\n",
    )
    running = await start(server)
    try:
        yield SecureBus(f"rediss://127.0.0.1:{port}/0", authority, mine)
    finally:
        await running.stop()


def _add(config: Path, lines: str) -> None:
    config.write_text(config.read_text() + lines)


@asynccontextmanager
async def an_edge(folder: Path, env: dict[str, str]) -> AsyncIterator[Part]:
    edge = await start_role(folder, "edge", "edge", env)
    try:
        await edge.logged("edge.ready", START_S)
        yield edge
    finally:
        await edge.end()


@pytest.mark.timeout(120)
async def test_all_roles_and_a_mad_work_by_tls(tmp_path, monkeypatch):
    """
    Manager, MAD and edge on rediss with our own authority; the edge serves HTTPS to
    clients with a certificate, and nobody else.
    """
    async with a_secure_bus(tmp_path) as bus:
        ca, mine = str(bus.authority.ca), bus.certificate
        port = free_port()
        served = {
            "edge_port": port,
            "edge_cert": mine.cert,
            "edge_key": mine.key,
            "edge_client_ca": ca,
        }
        env = settings_of(bus.url, redis_ca=ca, **served)
        monkeypatch.setenv("EVERBUS_REDIS_CA", ca)
        known = bus.authority.issued("client")
        context = ssl.create_default_context(cafile=ca)
        stranger = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(known.cert, known.key)
        headers = {"Authorization": f"Bearer {a_token('ada')}"}
        url = f"https://127.0.0.1:{port}"
        async with manager(tmp_path, bus.url, "m1", redis_ca=ca) as serving:
            await serving.logged("manager.ready", START_S)
            async with (
                an_edge(tmp_path, env) as edge,
                connect(bus.url, mad="fiedler", token=a_token("fiedler", "mad")) as mad,
                httpx.AsyncClient(verify=context, headers=headers) as client,
                httpx.AsyncClient(verify=stranger, headers=headers) as nobody,
                httpx.AsyncClient() as plain,
            ):
                session = await mad.create_session("ada")
                found = await client.get(f"{url}/sessions/{session.id}")
                for one, place in ((nobody, url), (plain, f"http://127.0.0.1:{port}")):
                    with pytest.raises(httpx.TransportError):
                        await one.get(f"{place}/livez")
                ready = edge.records("edge.ready")

    assert (found.status_code, found.json()["id"]) == (200, session.id)
    assert ready[0]["url"] == url


async def test_a_half_handshake_ends_at_the_deadline_of_a_head(tmp_path):
    """
    And its place is free again: a handshake counts as a connection.
    """
    mine = Authority(tmp_path / "tls").issued("server")
    port = free_port()
    env = settings_of(
        "redis://127.0.0.1:1",
        edge_port=port,
        edge_cert=mine.cert,
        edge_key=mine.key,
        edge_connections=1,
        edge_head_timeout_s=1,
    )
    context = ssl.create_default_context(cafile=str(tmp_path / "tls/authority.pem"))
    async with (
        an_edge(tmp_path, env),
        httpx.AsyncClient(verify=context) as client,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")
        with pytest.raises(httpx.TransportError):
            await client.get(f"https://127.0.0.1:{port}/livez")
        async with asyncio.timeout(START_S):
            await reader.read()
        writer.close()

        async def served() -> bool:
            with suppress(httpx.TransportError):
                answer = await client.get(f"https://127.0.0.1:{port}/livez")
                return answer.status_code == 200
            return False

        await until(served, START_S, "a free place")


async def test_a_bus_of_an_unknown_authority_is_refused(tmp_path, monkeypatch):
    async with a_secure_bus(tmp_path) as bus:
        other = Authority(tmp_path / "other")
        monkeypatch.setenv("EVERBUS_REDIS_CA", str(other.ca))
        with pytest.raises(EverbusError):
            async with connect(bus.url, mad="fiedler", timeout=2):
                pass


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("rediss://127.0.0.1:1?ssl_cert_reqs=none", "fail"),
        ("redis://bus.example:6379", "warn"),
        ("rediss://bus.example:6379", "pass"),
    ],
)
async def test_doctor_tells_what_is_not_verified(url, verdict):
    found = await check_settings(load_settings({"EVERBUS_REDIS_URL": url}))
    [tls] = [one for one in found if one.name == "tls"]

    assert tls.verdict == verdict
    assert bool(tls.remedy) == (verdict != "pass")
