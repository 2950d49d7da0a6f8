"""
The edge's application: its routes and the middleware around them.
"""

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route

from everbus.gateway.edge import (
    history,
    openapi,
    problem,
    sessions,
    statistics,
    timeline,
    turns,
)
from everbus.gateway.edge.console.routes import console_routes
from everbus.gateway.edge.context import EdgeContext
from everbus.gateway.edge.documentation import documentation_routes
from everbus.gateway.edge.head_requests import HeadRequests
from everbus.gateway.edge.idempotency import IdempotencyCache
from everbus.gateway.edge.limits import Limiter
from everbus.gateway.edge.live import live_router
from everbus.gateway.edge.metrics import RequestMetrics
from everbus.gateway.edge.middleware import RequestMiddleware

VERSION = "1"
# For the origins of EVERBUS_EDGE_CORS_ORIGINS. Without credentials: tokens are sent by
# the page, and never by the browser on its own.
_CORS: dict[str, Any] = {
    "allow_credentials": False,
    "allow_methods": ("GET", "HEAD", "POST", "PATCH", "DELETE"),
    "allow_headers": (
        *("Authorization", "Content-Type", "Idempotency-Key", "If-Match"),
        *("If-None-Match", "Last-Event-ID", "Everbus-Durability", "Everbus-Timeout"),
        *("X-Request-Id", "traceparent"),
    ),
    "expose_headers": (
        *("ETag", "Link", "Location", "Retry-After", "X-Request-Id"),
        *("Idempotency-Replayed", "Everbus-Source", "Everbus-Behind"),
    ),
}


def edge_app(context: EdgeContext, extra_routes: Sequence[BaseRoute] = ()) -> FastAPI:
    """
    The API on *context*, with *extra_routes* (probes and metrics) beside it.
    """
    app = FastAPI(
        title=openapi.TITLE,
        version=VERSION,
        # A redirect would lose a body posted to `/sessions/`.
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if context.docs else None,
    )
    app.state.context = context
    app.state.limiter = Limiter(context.limits, time.monotonic)
    app.state.idempotency = IdempotencyCache(time.monotonic)
    routers = (
        *(sessions.router, timeline.router, turns.router),
        *(history.router, statistics.router),
        live_router(context),
    )
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute) and route.status_code is None:
            # FastAPI infers no status from a response class with its own constructor.
            route.status_code = HTTPStatus.OK
    for router in routers:
        app.include_router(router)
    app.router.routes.extend(extra_routes)
    documentation = documentation_routes() if context.docs else []
    app.router.routes.extend(documentation)
    app.router.routes.extend(console_routes() if context.console else [])
    served = [route for router in routers for route in router.routes]
    described = [route for route in app.router.routes if isinstance(route, Route)]
    problem.install(app, [*served, *described])
    openapi.install(app, served)
    # The middleware added last runs first.
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestMetrics)
    app.add_middleware(RequestMiddleware)
    if context.origins:
        # Outermost, so that pages can read refusals, too.
        app.add_middleware(CORSMiddleware, **_CORS, allow_origins=context.origins)

    return app
