"""
How much an edge lets one principal, one tenant and one address ask of it.
"""

import asyncio

import pytest

from everbus.gateway.edge.addresses import TrustedProxies
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.context import EdgeLimits
from everbus.gateway.edge.limits import SAME_TOKEN_BURST, Limiter
from tests.integration.edge.conftest import AMPLE, Edge, House, a_token, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW_CONSUMER = 0.001  # a second: nothing fills up while a test runs


async def test_who_asks_too_often_is_told_when_to_come_again(house: House):
    limits = AMPLE._replace(rate=SLOW_CONSUMER)
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
    limits = AMPLE._replace(tenant_rate=SLOW_CONSUMER)
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
    house: House, limits: EdgeLimits, limit: str
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


def forged(number: int) -> str:
    """
    A token of its own, with the signature of another.
    """
    head, payload, _ = a_token(f"eve-{number}").split(".")

    return ".".join((head, payload, a_token("ada").split(".")[2]))


async def test_bad_tokens_of_an_address_refuse_no_good_one_from_there(house: House):
    """
    Behind one address there may be an ingress, and everybody behind that.
    """
    known, unseen = a_token(fresh()), a_token(fresh())

    def shown(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    limits = AMPLE._replace(bad_tokens=20)
    async with house.edge(limits) as edge, edge.client() as client:
        # A clock that stands: buckets fill up while a slow machine asks.
        edge.app.state.limiter = Limiter(limits, lambda: 0.0)
        await client.get("/sessions", headers=shown(known))
        bad = [
            await client.get("/sessions", headers=shown(forged(number)))
            for number in range(30)
        ]
        good = [
            (await client.get("/sessions", headers=shown(token))).status_code
            for token in (known, unseen)
        ]

    assert [one.status_code for one in bad] == [401] * 20 + [429] * 10
    assert bad[-1].json()["limit"] == "bad_tokens_of_address"
    assert good == [200, 200]


async def test_the_same_bad_token_is_verified_only_so_often(house: House):
    looked_at = 0
    async with house.edge() as edge, edge.client(Authorization="Bearer a.b.c") as eve:
        edge.app.state.limiter = Limiter(AMPLE, lambda: 0.0)
        admit = edge.parts.identity.authenticate

        async def counted(token: str):
            nonlocal looked_at
            looked_at += 1
            return await admit(token)

        edge.parts.identity.authenticate = counted  # type: ignore[method-assign]
        answers = [await eve.get("/sessions") for _ in range(70)]

    codes = [one.status_code for one in answers]
    burst = int(SAME_TOKEN_BURST)
    assert codes == [401] * burst + [429] * (70 - burst)
    assert answers[-1].json()["limit"] == "bad_token"
    assert looked_at == burst


async def test_a_trusted_proxy_names_whose_bad_tokens_they_are(house: House):
    """
    Nobody else does: a header that anybody can send would be a way around the limit.
    """
    limits = AMPLE._replace(bad_tokens=1)
    asked = iter(range(1000))

    async def twice(edge: Edge, stated: str) -> list[int]:
        headers = {"X-Forwarded-For": stated}
        async with edge.client(**headers) as client:
            return [
                (
                    await client.get(
                        "/sessions",
                        headers={"Authorization": f"Bearer {forged(next(asked))}"},
                    )
                ).status_code
                for _ in "12"
            ]

    async with house.parts(limits) as parts:
        trusting = parts._replace(proxies=TrustedProxies(("127.0.0.0/8",)))
        behind, open_one = (Edge(edge_app(p), p) for p in (trusting, parts))
        for edge in (behind, open_one):
            edge.app.state.limiter = Limiter(limits, lambda: 0.0)
        named = [await twice(behind, one) for one in ("192.0.2.1", "192.0.2.2")]
        claimed = [await twice(open_one, one) for one in ("192.0.2.1", "192.0.2.2")]

    assert named == [[401, 429], [401, 429]]
    assert claimed == [[401, 429], [429, 429]]


async def test_limits_come_before_the_body(house: House):
    read = False

    async def body():
        nonlocal read
        read = True
        yield b"{}"

    async with house.edge(AMPLE._replace(rate=SLOW_CONSUMER)) as edge:
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
