"""
The health port of a process, for probes and Prometheus.

It runs in the process's own event loop, so a blocked loop fails `/livez` like any
other request. Without EVERBUS_HEALTH_PORT nothing of this module runs.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvicorn
from prometheus_client import REGISTRY
from starlette.applications import Starlette

from everbus.archiver.drain import Drain
from everbus.compose.exit_codes import CONFLICT, Failed
from everbus.compose.settings import Settings
from everbus.gateway.health.bus_watchdog import Watchdog
from everbus.gateway.health.connections import ConnectionLimits, Connections
from everbus.gateway.health.embedded_server import EmbeddedServer
from everbus.gateway.health.probe_routes import probe_routes
from everbus.gateway.health.process import (
    Check,
    CheckResult,
    ProcessHealth,
    Status,
)
from everbus.gateway.health.process_checks import bus_check
from everbus.gateway.session_manager import SessionManager
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

# Slower than in the edge: no caller waits for these results.
PING_EVERY_S = 1.0
PING_DEADLINE_S = 2.0
STOP_S = 1.0
MAX_CONNECTIONS = 64
# One address cannot take the port from the others.
MAX_PER_ADDRESS = 32
HEAD_TIMEOUT_S = 5.0
# `gateway.session_manager` gives a silent lane up after 10 s.
SILENT_S = 5.0
DRAIN_WARN_S, DRAIN_FAIL_S = 5.0, 60.0
_BREAKERS: dict[float, CheckResult] = {
    0.0: CheckResult("pass"),
    1.0: CheckResult("warn", "its breaker is half open: one call tries the tier"),
    2.0: CheckResult("fail", "its breaker is open: it does not answer"),
}
_VERDICTS: dict[float, Status] = {0.0: "pass", 1.0: "warn", 2.0: "fail"}


@asynccontextmanager
async def serve_health(
    role: str, settings: Settings, stop: asyncio.Event
) -> AsyncIterator[ProcessHealth]:
    """
    The health of this process, served on EVERBUS_HEALTH_PORT during the block.

    The block sets `started`. From *stop* to the end of the block the process reports
    that it is not ready.

    Raises:
        Failed: the port is not available.
    """
    watchdog = Watchdog(
        settings.redis_url, every_s=PING_EVERY_S, deadline_s=PING_DEADLINE_S
    )
    health = ProcessHealth(
        role, bus_check(watchdog), *_breakers(), stopping=stop.is_set
    )
    if not settings.health_port:
        yield health
        return
    async with serve_probes(health, settings):
        watching = asyncio.create_task(watchdog.run())
        try:
            yield health
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@asynccontextmanager
async def serve_probes(
    health: ProcessHealth, settings: Settings
) -> AsyncIterator[None]:
    """
    Serve *health* on EVERBUS_HEALTH_PORT during the block.

    Raises:
        Failed: the port is not available.
    """
    listener = _listener(settings.health_host, settings.health_port)
    server = EmbeddedServer(_config(health))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    log.info("probes.ready", host=settings.health_host, port=settings.health_port)
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait((serving,), timeout=2 * STOP_S)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()


def lane_checks(
    replica: SessionManager, clock: Callable[[], float]
) -> tuple[Check, ...]:
    """
    Checks of the lanes of *replica*, and of the whole deployment.
    """

    def lanes() -> CheckResult:
        silent_s = [clock() - lane.polled_at for lane in replica.lanes.values()]
        count = len(silent_s)
        if max(silent_s, default=0.0) > SILENT_S:
            deaf = sum(one > SILENT_S for one in silent_s)
            return CheckResult(
                "fail", f"{deaf} of {count} lanes are silent", count, "lanes"
            )
        return CheckResult("pass", value=count, unit="lanes")

    def bus() -> CheckResult:
        if replica.trouble:
            return CheckResult("fail", "the bus answers pings and refuses this manager")
        return CheckResult("pass")

    return (
        Check("lanes", lanes),
        Check("deployment", _deployment),
        Check("rights", bus, essential=True),
    )


def drain_checks(drain: Drain) -> tuple[Check, ...]:
    """
    Checks of *drain*: whether it holds the lease, and whether it makes progress.
    """

    def lease() -> CheckResult:
        return CheckResult("pass", value=float(drain.lease.held), unit="held")

    def draining() -> CheckResult:
        failing_s = _metric_value("everbus_drain_failing_seconds") or 0.0
        detail = f"no record reached MongoDB for {failing_s:.0f} s"
        if failing_s >= DRAIN_FAIL_S:
            return CheckResult("fail", detail, failing_s, "s")
        if failing_s >= DRAIN_WARN_S:
            return CheckResult("warn", detail, failing_s, "s")
        return CheckResult("pass", value=failing_s, unit="s")

    def bus() -> CheckResult:
        if drain.trouble:
            return CheckResult("fail", "the bus refuses this archiver")
        return CheckResult("pass")

    return (
        Check("lease", lease),
        Check("drain", draining),
        Check("rights", bus, essential=True),
    )


def _breakers() -> Iterator[Check]:
    """
    Checks of the warm and the cold tier, by the state of their breakers.
    """

    def look(tier: str) -> Callable[[], CheckResult]:
        def breaker() -> CheckResult:
            state = _metric_value("everbus_breaker_state", {"tier": tier})
            if state is None:
                return CheckResult("pass", "not configured")
            return _BREAKERS[state]

        return breaker

    for tier in ("warm", "cold"):
        yield Check(tier, look(tier))


def _deployment() -> CheckResult:
    """
    The verdicts on the whole bus, if this manager examines it.
    """
    verdicts = {
        sample.labels["indicator"]: _VERDICTS[sample.value]
        for metric in metrics.HEALTH.collect()
        for sample in metric.samples
    }
    if not verdicts:
        return CheckResult("pass", "another manager examines the bus")
    for status in ("fail", "warn"):
        named = sorted(name for name, verdict in verdicts.items() if verdict == status)
        if named:
            detail = f"{', '.join(named)}; for details: everbus doctor"
            return CheckResult(status, detail, len(named), "indicators")
    return CheckResult("pass")


def _metric_value(name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """
    The value of a Prometheus metric of this process; None without a sample.
    """
    return REGISTRY.get_sample_value(name, dict(labels or {}))


def _config(health: ProcessHealth) -> uvicorn.Config:
    connections = Connections(
        ConnectionLimits(MAX_CONNECTIONS, MAX_PER_ADDRESS, HEAD_TIMEOUT_S)
    )
    options: dict[str, Any] = {
        "access_log": False,
        "h11_max_incomplete_event_size": 8 * 1024,
        "lifespan": "off",
        "log_config": None,
        "log_level": "warning",
        "server_header": False,
        "timeout_graceful_shutdown": round(STOP_S),
        "timeout_keep_alive": 5,
        **connections.protocols(),
        "ws": "none",
    }
    return uvicorn.Config(Starlette(routes=probe_routes(health)), **options)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise Failed(
            f"cannot listen on EVERBUS_HEALTH_HOST={host}, EVERBUS_HEALTH_PORT={port}: "
            f"{error.strerror or error}. Choose another port, or 0 for none",
            CONFLICT,
        ) from error
