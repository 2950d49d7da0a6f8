"""
The small port on which manager and archiver tell of themselves.

It is served in the process's own event loop, so that a loop that stands still fails
`/livez` like any other request. Without EVERBUS_HEALTH_PORT none of this runs.
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

from archiver.drain import Drain
from compose.exits import CONFLICT, Failed
from compose.settings import Settings
from gateway import metrics
from gateway.edge.checks import bus_check
from gateway.edge.health import Check, Finding, Health, Status, health_routes
from gateway.edge.serving import Guest
from gateway.edge.watchdog import Watchdog
from gateway.replica import Replica

log = structlog.get_logger()

# Nobody waits here for its verdicts as the edge's callers do, so it asks seldom.
PING_EVERY_S = 1.0
PING_DEADLINE_S = 2.0
STOP_S = 1.0
MAX_CONNECTIONS = 64
# A lane is given up as deaf after 10 s, see `gateway.replica`.
SILENT_S = 5.0
DRAIN_WARN_S, DRAIN_FAIL_S = 5.0, 60.0
_BREAKERS: dict[float, Finding] = {
    0.0: Finding("pass"),
    1.0: Finding("warn", "its breaker is half open: being tried"),
    2.0: Finding("fail", "its breaker is open: it does not answer"),
}
_VERDICTS: dict[float, Status] = {0.0: "pass", 1.0: "warn", 2.0: "fail"}


@asynccontextmanager
async def probed(
    role: str, settings: Settings, stop: asyncio.Event
) -> AsyncIterator[Health]:
    """
    The health of this process, told on EVERBUS_HEALTH_PORT while the block runs.

    The process has `started` once the block says so; while *stop* is set and until the
    block ends it answers that it is not ready.

    Raises:
        Failed: the port cannot be had.
    """
    watchdog = Watchdog(
        settings.redis_url, every_s=PING_EVERY_S, deadline_s=PING_DEADLINE_S
    )
    health = Health(role, bus_check(watchdog), *_breakers(), stopping=stop.is_set)
    if not settings.health_port:
        yield health
        return
    listener = _listener(settings.health_host, settings.health_port)
    server = Guest(_config(health))
    tasks = [
        asyncio.create_task(watchdog.run()),
        asyncio.create_task(server.serve(sockets=[listener])),
    ]
    log.info("probes.ready", host=settings.health_host, port=settings.health_port)
    try:
        yield health
    finally:
        server.should_exit = True
        tasks[0].cancel()
        await asyncio.wait(tasks, timeout=2 * STOP_S)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()


def lane_checks(replica: Replica, clock: Callable[[], float]) -> tuple[Check, ...]:
    """
    Whether the lanes of *replica* get on, and what its managers' first says of all.
    """

    def lanes() -> Finding:
        silent_s = [clock() - lane.polled_at for lane in replica.lanes.values()]
        count = len(silent_s)
        if max(silent_s, default=0.0) > SILENT_S:
            deaf = sum(one > SILENT_S for one in silent_s)
            return Finding(
                "fail", f"{deaf} of {count} lanes are silent", count, "lanes"
            )
        return Finding("pass", value=count, unit="lanes")

    return Check("lanes", lanes), Check("deployment", _deployment)


def drain_checks(drain: Drain) -> tuple[Check, ...]:
    """
    Whether *drain* works or stands by, and gets something done.
    """

    def lease() -> Finding:
        return Finding("pass", value=float(drain.lease.held), unit="held")

    def draining() -> Finding:
        failing_s = _value("everbus_drain_failing_seconds") or 0.0
        told = f"nothing has got into MongoDB for {failing_s:.0f} s"
        if failing_s >= DRAIN_FAIL_S:
            return Finding("fail", told, failing_s, "s")
        if failing_s >= DRAIN_WARN_S:
            return Finding("warn", told, failing_s, "s")
        return Finding("pass", value=failing_s, unit="s")

    return Check("lease", lease), Check("drain", draining)


def _breakers() -> Iterator[Check]:
    """
    The tiers that this process calls, as their breakers see them.
    """

    def look(tier: str) -> Callable[[], Finding]:
        def breaker() -> Finding:
            state = _value("everbus_breaker_state", {"tier": tier})
            if state is None:
                return Finding("pass", "not configured")
            return _BREAKERS[state]

        return breaker

    for tier in ("warm", "cold"):
        yield Check(tier, look(tier))


def _deployment() -> Finding:
    """
    The verdicts on the whole bus, if this manager is the one that looks at it.
    """
    verdicts = {
        sample.labels["indicator"]: _VERDICTS[sample.value]
        for metric in metrics.HEALTH.collect()
        for sample in metric.samples
    }
    if not verdicts:
        return Finding("pass", "another manager looks at it")
    for status in ("fail", "warn"):
        named = sorted(name for name, verdict in verdicts.items() if verdict == status)
        if named:
            told = f"{', '.join(named)}; everbus doctor tells more"
            return Finding(status, told, len(named), "indicators")
    return Finding("pass")


def _value(name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """
    What this process has told Prometheus under that name; None: nothing.
    """
    return REGISTRY.get_sample_value(name, dict(labels or {}))


def _config(health: Health) -> uvicorn.Config:
    options: dict[str, Any] = {
        "access_log": False,
        "h11_max_incomplete_event_size": 8 * 1024,
        "lifespan": "off",
        "limit_concurrency": MAX_CONNECTIONS,
        "log_config": None,
        "log_level": "warning",
        "server_header": False,
        "timeout_graceful_shutdown": round(STOP_S),
        "timeout_keep_alive": 5,
        "ws": "none",
    }
    return uvicorn.Config(Starlette(routes=health_routes(health)), **options)


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
