"""
Tokens revoked before their `exp`, on real servers: a manager, an edge process's parts,
the command, and a list that cannot be read.
"""

import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
import redis.asyncio
from structlog.testing import capture_logs

from everbus.bus import Unauthenticated, connect
from everbus.gateway.identity import token_revocation_reader, token_revocations
from everbus.gateway.identity.token_revocation_reader import (
    TokenRevocationReader,
    read_list,
)
from everbus.gateway.identity.token_revocations import LIST, UNREAD_S, TokenRevocations
from everbus.gateway.telemetry.metrics import REVOKED, REVOKED_UNREAD
from tests.commandline import CommandLine, own_logs  # noqa: F401 - a fixture
from tests.integration.edge.conftest import House, a_token, fresh
from tests.integration.edge.followers import a_socket, a_source, closed, received
from tests.proxy import Proxy
from tests.replicas import a_mad, until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("own_logs"),
]


def port_of(house: House) -> int:
    port = urlsplit(house.url).port
    assert port

    return port


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge_url(house: House) -> AsyncIterator[str]:
    async with house.served() as url:
        yield url


async def a_session_of(house: House, owner: str) -> str:
    async with a_mad(house.url) as mad:
        return (await mad.create_session(owner)).id


async def status(url: str, session: str, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers) as client:
        return (await client.get(f"{url}/sessions/{session}")).status_code


@pytest.mark.parametrize("by", ["token", "subject"])
async def test_a_revoked_token_ends_everywhere_and_no_other(house, edge_url, by):
    name = fresh("ada")
    session = await a_session_of(house, name)
    token = a_token(name)
    everbus = CommandLine(house.url)
    arguments = ("-",) if by == "token" else ("--subject", name)
    async with (
        connect(house.url, mad=fresh("mad"), token=token) as mad,
        a_socket(edge_url, session, token) as socket,
        a_source(edge_url, session, token) as source,
    ):
        await mad.get_session(session)
        await received(socket)
        await source.next()

        ended = await everbus("token", "revoke", *arguments, typed=token)

        # Without a request of theirs, and without a change of the session.
        assert (await closed(socket))[0] == 4001
        last = await source.next()
        assert (last.kind, last.data["code"]) == ("end", "unauthenticated")

        async def refused() -> bool:
            try:
                await mad.get_session(session, timeout=2)
            except Unauthenticated:
                return True
            return False

        await until(refused, 5, "a manager that has heard of it")
    listed = (await everbus("token", "revoked", "-o", "json")).json

    assert ended.code == 0
    assert await status(edge_url, session, token) == 401
    assert await status(edge_url, session, a_token(fresh("bob"))) == 403
    # Issued later, by a clock that is ahead no further than the leeway.
    later = a_token(name, now=time.time() + 3)
    assert await status(edge_url, session, later) == 200
    assert [one["kind"] for one in listed][-1] == by


async def test_a_list_that_cannot_be_read_is_noticed_and_read_again(house, monkeypatch):
    """
    Deterministic: each look is the test's own, and so is the clock.
    """
    monkeypatch.setattr(token_revocation_reader, "TIMEOUT_S", 0.3)
    passed_s = 100.0
    closes = TokenRevocations(unread="closed", monotonic=lambda: passed_s)
    async with Proxy("127.0.0.1", port_of(house)) as proxy:
        reader = TokenRevocationReader(proxy.url(), closes)
        try:
            assert await reader.read()
            with capture_logs() as logs:
                proxy.drop_requests()
                proxy.cut()
                assert not await reader.read()
                assert not await reader.read()
                passed_s += UNREAD_S + 1
                assert not await reader.read()
                unread_s = REVOKED_UNREAD._value.get()
                proxy.heal()
                assert await reader.read()
        finally:
            await reader.close()

    # The house's manager and its health log here, too.
    told = ("revocations.unread", "revocations.read_again")
    assert [one["event"] for one in logs if one["event"] in told] == [*told]
    assert unread_s >= UNREAD_S
    assert (REVOKED_UNREAD._value.get(), closes.unread_s) == (0, 0)


async def test_a_closed_edge_ends_its_streams_without_the_list(house, monkeypatch):
    for module in (token_revocations, token_revocation_reader):
        monkeypatch.setattr(module, "UNREAD_S", 2.5)
    async with (
        Proxy("127.0.0.1", port_of(house)) as proxy,
        house.served(revoked_unread="closed", redis_url=proxy.url()) as url,
    ):
        name = fresh("ada")
        session, token = await a_session_of(house, name), a_token(name)
        async with a_source(url, session, token) as source:
            await source.next()
            proxy.drop_requests()
            proxy.cut()

            last = await source.next()

        refused = await status(url, session, token)
        proxy.heal()
        proxy.cut()

        async def serves_again() -> bool:
            return await status(url, session, token) == 200

        await until(serves_again, 15)

    assert (last.kind, last.data["code"]) == ("cut", "unavailable")
    assert refused == 503


async def test_a_manager_writes_again_what_the_bus_has_lost(house):
    name = fresh("ada")
    everbus = CommandLine(house.url)
    await everbus("token", "revoke", "--subject", name, "--tenant", "acme")
    known = TokenRevocations()
    reader = TokenRevocationReader(house.url, known, restores=True)
    async with redis.asyncio.from_url(house.url) as client:
        await reader.read()
        await client.delete(LIST)

        await reader.read()
        there = await read_list(reader._wire)
        version = await client.hget(LIST, ":version")
    await reader.close()

    assert version
    assert {one.name for one in there.values()} >= {name}
    assert REVOKED._value.get() == len(known)


async def test_the_list_is_bounded_and_what_has_ended_makes_room(house, monkeypatch):
    monkeypatch.setenv("EVERBUS_REVOKED_MAX_ITEMS", "3")
    everbus = CommandLine(house.url)
    async with redis.asyncio.from_url(house.url) as client:
        await client.delete(LIST)
        told = [await everbus("token", "revoke", "--jti", f"t-{n}") for n in range(4)]
        again = await everbus("token", "revoke", "--jti", "t-1")

    assert [one.code for one in told] == [0, 0, 0, 5]
    assert "EVERBUS_REVOKED_MAX_ITEMS" in told[-1].talk
    assert again.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--jti", "a", "--subject", "b"),
        ("no-token",),
        ("--subject", "a b"),
        ("--jti", "a", "--keep", "long"),
    ],
)
async def test_what_cannot_be_revoked_is_a_mistake_of_usage(house, arguments):
    ended = await CommandLine(house.url)("token", "revoke", *arguments)

    assert ended.code in {2, 5}
    assert ended.talk
