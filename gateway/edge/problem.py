"""
Errors over HTTP: problem+json (RFC 9457), for people and programs.

One shape for every error, FastAPI's own included. The `code` is that of `bus.errors`.
A problem quotes field names of the request and never values; of the inside it shows
the request id alone, which the log has beside the cause.
"""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec.json import encode
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from everbus.bus.errors import (
    EverbusError,
    Expired,
    Invalid,
    NotFound,
    Overloaded,
    ReplyTimeout,
    TooLarge,
    Unauthenticated,
    Unavailable,
    VersionConflict,
)
from everbus.bus.server_errors import CredentialsRefused, RightsRefused

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "X-Request-Id"
RETRY_AFTER = "Retry-After"
# The same request may succeed later: these carry Retry-After.
RETRYABLE = frozenset({429, 503, 504})
RETRY_AFTER_S = 1
MAX_FIELD_CHARS = 80

# Remedies, where the error's message has none.
UNKNOWN_OUTCOME = (
    "no reply arrived in time and the outcome is unknown; send the request again with "
    "the same Idempotency-Key, or read the session to see"
)
INTERNAL_ERROR = "a fault of ours; give the request_id to the operator of this edge"
_KIND_BY_STATUS: Mapping[int, type[EverbusError]] = {
    401: Unauthenticated,
    404: NotFound,
    413: TooLarge,
    414: TooLarge,
    429: Overloaded,
    431: TooLarge,
    503: Unavailable,
}


class RefusedRequest(EverbusError):
    """
    A refusal with an HTTP status of its own.

    Attributes:
        refused_code: code of the error class that it stands for.
        refused_status: HTTP status, in place of that class's.
        headers: additional headers of the answer.
    """

    def __init__(
        self,
        kind: type[EverbusError],
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        /,
        **details: Any,  # JSON values
    ) -> None:
        super().__init__(message, **details)
        self.refused_code = kind.code
        self.refused_status = status
        self.headers = dict(headers or {})


def problem(error: EverbusError, request_id: str) -> Response:
    """
    *error* as a response to the client.
    """
    if isinstance(error, RightsRefused | CredentialsRefused):
        # The edge's own user on the bus: no fault of the client's token.
        error = Unavailable("the bus refuses this edge; try again later")
    status, code = error.status, error.code
    headers: dict[str, str] = {}
    if isinstance(error, RefusedRequest):
        status, code, headers = error.refused_status, error.refused_code, error.headers
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in RETRYABLE:
        after_s = error.details.get("retry_after_s", RETRY_AFTER_S)
        headers.setdefault(RETRY_AFTER, str(max(1, math.ceil(after_s))))
    document = {
        **error.details,
        "type": f"urn:everbus:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": _detail(error),
        "request_id": request_id,
    }
    return Response(encode(document), status, headers, MEDIA_TYPE)


def install(app: FastAPI, served: Sequence[BaseRoute]) -> None:
    """
    Install the error handlers in *app*, whose routes are *served*.
    """
    app.state.served = served
    app.add_exception_handler(EverbusError, _everbus_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


def internal_error(request_id: str) -> Response:
    """
    The response to an unexpected exception; it shows nothing of it.
    """
    return problem(EverbusError(INTERNAL_ERROR), request_id)


def request_id_of(request: Request) -> str:
    """
    The id of the request in the log.
    """
    return str(request.scope.get("everbus.request_id", ""))


def _detail(error: EverbusError) -> str:
    if isinstance(error, ReplyTimeout):
        # The SDK's message names a call that HTTP does not have.
        return UNKNOWN_OUTCOME
    if type(error).__name__ == "Defect":
        return INTERNAL_ERROR
    return error.message


async def _everbus_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, EverbusError):
        raise error
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(
        error, Unavailable | RefusedRequest
    ):
        log.error("request.failed", code=error.code, message=error.message)
    conditional = "if-match" in request.headers
    if isinstance(error, VersionConflict) and conditional:
        error = RefusedRequest(type(error), 412, error.message, **error.details)

    return problem(error, request_id_of(request))


async def _http_error(request: Request, error: Exception) -> Response:
    """
    Refusals of Starlette and FastAPI themselves.
    """
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    status = error.status_code
    if request.method == "OPTIONS":
        taken = _methods(request)
        if taken:
            return Response(status_code=204, headers={"Allow": ", ".join(taken)})
    kind = _KIND_BY_STATUS.get(status, Invalid)
    message = f"{error.detail}; /docs lists the routes"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
        message = f"this path takes {headers['Allow']}"

    return problem(
        RefusedRequest(kind, status, message, headers), request_id_of(request)
    )


async def _validation_error(request: Request, error: Exception) -> Response:
    """
    A path, query, header or body that its model refuses; values are not quoted.
    """
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [
        {"field": _field(one["loc"]), "message": str(one["msg"])}
        for one in error.errors()[:20]
    ]
    first = errors[0]
    refused = Invalid(
        f"{first['field']}: {first['message']}", field=first["field"], errors=errors
    )
    return problem(refused, request_id_of(request))


def _field(location: tuple[Any, ...]) -> str:
    """
    The field's path without the part of the request: `patch.tags`, not
    `body.patch.tags`.
    """
    path = ".".join(str(part) for part in location[1:]) or str(location[0])

    return ascii(path)[1:-1][:MAX_FIELD_CHARS]


def _methods(request: Request) -> list[str]:
    """
    Methods of all routes on this path, or of the whole edge for `*` (RFC 9110, 9.3.7).

    Starlette reports the first route's only.
    """
    whole = request.scope["path"] == "*"
    taken: set[str] = set()
    for route in request.app.state.served:
        if isinstance(route, Route) and (
            whole or route.matches(request.scope)[0] != Match.NONE
        ):
            taken |= route.methods or set()
    if "GET" in taken:
        taken.add("HEAD")

    return sorted(taken | {"OPTIONS"}) if taken else []


def deadline_exceeded(within_s: float, what: str) -> Expired:
    """
    The error for *what* exceeding its deadline of *within_s*.
    """
    return Expired(f"{what} took longer than {within_s:g} s; nothing was done")
