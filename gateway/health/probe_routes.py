"""
The probes of one process over HTTP: the same five routes on every role.
"""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from everbus.gateway.health.process import NOT_STARTED, ProcessHealth

MEDIA_TYPE = "application/health+json"
# Details of a process and its metrics are for its operators.
PUBLIC = frozenset({"/livez", "/readyz", "/startupz"})


def probe_routes(health: ProcessHealth, *, public: bool = False) -> list[Route]:
    """
    Routes that report *health*; without authentication, like all probes.

    Args:
        public: only what a load balancer asks; a port of its own has all of them.
    """

    async def livez(_: Request) -> Response:
        return _json(200, {"status": "pass"})

    async def readyz(_: Request) -> Response:
        return _probe(health.unready_reason())

    async def startupz(_: Request) -> Response:
        return _probe("" if health.started else NOT_STARTED)

    async def report(_: Request) -> Response:
        found = health.report()
        return _json(503 if found["status"] == "fail" else 200, found)

    async def metrics(_: Request) -> Response:
        headers = {"content-type": CONTENT_TYPE_LATEST}
        return Response(generate_latest(), headers=headers)

    routes = {
        "/livez": livez,
        "/readyz": readyz,
        "/startupz": startupz,
        "/health": report,
        "/metrics": metrics,
    }
    return [
        Route(path, served, methods=["GET"])
        for path, served in routes.items()
        if path in PUBLIC or not public
    ]


def _probe(reason: str) -> Response:
    if reason:
        return _json(503, {"status": "fail", "output": reason})
    return _json(200, {"status": "pass"})


def _json(status: int, content: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}

    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)
