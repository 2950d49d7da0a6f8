"""
The health of a process: what it is judged by, and the five routes that tell of it.
"""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import REGISTRY
from starlette.applications import Starlette

from everbus.bus.errors import Unavailable
from everbus.gateway.edge import metrics
from everbus.gateway.edge.metrics import RequestMetrics
from everbus.gateway.health.bus_watchdog import Watchdog
from everbus.gateway.health.probe_routes import probe_routes
from everbus.gateway.health.process import (
    Check,
    CheckResult,
    ProcessHealth,
)
from everbus.gateway.health.process_checks import TierProbe, edge_health, identity_probe

GONE = Unavailable("the bus is away: it does not answer")
FINE = CheckResult("pass")


def a_client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://probe"
    )


async def asked(health: ProcessHealth, path: str) -> httpx.Response:
    async with a_client(Starlette(routes=probe_routes(health))) as client:
        return await client.get(path)


def started(*checks: Check, **options: Any) -> ProcessHealth:
    health = ProcessHealth("manager", *checks, **options)
    health.started = True

    return health


def a_check(
    finding: CheckResult, *, essential: bool = False, name: str = "bus"
) -> Check:
    return Check(name, lambda: finding, essential)


async def test_the_process_lives_whatever_else_is_wrong():
    broken = a_check(CheckResult("fail", "gone"), essential=True)

    answer = await asked(ProcessHealth("manager", broken), "/livez")

    assert (answer.status_code, answer.json()["status"]) == (200, "pass")


async def test_it_is_not_ready_before_it_has_started():
    health = ProcessHealth("manager", a_check(FINE, essential=True))
    paths = ("/startupz", "/readyz", "/health")
    before = [(await asked(health, path)).status_code for path in paths]

    health.started = True
    after = [(await asked(health, path)).status_code for path in paths]

    assert (before, after) == ([503] * 3, [200] * 3)


async def test_an_essential_failure_makes_it_not_ready_and_does_not_undo_its_start():
    health = started(a_check(CheckResult("fail", "it does not answer"), essential=True))

    ready = await asked(health, "/readyz")

    assert ready.status_code == 503
    assert ready.json() == {"status": "fail", "output": "bus: it does not answer"}
    assert (await asked(health, "/startupz")).status_code == 200
    assert (await asked(health, "/health")).status_code == 503


async def test_any_other_failure_is_a_warning():
    health = started(a_check(CheckResult("fail", "gone")), a_check(FINE, name="lanes"))

    answer = await asked(health, "/health")

    assert answer.status_code == 200
    assert answer.json()["status"] == "warn"
    assert answer.json()["checks"]["bus"][0]["status"] == "fail"
    assert (await asked(health, "/readyz")).status_code == 200


async def test_while_it_ends_nobody_is_to_come():
    health = started(a_check(FINE, essential=True), stopping=lambda: True)

    ready = await asked(health, "/readyz")

    assert (ready.status_code, ready.json()["output"]) == (503, "it is about to end")
    assert (await asked(health, "/livez")).status_code == 200
    assert (await asked(health, "/health")).json()["stopping"] is True


async def test_a_check_tells_since_when_it_is_so():
    now = [1_700_000_000.0]
    report = [FINE]
    health = started(Check("bus", lambda: report[0]), now=lambda: now[0])

    await asked(health, "/readyz")
    now[0] += 60
    report[0] = CheckResult("fail", "gone", 3.0, "s")
    await asked(health, "/readyz")
    now[0] += 30
    [shown] = (await asked(health, "/health")).json()["checks"]["bus"]

    assert shown == {
        "status": "fail",
        "since": "2023-11-14T22:14:20.000+00:00",
        "time": "2023-11-14T22:14:50.000+00:00",
        "output": "gone",
        "observedValue": 3.0,
        "observedUnit": "s",
    }


async def test_the_form_is_that_of_the_draft_and_is_not_kept():
    answer = await asked(started(a_check(FINE)), "/health")

    assert answer.headers["content-type"] == "application/health+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["serviceId"] == "everbus-manager"
    assert answer.json()["role"] == "manager"
    assert answer.json()["version"]


async def test_a_check_that_breaks_hides_no_other():
    def breaks() -> CheckResult:
        raise RuntimeError("mongodb://user:password@db")

    health = started(Check("warm", breaks), a_check(FINE, name="bus"))

    answer = await asked(health, "/health")

    assert answer.json()["checks"]["warm"][0]["status"] == "fail"
    assert answer.json()["checks"]["bus"][0]["status"] == "pass"
    assert "password" not in answer.text


async def test_prometheus_reads_the_metrics():
    answer = await asked(started(), "/metrics")

    assert answer.headers["content-type"].startswith("text/plain")
    assert "everbus_edge_read_only " in answer.text


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text;version=x"])
async def test_no_accept_header_breaks_the_metrics(accept: str):
    async with a_client(Starlette(routes=probe_routes(started()))) as client:
        answer = await client.get("/metrics", headers={"accept": accept})

    assert answer.status_code == 200


def an_edge(
    *, warm: CheckResult | None = FINE, **options: Any
) -> tuple[ProcessHealth, Watchdog]:
    dog = Watchdog("redis://127.0.0.1:1")
    watch = None
    if warm is not None:
        watch = TierProbe("warm", lambda: asyncio.sleep(0))
        watch._found = warm
    health = edge_health(dog, watch, **options)
    health.started = True

    return health, dog


async def status_of(health: ProcessHealth) -> tuple[int, int, str]:
    ready, whole = await asked(health, "/readyz"), await asked(health, "/health")
    return ready.status_code, whole.status_code, whole.json()["status"]


