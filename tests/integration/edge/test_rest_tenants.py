"""
What a session of one tenant tells those of another, on every route there is: nothing.

Routes, parameters and bodies are taken from the API's own description, so that no
route can be forgotten here.
"""

import uuid
from typing import Any

import httpx
import pytest

from everbus.gateway.identity.principal import Claimed
from tests.integration.edge.conftest import Edge, fresh
from tests.integration.edge.test_openapi import DESCRIBED, METHODS

pytestmark = pytest.mark.asyncio(loop_scope="module")

OURS, THEIRS = "ours", "theirs"
ON_A_SESSION = [
    (path, method)
    for path, methods in DESCRIBED["paths"].items()
    for method in methods
    if method in METHODS and "{session_id}" in path
]
# What differs from one refusal to the next.
CHANGING = {"request_id"}
ROLES: tuple[Claimed, ...] = ("user", "mad", "operator", "admin")


def a_body(path: str, method: str) -> Any:
    """
    A body that fits, made of the examples of what is required.
    """
    operation = DESCRIBED["paths"][path][method]
    if "requestBody" not in operation:
        return None
    shape = operation["requestBody"]["content"]["application/json"]["schema"]
    options = [shape, *shape.get("anyOf", ())]
    name = next(o["$ref"] for o in options if "$ref" in o).rpartition("/")[2]
    schema = DESCRIBED["components"]["schemas"][name]

    return {
        field: schema["properties"][field]["examples"][0]
        for field in schema.get("required", ())
    }


def parameters(path: str, method: str) -> dict[str, int]:
    """
    What the query has to say.
    """
    listed = DESCRIBED["paths"][path][method].get("parameters", ())

    return {p["name"]: 1 for p in listed if p["in"] == "query" and p.get("required")}


async def asked(
    client: httpx.AsyncClient, path: str, method: str, session: str, checkpoint: str
) -> tuple[int, dict[str, Any], str]:
    """
    Status, body without what changes, and all the text of an answer.
    """
    at = path.format(
        session_id=session, mad="fiedler", checkpoint_id=checkpoint, version=1
    )
    answer = await client.request(
        method, at, params=parameters(path, method), json=a_body(path, method)
    )
    told = answer.json() if answer.content else {}
    text = f"{answer.headers} {answer.text}".replace(session, "<session>")
    plain = {
        name: value.replace(session, "<session>") if isinstance(value, str) else value
        for name, value in told.items()
        if name not in CHANGING
    }
    return answer.status_code, plain, text


class Secret:
    """
    A session with a canary in everything that can hold one.
    """

    def __init__(self, owner: httpx.AsyncClient, name: str) -> None:
        self.owner, self.name = owner, name
        self.canary = f"canary-{uuid.uuid4().hex}"
        self.id = self.checkpoint = ""

    async def begin(self) -> "Secret":
        made = await self.owner.post("/sessions", json={"user_id": self.name})
        self.id = made.json()["id"]
        at = f"/sessions/{self.id}"
        patch = {"context_summary": {"c": self.canary}, "tags": [self.canary]}
        warm = {"Everbus-Durability": "warm"}
        await self.owner.patch(at, json={"patch": patch}, headers=warm)
        await self.owner.post(f"{at}/timeline", json={"entry": self.canary})
        kept = await self.owner.post(f"{at}/checkpoints", json={"name": self.canary})
        self.checkpoint = kept.json()["id"]

        return self

    async def seen(self) -> tuple[int, int, int, str, dict[str, Any]]:
        """
        What of it anybody could have changed.
        """
        read = (await self.owner.get(f"/sessions/{self.id}")).json()

        return (
            *(read["version"], read["last_seq"], read["notices"], read["state"]),
            read["participants"],
        )


@pytest.mark.parametrize("role", ROLES)
async def test_another_tenants_session_is_as_if_it_were_not_there(
    edge: Edge, role: Claimed
):
    """
    Word for word what is said of an id that there never was, whatever the role.
    """
    owner, eve = fresh("owner"), fresh("eve")
    async with (
        edge.client(owner, tenant=OURS) as ours,
        edge.client(eve, role, tenant=THEIRS) as theirs,
    ):
        secret = await Secret(ours, owner).begin()
        before = await secret.seen()
        for path, method in ON_A_SESSION:
            real = await asked(theirs, path, method, secret.id, secret.checkpoint)
            nowhere = str(uuid.uuid4())
            absent = await asked(theirs, path, method, nowhere, secret.checkpoint)

            assert real[:2] == absent[:2], (path, method)
            assert real[0] in (403, 404), (path, method, real)
            assert secret.canary not in real[2]
            assert owner not in real[2]
        assert await secret.seen() == before


@pytest.mark.parametrize("role", ROLES)
async def test_another_tenants_session_is_not_found(edge: Edge, role: Claimed):
    owner, eve = fresh("owner"), fresh("eve")
    async with (
        edge.client(owner, tenant=OURS) as ours,
        edge.client(eve, role, tenant=THEIRS) as theirs,
    ):
        secret = await Secret(ours, owner).begin()
        mine = await ours.get("/sessions", params={"tag": secret.canary})
        for query in ({"tag": secret.canary}, {"owner": owner}, {"limit": 1000}):
            found = await theirs.get("/sessions", params=query)
            assert found.status_code == 200
            assert secret.canary not in found.text
            assert secret.id not in found.text

    assert [one["id"] for one in mine.json()["sessions"]] == [secret.id]


async def test_the_same_name_in_another_tenant_is_somebody_else(edge: Edge):
    """
    Neither its sessions nor its keys are those of its namesake.
    """
    name, key = fresh(), {"Idempotency-Key": "one"}
    async with (
        edge.client(name, tenant=OURS) as ours,
        edge.client(name, tenant=THEIRS) as theirs,
    ):
        secret = await Secret(ours, name).begin()
        read = await theirs.get(f"/sessions/{secret.id}")
        made = [
            await one.post("/sessions", json={"user_id": name}, headers=key)
            for one in (ours, theirs)
        ]

    assert read.status_code == 404
    assert [one.status_code for one in made] == [201, 201]
    assert made[0].json()["id"] != made[1].json()["id"]


async def test_a_stranger_of_the_same_tenant_reads_nothing(edge: Edge):
    owner, eve = fresh("owner"), fresh("eve")
    async with (
        edge.client(owner, tenant=OURS) as ours,
        edge.client(eve, tenant=OURS) as stranger,
    ):
        secret = await Secret(ours, owner).begin()
        for path, method in ON_A_SESSION:
            status, _, text = await asked(
                stranger, path, method, secret.id, secret.checkpoint
            )
            assert status in (403, 404), (path, method)
            assert secret.canary not in text
