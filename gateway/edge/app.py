"""
The edge's application: its routes, and what stands around them.
"""

import time
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from gateway.edge import checkpoints, openapi, problem, sessions, statistics, timeline
from gateway.edge.doorman import Doorman
from gateway.edge.idempotency import Repetitions
from gateway.edge.limits import Limiter
from gateway.edge.live import live_router
from gateway.edge.metrics import Measured
from gateway.edge.parts import EdgeParts

VERSION = "1"


def edge_app(parts: EdgeParts, also: Sequence[BaseRoute] = ()) -> FastAPI:
    """
    The API on *parts*, and the routes of *also* beside it: health and metrics.
    """
    app = FastAPI(
        title=openapi.TITLE,
        version=VERSION,
        # A body that was posted to `/sessions/` must not be lost by a redirect.
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.parts = parts
    app.state.limiter = Limiter(parts.limits, time.monotonic)
    app.state.repetitions = Repetitions(time.monotonic)
    routers = (
        *(sessions.router, timeline.router, checkpoints.router, statistics.router),
        live_router(parts),
    )
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute) and route.status_code is None:
            # A response class with a constructor of its own does not tell.
            route.status_code = HTTPStatus.OK
    for router in routers:
        app.include_router(router)
    app.router.routes.extend(also)
    served = [route for router in routers for route in router.routes]
    problem.install(app, [*served, *also])
    openapi.install(app, served)
    # The last one that is added is the first one that is asked.
    app.add_middleware(Measured)
    app.add_middleware(Doorman)

    return app
