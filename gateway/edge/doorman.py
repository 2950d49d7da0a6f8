"""
What befalls every request: an id, a bound on its head, a line in the log.

Plain ASGI around everything else, so that no answer leaves without the id, an
unexpected exception of any other part included.
"""

import re
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
import uuid_utils
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bus.errors import Invalid, TooLarge
from bus.tracing import trace_id_of
from gateway.edge import tracing
from gateway.edge.problem import REQUEST_ID, Refused, defect, problem

log = structlog.get_logger()

MAX_HEADERS = 64
MAX_HEAD_BYTES = 16 * 1024
MAX_QUERY_BYTES = 8 * 1024
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What is answered is somebody's own, and nothing but JSON.
_ALWAYS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))


class Doorman:
    """
    The ASGI application around the edge's own.
    """

    def __init__(
        self, app: ASGIApp, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Serve one connection of ASGI's.
        """
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        known = given if _SANE_ID.fullmatch(given) else uuid_utils.uuid7().hex
        scope["everbus.request_id"] = known
        with (
            tracing.served(scope, headers) as span,
            structlog.contextvars.bound_contextvars(
                request=known, trace=trace_id_of(scope[tracing.TRACE])
            ),
        ):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
                return
            status = await self._attend(scope, headers, receive, send)
            tracing.tell(span, scope["method"], _route(scope), status)

    async def _attend(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> int:
        """
        Have the request answered; with which status.
        """
        began, status = self._clock(), 0
        known = scope["everbus.request_id"]

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, known)
            await send(message)

        try:
            refused = _unfit_head(scope, headers)
            if refused is not None:
                await problem(refused, known)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Exception:
            log.exception("request.failed", method=scope["method"], route=_route(scope))
            if status:
                # The answer has begun: cutting the connection is all that is left.
                raise
            await defect(known)(scope, receive, sending)
        finally:
            _tell(scope, status, self._clock() - began)
        return status


def _add_headers(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers[REQUEST_ID] = request_id
    for name, value in _ALWAYS:
        headers.setdefault(name, value)


def _unfit_head(scope: Scope, headers: Headers) -> Refused | None:
    fields = headers.raw
    size = sum(len(name) + len(value) for name, value in fields)
    if len(fields) > MAX_HEADERS or size > MAX_HEAD_BYTES:
        return Refused(
            TooLarge,
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"{len(fields)} header fields of {size} bytes; at most {MAX_HEADERS} and "
            f"{MAX_HEAD_BYTES}",
        )
    query: bytes = scope["query_string"]
    if len(query) > MAX_QUERY_BYTES:
        return Refused(
            TooLarge,
            HTTPStatus.REQUEST_URI_TOO_LONG,
            f"a query of {len(query)} bytes; at most {MAX_QUERY_BYTES}",
        )
    if len(headers.getlist("authorization")) > 1:
        return Refused(Invalid, 400, "two Authorization fields; send one")
    return None


def _route(scope: Scope) -> str:
    """
    The path as the route has it: no ids, and no more of them than there are routes.
    """
    return getattr(scope.get("route"), "path", "") or "none"


def _tell(scope: Scope, status: int, took_s: float) -> None:
    # Of what went well there is much; whoever wants to see it turns debug on.
    tell = log.debug if status < HTTPStatus.BAD_REQUEST else log.info
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        tell = log.warning
    tell(
        "request.answered",
        method=scope["method"],
        route=_route(scope),
        status=status,
        duration_ms=round(took_s * 1000, 1),
    )
