"""
The API is as it describes itself: schemathesis sends what fits it and what does not.

Its examples are made in a thread and answered in the loop that the edge lives in.
"""

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import httpx
import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, given, settings
from requests.adapters import BaseAdapter
from schemathesis import GenerationMode

from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.context import EdgeContext, EdgeLimits
from tests.integration.edge.conftest import WITHIN_S, Edge, a_token, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = 6
# One that is not there yet is waited for: two seconds each.
FEW = {"/sessions/{session_id}/checkpoints/{checkpoint_id}/restore": 2}
# Streams do not end, and have tests of their own.
CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            # What is too large has statuses of its own.
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
            # A patch may fit its schema and no session; nobody's token is tried by
            # a test of its own, and needs no server to be found.
            "positive_data_acceptance": {"enabled": False},
            "ignored_auth": {"enabled": False},
        }
    }
)
EVERYWHERE = {
    *("401", "403", "406", "408", "414", "422"),
    *("429", "431", "500", "503", "504"),
}
STREAMS = {"/sessions/{session_id}/events"}
METHODS = ("get", "post", "patch", "delete", "put")


def described() -> dict[str, Any]:
    """
    The description, for which nothing has to be served.
    """
    nobody = cast(Any, None)
    parts = EdgeContext(nobody, nobody, nobody, nobody, EdgeLimits(), lambda: 0.0)

    return edge_app(parts).openapi()


DESCRIBED = described()
# Without what it says of tokens: all of these requests have one.
SCHEMA = schemathesis.openapi.from_dict(
    {
        **DESCRIBED,
        "paths": {
            path: {
                method: {k: v for k, v in operation.items() if k != "security"}
                for method, operation in methods.items()
            }
            for path, methods in DESCRIBED["paths"].items()
        },
    },
    config=CONFIG,
)
OPERATIONS = [
    (path, method)
    for path, methods in DESCRIBED["paths"].items()
    for method in methods
    if method in METHODS and path not in STREAMS
]


class InLoop(BaseAdapter):
    """
    Has what requests sends answered by a client of another thread's loop.
    """

    def __init__(
        self, client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self._client, self._loop = client, loop

    def send(
        self, request: requests.PreparedRequest, *_: Any, **__: Any
    ) -> requests.Response:
        """
        Answer *request*.
        """
        asked = self._client.request(
            cast(str, request.method),
            cast(str, request.url),
            headers=dict(request.headers),
            content=cast(bytes, request.body),
        )
        found = asyncio.run_coroutine_threadsafe(asked, self._loop).result(WITHIN_S)
        answer = requests.Response()
        answer.status_code, answer.request = found.status_code, request
        answer.url, answer.reason = str(found.url), found.reason_phrase
        answer.headers.update(found.headers)
        answer.raw = urllib3.HTTPResponse(
            io.BytesIO(found.content),
            found.headers.multi_items(),
            found.status_code,
            preload_content=False,
        )
        return answer

    def close(self) -> None:
        """
        The client is somebody else's.
        """


def tame(case: schemathesis.Case) -> None:
    """
    Ask for nothing that is rightly answered with 503 or 504: there is no replica, and
    no time is enough if it is short enough.
    """
    headers = case.headers
    if headers.get("everbus-durability") == "replicated":
        headers["everbus-durability"] = "hot"
    with suppress(KeyError, ValueError):
        if 0 < float(headers["everbus-timeout"]) <= 60:
            del headers["everbus-timeout"]


async def a_session(client: httpx.AsyncClient, name: str) -> str:
    made = await client.post("/sessions", json={"user_id": name})

    return made.json()["id"]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
async def test_every_route_keeps_its_word(
    edge: Edge, path: str, method: str, mode: GenerationMode
):
    """
    Whatever is sent: no 5xx, and only what the description says.
    """
    name = fresh()
    operation = SCHEMA[path][method.upper()]
    shown = {"Authorization": f"Bearer {a_token(name, 'admin')}"}
    async with edge.client(name, "admin") as client, edge.client() as anybody:
        session = await a_session(client, name)
        transport = requests.Session()
        transport.mount("http://edge", InLoop(anybody, asyncio.get_running_loop()))
        turns = iter(range(10_000))

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=FEW.get(path, EXAMPLES),
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def examine(case: schemathesis.Case) -> None:
            known = "session_id" in (case.path_parameters or {})
            if known and mode.is_positive and next(turns) % 3:
                # An id that was made up would only ever be found absent.
                case.path_parameters["session_id"] = session
            tame(case)
            case.call_and_validate(
                base_url="http://edge", session=transport, headers=shown
            )

        await asyncio.to_thread(examine)


def schemas_in(value: Any) -> Iterator[dict[str, Any]]:
    """
    Every object within a description.
    """
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from schemas_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from schemas_in(child)


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
@pytest.mark.parametrize("shown", ["", "Bearer eyJhbGciOiJub25lIn0.e30."])
async def test_no_route_serves_anybody(edge: Edge, path: str, method: str, shown: str):
    at = path.format(session_id="x", mad="m", checkpoint_id="c", version=1)
    headers = {"Authorization": shown} if shown else {}
    async with edge.client(**headers) as client:
        answer = await client.request(method, at)

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_every_reference_leads_somewhere():
    for one in schemas_in(DESCRIBED):
        if isinstance(reference := one.get("$ref"), str):
            found: Any = DESCRIBED
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=str)
async def test_every_refusal_is_described_as_a_problem(path: str, method: str):
    operation = DESCRIBED["paths"][path][method]
    refusals = {s: r for s, r in operation["responses"].items() if s >= "400"}

    assert refusals.keys() >= EVERYWHERE
    for status, refusal in refusals.items():
        assert "application/problem+json" in refusal["content"]
        waits = status in ("429", "503", "504")
        assert ("Retry-After" in refusal["headers"]) == waits
    assert operation["security"] == [{"bearer": []}]
    assert operation["summary"]
    assert operation["description"]


