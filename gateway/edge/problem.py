"""
Refusals as people and programs read them over HTTP: problem+json (RFC 9457).

One shape for everything that is not an answer, FastAPI's own refusals included. The
`code` is that of `bus.errors`; nothing of what was sent is quoted but its field names,
and nothing of our insides but the request's id, which the log has beside the cause.
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

from bus.errors import (
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

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "X-Request-Id"
RETRY_AFTER = "Retry-After"
# After these the same request may well be taken: they say when to try again.
PASSING = frozenset({429, 503, 504})
RETRY_AFTER_S = 1
MAX_FIELD_CHARS = 80

# What a person does about each, where the message does not say.
UNKNOWN_OUTCOME = (
    "no reply came in time, so the outcome is unknown; send the request again with "
    "the same Idempotency-Key, or read the session to see"
)
DEFECT = "a fault of ours; tell whoever runs this edge the request_id"
_OUR_CODES: Mapping[int, type[EverbusError]] = {
    401: Unauthenticated,
    404: NotFound,
    413: TooLarge,
    414: TooLarge,
    429: Overloaded,
    431: TooLarge,
    503: Unavailable,
}


class Refused(EverbusError):
    """
    A refusal for which HTTP has a status of its own.

    Attributes:
        status: that status, in place of the code's.
        headers: what the answer carries besides.
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
    What *error* looks like to whoever asked.
    """
    status, code = error.status, error.code
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        status, code, headers = error.refused_status, error.refused_code, error.headers
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in PASSING:
        after_s = error.details.get("retry_after_s", RETRY_AFTER_S)
        headers.setdefault(RETRY_AFTER, str(max(1, math.ceil(after_s))))
    told = {
        **error.details,
        "type": f"urn:everbus:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": _detail(error),
        "request_id": request_id,
    }
    return Response(encode(told), status, headers, MEDIA_TYPE)


def install(app: FastAPI, served: Sequence[BaseRoute]) -> None:
    """
    Have *app*, which serves the routes *served*, refuse in this way.
    """
    app.state.served = served
    app.add_exception_handler(EverbusError, _refused)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(RequestValidationError, _unfit)


def defect(request_id: str) -> Response:
    """
    What a caller is told of an exception that nobody expected: nothing of it.
    """
    return problem(EverbusError(DEFECT), request_id)


def request_id_of(request: Request) -> str:
    """
    The id under which the log knows the request.
    """
    return str(request.scope.get("everbus.request_id", ""))


def _detail(error: EverbusError) -> str:
    if isinstance(error, ReplyTimeout):
        # The SDK's message names a call that there is not over HTTP.
        return UNKNOWN_OUTCOME
    if type(error).__name__ == "Defect":
        return DEFECT
    return error.message


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, EverbusError):
        raise error
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(
        error, Unavailable | Refused
    ):
        log.error("request.failed", code=error.code, message=error.message)
    conditional = "if-match" in request.headers
    if isinstance(error, VersionConflict) and conditional:
        error = Refused(type(error), 412, error.message, **error.details)

    return problem(error, request_id_of(request))


async def _not_served(request: Request, error: Exception) -> Response:
    """
    What Starlette and FastAPI refuse by themselves.
    """
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    status = error.status_code
    kind = _OUR_CODES.get(status, Invalid)
    message = f"{error.detail}; /docs tells what is served here"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
        message = f"this path takes {headers['Allow']}"

    return problem(Refused(kind, status, message, headers), request_id_of(request))


async def _unfit(request: Request, error: Exception) -> Response:
    """
    A path, query, header or body that its model refuses; its values are not quoted.
    """
    if not isinstance(error, RequestValidationError):
        raise error
    wrongs = [
        {"field": _field(one["loc"]), "message": str(one["msg"])}
        for one in error.errors()[:20]
    ]
    first = wrongs[0]
    refused = Invalid(
        f"{first['field']}: {first['message']}", field=first["field"], errors=wrongs
    )
    return problem(refused, request_id_of(request))


def _field(location: tuple[Any, ...]) -> str:
    """
    Where it is, without the part of the request: `patch.tags`, not `body.patch.tags`.
    """
    path = ".".join(str(part) for part in location[1:]) or str(location[0])

    return ascii(path)[1:-1][:MAX_FIELD_CHARS]


def _methods(request: Request) -> list[str]:
    """
    What any route takes on this path: Starlette tells only the first one's.
    """
    taken: set[str] = set()
    for route in request.app.state.served:
        if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE:
            taken |= route.methods or set()

    return sorted(taken)


def expired(within_s: float, what: str) -> Expired:
    """
    *what* took longer than it may.
    """
    return Expired(f"{what} took longer than {within_s:g} s; nothing was done")
