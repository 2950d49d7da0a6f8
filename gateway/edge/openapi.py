"""
What the API says of itself: every status of every route, and what comes with it.

Schemas of answers follow from the very structs that are sent, so they cannot differ
from them.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from bus.errors import ERRORS
from bus.messages import (
    Checkpoint,
    CheckpointPage,
    Difference,
    Session,
    SessionPage,
    Stats,
    TimelinePage,
)
from gateway.edge.problem import MEDIA_TYPE, PASSING, REQUEST_ID, RETRY_AFTER
from gateway.edge.reception import JSON, Reception

Responses = dict[int | str, dict[str, Any]]  # OpenAPI's own words

REF = "#/components/schemas/"
TITLE = "everbus"
ABOUT = (
    "Sessions of multi-agent systems that outlive their agents. Errors are "
    "`application/problem+json` with a stable `code` (`everbus explain CODE`). Writes "
    "take `Idempotency-Key`, `Everbus-Durability` and `Everbus-Timeout`; the state of "
    "a session has its version as ETag."
)

# What any route of the API may refuse with.
_ALWAYS = (401, 403, 406, 408, 422, 429, 431, 414, 500, 503, 504)
_WITH_BODY = (400, 413, 415)
_MEANINGS = {
    400: "What was sent is not strict JSON, or a header makes no sense.",
    401: "No token, or none that counts here.",
    403: "The token's principal may not do this.",
    404: "There is no such thing for whoever asks.",
    406: "Whoever asks takes no JSON.",
    408: "The deadline had passed; nothing was done.",
    409: "The session has another version, or the id is taken.",
    412: "The session's version is not that of If-Match.",
    413: "Too large.",
    414: "The query is too long.",
    415: "Bodies are application/json in UTF-8, not encoded.",
    422: "A field is missing, unknown, protected or unfit; `field` names it.",
    429: "A limit is met; `limit` tells which.",
    431: "The header fields are too many or too large.",
    500: "A fault of ours.",
    503: "A part is away for now.",
    504: "No reply came in time; the outcome is unknown.",
}
_HEADERS: dict[str, dict[str, Any]] = {
    REQUEST_ID: {
        "description": "The id of this request in the log.",
        "schema": {"type": "string"},
    },
    RETRY_AFTER: {
        "description": "In how many seconds to try again.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "ETag": {
        "description": "The session's version, in quotes.",
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
    },
    "Location": {
        "description": "Where it is found.",
        "schema": {"type": "string"},
    },
    "Link": {
        "description": "The next page, if there is one.",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {
        "description": "`Bearer`.",
        "schema": {"type": "string"},
    },
    "Idempotency-Replayed": {
        "description": "`true`: this is the answer to an earlier request with the key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Everbus-Source": {
        "description": "`warm`: the bus is away, this is what MongoDB has.",
        "schema": {"type": "string", "enum": ["warm"]},
    },
    "Everbus-Behind": {
        "description": "For how many seconds the bus has been away.",
        "schema": {"type": "string"},
    },
}
_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "A refusal (RFC 9457); by its code it may have more members.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "enum": sorted(ERRORS)},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "field": {"type": "string", "description": "What is unfit."},
        "current_version": {"type": "integer", "minimum": 0},
        "limit": {"description": "Which limit is met, or how much is allowed."},
        "retry_after_s": {"type": "number", "minimum": 0},
    },
}
_SHOWN_PROBLEM = {
    "type": "urn:everbus:error:version_conflict",
    "title": "Conflict",
    "status": 409,
    "code": "version_conflict",
    "detail": "session 0199 has version 4, not 3; read it and decide anew",
    "request_id": "0199a1b2c3d47e5f8a9b0c1d2e3f4a5b",
    "current_version": 4,
}
_STRUCTS = (
    *(Session, SessionPage, TimelinePage, Checkpoint, CheckpointPage),
    *(Difference, Stats),
)
# What is made here and is no struct of the bus.
_APPENDED: dict[str, Any] = {
    "title": "Appended",
    "type": "object",
    "required": ["seq", "command_id"],
    "properties": {
        "seq": {"type": "integer", "minimum": 1},
        "command_id": {"type": "string"},
    },
}
_TOLD: dict[str, Any] = {
    "title": "Told",
    "type": "object",
    "required": ["command_id"],
    "properties": {"command_id": {"type": "string"}},
}


def read(schema: str, *more: int, headers: tuple[str, ...] = ()) -> Responses:
    """
    What a read may be answered with: *schema*, its problems and those of *more*.
    """
    found = (*headers, "Everbus-Source", "Everbus-Behind")

    return {200: _answer(schema, "Found.", found), **_problems(*_ALWAYS, *more)}


def write(
    status: int,
    schema: str,
    *more: int,
    body: bool = True,
    headers: tuple[str, ...] = (),
) -> Responses:
    """
    What a write may be answered with.
    """
    done = (*headers, "Idempotency-Replayed")
    statuses = (*_ALWAYS, *more, *(_WITH_BODY if body else ()))

    return {status: _answer(schema, "Done.", done), **_problems(*statuses)}


def not_modified() -> Responses:
    """
    The answer to whoever has this version.
    """
    return {304: {"description": "You have this version.", **_headed(("ETag",))}}


def install(app: FastAPI, served: Sequence[BaseRoute]) -> None:
    """
    Have *app*, whose own routes are *served*, describe itself in this way.
    """
    # FastAPI documents replacing the method; there is no other way in.
    app.openapi = _described_by(app, served)  # type: ignore[method-assign]


def _described_by(
    app: FastAPI, served: Sequence[BaseRoute]
) -> Callable[[], dict[str, Any]]:
    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, served)
        return app.openapi_schema

    return described


def _described(app: FastAPI, served: Sequence[BaseRoute]) -> dict[str, Any]:
    told = get_openapi(
        title=TITLE, version=app.version, description=ABOUT, routes=app.routes
    )
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template=REF + "{name}")
    components = told.setdefault("components", {})
    components.setdefault("schemas", {}).update(
        {**schemas, "Problem": _PROBLEM, "Appended": _APPENDED, "Told": _TOLD}
    )
    components["headers"] = _HEADERS
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    for route in served:
        if isinstance(route, Reception):
            for method in route.methods or ():
                operation = told["paths"][route.path_format][method.lower()]
                operation["security"] = [{"bearer": []}]
                _correct(operation)
    return told


def _correct(operation: dict[str, Any]) -> None:
    # What FastAPI assumes of 422 is its own shape, not ours.
    operation["responses"]["422"] = _problem(422)


def _answer(schema: str, description: str, headers: tuple[str, ...]) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": REF + schema}}} if schema else None
    told = {"description": description, **_headed(headers)}

    return {**told, "content": content} if content else told


def _headed(headers: tuple[str, ...]) -> dict[str, Any]:
    return {
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in (REQUEST_ID, *headers)
        }
    }


def _problems(*statuses: int) -> Responses:
    return {status: _problem(status) for status in sorted(set(statuses))}


def _problem(status: int) -> dict[str, Any]:
    headers: tuple[str, ...] = (RETRY_AFTER,) if status in PASSING else ()
    if status == HTTPStatus.UNAUTHORIZED:
        headers = ("WWW-Authenticate",)
    shape: dict[str, Any] = {"schema": {"$ref": REF + "Problem"}}
    if status == HTTPStatus.CONFLICT:
        shape["example"] = _SHOWN_PROBLEM

    return {
        "description": _MEANINGS[status],
        "content": {MEDIA_TYPE: shape},
        **_headed(headers),
    }
