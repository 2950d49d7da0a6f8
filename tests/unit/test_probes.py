"""
What manager and archiver tell of themselves: their checks, and the port.
"""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from everbus.compose.exit_codes import CONFLICT, Failed
from everbus.compose.probes import (
    DRAIN_FAIL_S,
    DRAIN_WARN_S,
    SILENT_S,
    drain_checks,
    lane_checks,
    serve_health,
)
from everbus.compose.settings import Settings
from everbus.compose.stack_folder import free_port
from everbus.gateway.health.bus_watchdog import Watchdog
from everbus.gateway.telemetry import metrics

NOWHERE = "redis://127.0.0.1:1"


def settings(port: int) -> Settings:
    return Settings(redis_url=NOWHERE, health_port=port)


def checks_of(*polled_at: float) -> dict[str, Any]:
    lanes = {n: SimpleNamespace(polled_at=at) for n, at in enumerate(polled_at)}
    replica: Any = SimpleNamespace(lanes=lanes)

    return {check.name: check.result for check in lane_checks(replica, lambda: 100.0)}


def test_lanes_that_get_on_are_well():
    found = checks_of(100.0, 99.0)["lanes"]()

    assert (found.status, found.value) == ("pass", 2)


def test_a_manager_without_lanes_is_well():
    """
    Others may have them all.
    """
    assert checks_of()["lanes"]().status == "pass"


def test_a_silent_lane_is_told():
    found = checks_of(100.0, 100.0 - SILENT_S - 1)["lanes"]()

    assert (found.status, found.output) == ("fail", "1 of 2 lanes are silent")


@pytest.fixture
def verdicts():
    metrics.HEALTH.clear()
    yield metrics.HEALTH
    metrics.HEALTH.clear()


def test_the_manager_that_looks_at_the_whole_bus_tells_of_it(verdicts: Any):
    look = checks_of()["deployment"]
    others = look()
    verdicts.labels("lag").set(1)
    verdicts.labels("outbox").set(0)
    warned = look()
    verdicts.labels("outbox").set(2)
    failed = look()

    assert [others.status, warned.status, failed.status] == ["pass", "warn", "fail"]
    assert "lag" in warned.output
    assert "outbox" in failed.output


@pytest.mark.parametrize(
    ("failing_s", "status"),
    [(0, "pass"), (DRAIN_WARN_S, "warn"), (DRAIN_FAIL_S, "fail")],
)
def test_a_drain_that_gets_nothing_done_is_told(failing_s: float, status: str):
    drain: Any = SimpleNamespace(lease=SimpleNamespace(held=True))
    checks = {check.name: check.result for check in drain_checks(drain)}

    metrics.DRAIN_FAILING.set(failing_s)
    try:
        found = checks["drain"]()
    finally:
        metrics.DRAIN_FAILING.set(0)

    assert found.status == status


@pytest.mark.parametrize("held", [True, False])
def test_an_archiver_that_stands_by_is_well(held: bool):
    drain: Any = SimpleNamespace(lease=SimpleNamespace(held=held))
    checks = {check.name: check.result for check in drain_checks(drain)}

    found = checks["lease"]()

    assert (found.status, found.value) == ("pass", held)


async def test_a_port_that_is_taken_names_the_setting():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(Failed, match=f"EVERBUS_HEALTH_PORT={port}") as raised:
            async with serve_health("manager", settings(port), asyncio.Event()):
                pass

    assert raised.value.exit_code == CONFLICT


async def test_without_a_port_nothing_listens():
    async with serve_health("manager", settings(0), asyncio.Event()) as health:
        assert len(asyncio.all_tasks()) == 1
        assert health.unready_reason()


async def test_the_port_is_served_from_before_the_start_until_the_end(monkeypatch):
    async def there(_: Watchdog) -> None:
        return None

    monkeypatch.setattr(Watchdog, "_ping_once", there)
    stop, port = asyncio.Event(), free_port()
    told = []

    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        serve_health("manager", settings(port), stop) as health,
    ):
        for change in (
            lambda: None,
            lambda: setattr(health, "started", True),
            stop.set,
        ):
            change()
            told += [
                (await client.get(path)).status_code
                for path in ("/livez", "/startupz", "/readyz")
            ]

    assert told == [200, 503, 503, 200, 200, 200, 200, 200, 503]
    with (
        pytest.raises(OSError, match=r"."),
        socket.create_connection(("127.0.0.1", port), 1),
    ):
        pass
    assert len(asyncio.all_tasks()) == 1