async def test_an_edge_without_its_bus_is_ready_while_it_can_read():
    health, dog = an_edge()
    well = await status_of(health)
    dog.record_ping(0, GONE)

    assert well == (200, 200, "pass")
    assert await status_of(health) == (200, 200, "warn")


async def test_an_edge_that_its_bus_refuses_tells_it_and_names_no_user():
    client = SimpleNamespace(trouble="User uedge has no permissions", broken=False)
    refused, _ = an_edge(client=client)
    alone, _ = an_edge(client=client, warm=None)

    assert await status_of(refused) == (200, 200, "warn")
    assert await status_of(alone) == (503, 503, "fail")
    assert "uedge" not in (await asked(alone, "/readyz")).text
    client.trouble = ""
    assert await status_of(alone) == (200, 200, "pass")


async def test_an_edge_whose_client_is_broken_for_good_is_not_ready():
    broken, _ = an_edge(client=SimpleNamespace(trouble="TypeError", broken=True))

    assert (await status_of(broken))[0] == 503


@pytest.mark.parametrize("warm", [None, CheckResult("fail", "no answer")])
async def test_an_edge_that_can_read_nothing_is_not_ready(warm: CheckResult | None):
    health, dog = an_edge(warm=warm)
    dog.record_ping(0, GONE)

    assert await status_of(health) == (503, 503, "fail")


async def test_an_edge_without_keys_for_tokens_is_not_ready():
    issuer: Any = SimpleNamespace(there=False)

    async def ready() -> bool:
        return bool(issuer.there)

    issuer.ready = ready
    watch = identity_probe(issuer)
    health, _ = an_edge(keys=watch)
    await watch.probe()
    without = await status_of(health)
    issuer.there = True
    await watch.probe()

    assert without == (503, 503, "fail")
    assert await status_of(health) == (200, 200, "pass")


async def test_lanes_that_nobody_serves_are_a_warning():
    health, dog = an_edge()
    dog.unowned_lanes = 3

    report = (await asked(health, "/health")).json()

    assert report["status"] == "warn"
    assert report["checks"]["lanes"][0]["observedValue"] == 3


async def test_a_flood_of_probes_asks_nobody():
    """
    Every route answers from memory, at once.
    """
    calls = 0

    async def probe() -> None:
        nonlocal calls
        calls += 1

    watch = TierProbe("warm", probe)
    await watch.probe()
    health = edge_health(Watchdog("redis://127.0.0.1:1"), watch)
    for _ in range(200):
        await asked(health, "/health")

    assert calls == 1


async def test_a_tier_that_is_silent_fails_within_its_deadline():
    watch = TierProbe("warm", asyncio.Event().wait, deadline_s=0.01)

    await watch.probe()

    assert watch.result().status == "fail"


async def test_a_tier_that_fails_is_told_without_its_address():
    async def fails() -> None:
        raise Unavailable("db.internal:27017 refuses")

    watch = TierProbe("warm", fails)
    await watch.probe()

    assert watch.result().status == "fail"
    assert "db.internal" not in watch.result().output


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def an_app() -> Any:
    app, router = FastAPI(), APIRouter(prefix="/sessions")

    @router.get("/{session_id}")
    async def get(session_id: str) -> str:
        return session_id

    @router.get("/{session_id}/events")
    async def events(session_id: str) -> StreamingResponse:
        async def some():
            yield b"data: 1\n\n"

        return StreamingResponse(some(), media_type="text/event-stream")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    app.include_router(router)
    return RequestMetrics(app)


async def test_requests_are_counted_by_template_and_never_by_path():
    ok = {"route": "/sessions/{session_id}", "method": "GET", "status": "2xx"}
    before = counted("everbus_edge_requests_total", **ok)

    async with a_client(an_app()) as client:
        await client.get("/sessions/secret-1")
        await client.get("/sessions/secret-2")
        await client.get("/nowhere/secret-3")
        await client.request("SECRET-4", "/sessions/secret-5")
        with pytest.raises(RuntimeError):
            await client.get("/broken")

    assert counted("everbus_edge_requests_total", **ok) == before + 2
    text = (await asked(started(), "/metrics")).text
    assert "secret" not in text.lower()
    broken = {"route": "/broken", "method": "GET", "status": "5xx"}
    assert counted("everbus_edge_requests_total", **broken) >= 1
    assert counted("everbus_edge_requests_in_flight") == 0


async def test_a_stream_is_counted_and_not_timed():
    """
    It lasts as long as somebody listens, and would spoil the histogram.
    """
    route = {"route": "/sessions/{session_id}/events", "method": "GET"}
    answered = counted("everbus_edge_requests_total", status="2xx", **route)
    timed = counted("everbus_edge_request_seconds_count", **route)

    async with a_client(an_app()) as client:
        await client.get("/sessions/s1/events")

    assert counted("everbus_edge_requests_total", status="2xx", **route) == answered + 1
    assert counted("everbus_edge_request_seconds_count", **route) == timed


def test_the_time_without_a_bus_is_counted():
    before = counted("everbus_edge_read_only_seconds_total")

    metrics.set_read_only(True, 0.25)
    away = counted("everbus_edge_read_only")
    metrics.set_read_only(False, 0.25)

    assert away == 1
    assert counted("everbus_edge_read_only") == 0
    assert counted("everbus_edge_read_only_seconds_total") == before + 0.25


def test_health_is_json_that_anybody_can_read():
    json.dumps(started(a_check(FINE)).report(), allow_nan=False)
