"""
How much an edge lets one principal, one tenant and one address ask of it.
"""

import asyncio

import pytest

from gateway.edge.limits import BAD_TOKENS_BURST, Limiter
from gateway.edge.parts import Limits
from tests.integration.edge.conftest import AMPLE, House, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW = 0.001  # a second: nothing fills up while a test runs


async def test_who_asks_too_often_is_told_when_to_come_again(house: House):
    limits = AMPLE._replace(rate=SLOW)
    one, other = fresh(), fresh()
    async with (
        house.edge(limits) as edge,
        edge.client(one) as hasty,
        edge.client(other) as calm,
    ):
        first = await hasty.get("/sessions")
        second = await hasty.get("/sessions")
        third = await calm.get("/sessions")

    assert (first.status_code, third.status_code) == (200, 200)
    assert (second.status_code, second.json()["code"]) == (429, "overloaded")
    assert second.json()["limit"] == "rate_of_principal"
    assert int(second.headers["Retry-After"]) >= 1


async def test_tenants_have_a_rate_of_their_own(house: House):
    limits = AMPLE._replace(tenant_rate=SLOW)
    async with (
        house.edge(limits) as edge,
        edge.client(fresh(), tenant="one") as first,
        edge.client(fresh(), tenant="one") as second,
        edge.client(fresh(), tenant="two") as third,
    ):
        answers = [await one.get("/sessions") for one in (first, second, third)]

    assert [one.status_code for one in answers] == [200, 429, 200]
    assert answers[1].json()["limit"] == "rate_of_tenant"


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (AMPLE._replace(concurrency=2), "concurrency_of_principal"),
        (AMPLE._replace(tenant_concurrency=2), "concurrency_of_tenant"),
    ],
    ids=["principal", "tenant"],
)
async def test_only_so_many_are_worked_on_at_once(
    house: House, limits: Limits, limit: str
):
    """
    What is beyond the cap is refused at once; whoever leaves makes room, also by
    hanging up.
    """
    gate, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def waiting():
        entered.release()
        await gate.wait()
        yield b'{"user_id": "ada"}'

    headers = {"Content-Type": "application/json"}
    async with house.edge(limits) as edge, edge.client("ada") as client:
        held = [
            asyncio.create_task(
                client.post("/sessions", content=waiting(), headers=headers)
            )
            for _ in "12"
        ]
        for _ in held:
            await entered.acquire()
        refused = await client.get("/sessions")
        held[0].cancel()
        await asyncio.gather(held[0], return_exceptions=True)
        let_in = await client.get("/sessions")
        gate.set()
        made = await held[1]
        busy = edge.app.state.limiter.busy

    assert (refused.status_code, refused.json()["limit"]) == (429, limit)
    assert int(refused.headers["Retry-After"]) == 1
    assert (let_in.status_code, made.status_code, busy) == (200, 201, 0)


async def test_bad_tokens_of_one_address_are_looked_at_only_so_often(house: House):
    """
    Each costs a signature, so guessing them must not keep an edge busy.
    """
    looked_at = 0
    async with house.edge() as edge, edge.client(Authorization="Bearer a.b.c") as eve:
        # A clock that stands: buckets fill up while a slow machine asks.
        edge.app.state.limiter = Limiter(AMPLE, lambda: 0.0)
        admit = edge.parts.identity.admit

        async def counted(token: str):
            nonlocal looked_at
            looked_at += 1
            return await admit(token)

        edge.parts.identity.admit = counted  # type: ignore[method-assign]
        answers = [
            (await eve.get("/sessions")).status_code
            for _ in range(int(BAD_TOKENS_BURST) + 50)
        ]

    assert (answers.count(401), answers.count(429)) == (BAD_TOKENS_BURST, 50)
    assert looked_at == BAD_TOKENS_BURST


async def test_limits_come_before_the_body(house: House):
    read = False

    async def body():
        nonlocal read
        read = True
        yield b"{}"

    async with house.edge(AMPLE._replace(rate=SLOW)) as edge:
        async with edge.client(fresh()) as client:
            await client.get("/sessions")
            refused = await client.post("/sessions", content=body())
        async with edge.client() as nobody:
            unknown = await nobody.post("/sessions", content=body())

    assert (refused.status_code, unknown.status_code) == (429, 401)
    assert not read


async def test_the_deadline_of_a_request_is_its_commands(house: House):
    """
    So that no manager works on what nobody waits for any more.
    """
    async with house.edge() as edge, edge.client(fresh()) as client:
        sent = []
        grant = edge.parts.grants.for_command

        def noted(principal, envelope):
            sent.append(envelope.deadline_ms)
            return grant(principal, envelope)

        edge.parts.grants.for_command = noted  # type: ignore[method-assign]
        await client.get("/sessions/x", headers={"Everbus-Timeout": "2.5"})
        await client.get("/sessions/x")

    assert sent == [2500, 10_000]