@pytest.mark.parametrize(
    ("shown", "query", "status"),
    [
        (False, {}, 401),
        (True, {}, 404),
        (True, {"after": "x" * 200}, 422),
        (True, {"after": "no-event"}, 422),
        (True, {"more": "x" * 9000}, 414),
    ],
)
async def test_a_stream_refuses_only_as_described(
    edge: Edge, shown: bool, query: dict[str, str], status: int
):
    operation = DESCRIBED["paths"]["/sessions/{session_id}/events"]["get"]
    async with edge.client(fresh() if shown else "") as client:
        answer = await client.get("/sessions/nobodys/events", params=query)

    assert answer.status_code == status
    described = operation["responses"][str(status)]["content"]
    assert answer.headers["Content-Type"] in described
    assert operation["security"] == [{"bearer": []}]


async def test_the_whole_surface_is_described():
    """
    DESIGN.md section 5, name by name.
    """
    wanted = {
        "/sessions": {"get", "post"},
        "/sessions/{session_id}": {"get", "patch", "delete"},
        "/sessions/{session_id}/suspend": {"post"},
        "/sessions/{session_id}/resume": {"post"},
        "/sessions/{session_id}/broadcast": {"post"},
        "/sessions/{session_id}/participants": {"post"},
        "/sessions/{session_id}/participants/{mad}": {"delete"},
        "/sessions/{session_id}/timeline": {"get", "post"},
        "/sessions/{session_id}/checkpoints": {"get", "post"},
        "/sessions/{session_id}/checkpoints/{checkpoint_id}/restore": {"post"},
        "/sessions/{session_id}/events": {"get"},
    }
    paths = DESCRIBED["paths"]

    assert {path: set(paths.get(path, ())) for path in wanted} == wanted


async def test_no_field_of_a_session_is_missing_in_its_schema(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        made = await client.post("/sessions", json={"user_id": name})
        known = DESCRIBED["components"]["schemas"]["Session"]["properties"]

    assert set(json.loads(made.content)) == set(known)
