"""
HEAD, OPTIONS, CORS and the description, as HTTP and browsers have them.
"""

import re

import pytest
from starlette.routing import Route

from everbus.compose.settings import SettingsError, load_settings
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.documentation import ASSETS
from tests.integration.edge.conftest import Edge, House, fresh, until_listed

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://app.example"
# What a request has of its own.
OWN = {"x-request-id", "date"}


async def a_session(edge: Edge, name: str) -> str:
    async with edge.client(name) as client:
        made = await client.post("/sessions", json={"user_id": name})
    return made.json()["id"]


@pytest.mark.parametrize(
    "path",
    [
        *("/sessions", "/sessions/{id}", "/sessions/{id}/timeline"),
        *("/sessions/{id}/checkpoints", "/sessions/{id}/versions/1"),
        *("/sessions/nobody-has-it", "/openapi.json", "/docs", "/docs/swagger-ui.css"),
    ],
)
async def test_head_is_get_without_a_body(edge: Edge, path: str):
    name = fresh()
    at = path.format(id=await a_session(edge, name))
    async with edge.client(name) as client:
        # The list hears of the session later, and not between the two.
        await until_listed(client, 1)
        got = await client.get(at)
        head = await client.head(at)

    def headers(answer) -> dict[str, str]:
        return {k: v for k, v in answer.headers.items() if k not in OWN}

    assert (head.status_code, head.content) == (got.status_code, b"")
    if got.status_code == 200:
        assert headers(head) == headers(got)


async def test_head_has_the_etag_and_its_condition(edge: Edge):
    name = fresh()
    at = f"/sessions/{await a_session(edge, name)}"
    async with edge.client(name) as client:
        head = await client.head(at)
        same = await client.head(at, headers={"If-None-Match": head.headers["ETag"]})

    assert (head.headers["ETag"], same.status_code) == ('"1"', 304)


async def test_head_of_a_live_stream_ends(edge: Edge):
    name = fresh()
    at = f"/sessions/{await a_session(edge, name)}/events"
    async with edge.client(name) as client:
        head = await client.head(at)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == "text/event-stream"
    assert len(edge.app.state.streams) == 0


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/sessions", "GET, HEAD, OPTIONS, POST"),
        ("/sessions/s-1", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("/sessions/s-1/suspend", "OPTIONS, POST"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_and_405_name_the_methods(edge: Edge, path: str, allowed: str):
    async with edge.client() as client:
        options = await client.options(path)
        refused = await client.put(path)

    assert (options.status_code, options.headers["Allow"]) == (204, allowed)
    assert (refused.status_code, refused.headers["Allow"]) == (405, allowed)


async def test_options_of_nothing_is_not_found(edge: Edge):
    async with edge.client() as client:
        assert (await client.options("/nothing")).status_code == 404


async def test_a_head_without_a_get_is_refused(edge: Edge):
    async with edge.client(fresh()) as client:
        refused = await client.head("/sessions/s-1/suspend")

    assert (refused.status_code, refused.headers["Allow"]) == (405, "OPTIONS, POST")


async def test_the_description_needs_nobody_elses_server(edge: Edge):
    async with edge.client() as client:
        page = await client.get("/docs")
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        loaded = {link: await client.get(f"/{link}") for link in links}
        description = await client.get("/openapi.json")

    assert {link.split("/")[-1] for link in links} == {*ASSETS, "start.js"}
    assert {one.status_code for one in loaded.values()} == {200}
    assert all(len(one.content) > 50 for one in loaded.values())
    assert description.json()["info"]["title"] == "everbus"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert not re.search(r"unsafe|https?:|\*", policy)
    # What the policy would not let run.
    assert not re.search(r"<script>|<style|style=|\son\w+=", page.text)
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_description_can_be_switched_off(house: House):
    async with house.parts() as parts:
        closed = Edge(edge_app(parts._replace(docs=False)), parts)
        async with closed.client() as client:
            codes = [
                (await client.get(path)).status_code
                for path in ("/docs", "/docs/start.js", "/openapi.json")
            ]
        paths = {r.path for r in closed.app.router.routes if isinstance(r, Route)}

    assert codes == [404, 404, 404]
    assert not [path for path in paths if "docs" in path]


async def test_a_page_of_a_named_origin_may_call(house: House):
    async with house.parts() as parts:
        open_edge = Edge(edge_app(parts._replace(origins=(ORIGIN,))), parts)
        async with open_edge.client() as client:
            asked = {
                "Origin": ORIGIN,
                "Access-Control-Request-Method": "PATCH",
                "Access-Control-Request-Headers": "authorization, idempotency-key",
            }
            before = await client.options("/sessions/s-1", headers=asked)
            strange = await client.options(
                "/sessions/s-1", headers=asked | {"Origin": "https://evil.example"}
            )
            refused = await client.get("/sessions", headers={"Origin": ORIGIN})
            foreign = await client.get("/sessions", headers={"Origin": "null"})

    allowed = "Access-Control-Allow-Origin"
    assert (before.status_code, before.headers[allowed]) == (200, ORIGIN)
    assert "PATCH" in before.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in before.headers
    assert (strange.status_code, allowed in strange.headers) == (400, False)
    # A page may read why it was refused.
    assert (refused.status_code, refused.headers[allowed]) == (401, ORIGIN)
    assert "ETag" in refused.headers["Access-Control-Expose-Headers"]
    assert allowed not in foreign.headers


async def test_no_page_may_call_unless_its_origin_is_named(edge: Edge):
    async with edge.client() as client:
        answer = await client.get("/sessions", headers={"Origin": ORIGIN})

    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins",
    ["*", "https://*.example", "app.example", "https://app.example/", "null"],
)
async def test_only_exact_origins_can_be_set(origins: str):
    with pytest.raises(SettingsError, match="EVERBUS_EDGE_CORS_ORIGINS"):
        load_settings({"EVERBUS_EDGE_CORS_ORIGINS": origins})
