"""
Middleware for every request: its id, the bound on its head, its line in the log.

Plain ASGI around all the rest, so that every answer carries the id, also after an
unexpected exception of any other part.
"""

import re
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
import uuid_utils
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everbus.bus.errors import Invalid, TooLarge
from everbus.bus.trace_context import trace_id_of
from everbus.gateway.edge import tracing
from everbus.gateway.edge.problem import (
    REQUEST_ID,
    RefusedRequest,
    internal_error,
    problem,
)

log = structlog.get_logger()

MAX_HEADERS = 64
MAX_HEAD_BYTES = 16 * 1024
MAX_QUERY_BYTES = 8 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Answers belong to one principal, and are JSON only.
_HEADERS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))


class RequestMiddleware:
    """
    ASGI middleware around the edge's application.
    """

    def __init__(
        self, app: ASGIApp, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Serve one ASGI connection.
        """
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent = headers.get(REQUEST_ID, "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid_utils.uuid7().hex
        scope["everbus.request_id"] = request_id
        with (
            tracing.request_span(scope, headers) as span,
            structlog.contextvars.bound_contextvars(
                request=request_id, trace=trace_id_of(scope[tracing.TRACE])
            ),
        ):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
                return
            status = await self._serve(scope, headers, receive, send)
            tracing.describe(span, scope["method"], _route(scope), status)

    async def _serve(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> int:
        """
        Answer the request; return the status.
        """
        began, status = self._clock(), 0
        request_id = scope["everbus.request_id"]

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, request_id)
            await send(message)

        try:
            refusal = _head_refusal(scope, headers)
            if refusal is not None:
                await problem(refusal, request_id)(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except Exception:
            log.exception("request.failed", method=scope["method"], route=_route(scope))
            if status:
                # The answer has begun: only cutting the connection is left.
                raise
            await internal_error(request_id)(scope, receive, send_with_headers)
        finally:
            _log_answer(scope, status, self._clock() - began)
        return status


def _add_headers(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers[REQUEST_ID] = request_id
    for name, value in _HEADERS:
        headers.setdefault(name, value)


def _head_refusal(scope: Scope, headers: Headers) -> RefusedRequest | None:
    fields = headers.raw
    size = sum(len(name) + len(value) for name, value in fields)
    if len(fields) > MAX_HEADERS or size > MAX_HEAD_BYTES:
        return RefusedRequest(
            TooLarge,
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"{len(fields)} header fields of {size} bytes; at most {MAX_HEADERS} and "
            f"{MAX_HEAD_BYTES}",
        )
    query: bytes = scope["query_string"]
    if len(query) > MAX_QUERY_BYTES:
        return RefusedRequest(
            TooLarge,
            HTTPStatus.REQUEST_URI_TOO_LONG,
            f"a query of {len(query)} bytes; at most {MAX_QUERY_BYTES}",
        )
    if len(headers.getlist("authorization")) > 1:
        return RefusedRequest(Invalid, 400, "two Authorization fields; send one")
    return None


def _route(scope: Scope) -> str:
    """
    The path template of the route: no ids, so as many values as routes.
    """
    return getattr(scope.get("route"), "path", "") or "none"


def _log_answer(scope: Scope, status: int, took_s: float) -> None:
    # Successful requests are many: they are logged at debug level.
    write = log.debug if status < HTTPStatus.BAD_REQUEST else log.info
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        write = log.warning
    write(
        "request.answered",
        method=scope["method"],
        route=_route(scope),
        status=status,
        duration_ms=round(took_s * 1000, 1),
    )
