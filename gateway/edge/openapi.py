"""
The OpenAPI description: every status of every route, with its headers and schema.

Schemas of answers are derived from the structs that are sent, so they cannot differ.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from everbus.bus.errors import ERRORS
from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    Difference,
    Session,
    SessionPage,
    Stats,
    TimelinePage,
)
from everbus.gateway.edge.problem import MEDIA_TYPE, REQUEST_ID, RETRY_AFTER, RETRYABLE
from everbus.gateway.edge.route import JSON

Responses = dict[int | str, dict[str, Any]]  # as OpenAPI has them

REF = "#/components/schemas/"
TITLE = "everbus"
ABOUT = (
    "Sessions of multi-agent systems, durable beyond their agents. Errors are "
    "`application/problem+json` with a stable `code` (`everbus explain CODE`). Writes "
    "take `Idempotency-Key`, `Everbus-Durability` and `Everbus-Timeout`; the state of "
    "a session has its version as ETag."
)

# Statuses that any route may refuse with.
_ALWAYS = (401, 403, 406, 408, 422, 429, 431, 414, 500, 503, 504)
_WITH_BODY = (400, 413, 415)
_DESCRIPTIONS = {
    400: "The body is not strict JSON, or a header is malformed.",
    401: "No token, or an invalid one.",
    403: "The token's principal may not do this.",
    404: "The caller sees no such thing.",
    406: "The client does not accept JSON.",
    408: "The deadline passed; nothing was done.",
    409: "The session has another version or last seq, or the id is taken.",
    412: "The session's version is not that of If-Match.",
    413: "Too large.",
    414: "The query is too long.",
    415: "Bodies are application/json in UTF-8, without Content-Encoding.",
    422: "A field is missing, unknown, protected or invalid; `field` names it.",
    429: "A limit is exceeded; `limit` names it.",
    431: "The header fields are too many or too large.",
    500: "Internal error.",
    503: "A part of the system is away.",
    504: "No reply arrived in time; the outcome is unknown.",
}
_HEADERS: dict[str, dict[str, Any]] = {
    REQUEST_ID: {
        "description": "The id of this request in the log.",
        "schema": {"type": "string"},
    },
    RETRY_AFTER: {
        "description": "Seconds until the next attempt.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "ETag": {
        "description": "The session's version, in quotes.",
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
    },
    "Location": {
        "description": "URL of the created session.",
        "schema": {"type": "string"},
    },
    "Link": {
        "description": "The next page, if any.",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {
        "description": "`Bearer`.",
        "schema": {"type": "string"},
    },
    "Idempotency-Replayed": {
        "description": "`true`: the answer to an earlier request with this key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Everbus-Source": {
        "description": "`warm`: the bus is away, MongoDB answered.",
        "schema": {"type": "string", "enum": ["warm"]},
    },
    "Everbus-Behind": {
        "description": "Seconds since the bus was last reachable.",
        "schema": {"type": "string"},
    },
}
_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "An error (RFC 9457); some codes have more members.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "enum": sorted(ERRORS)},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "field": {"type": "string", "description": "The invalid field."},
        "current_version": {"type": "integer", "minimum": 0},
        "current_last_seq": {"type": "integer", "minimum": 0},
        "limit": {"description": "The exceeded limit: its name or its value."},
        "retry_after_s": {"type": "number", "minimum": 0},
    },
}
_PROBLEM_EXAMPLE = {
    "type": "urn:everbus:error:version_conflict",
    "title": "Conflict",
    "status": 409,
    "code": "version_conflict",
    "detail": "session 0199 has version 4, not 3; read it and decide anew",
    "request_id": "0199a1b2c3d47e5f8a9b0c1d2e3f4a5b",
    "current_version": 4,
    "current_last_seq": 12,
}
_STRUCTS = (
    *(Session, SessionPage, TimelinePage, Checkpoint, CheckpointPage),
    *(Difference, Stats),
)
# Answers that are no struct of the bus.
_APPENDED: dict[str, Any] = {
    "title": "Appended",
    "type": "object",
    "required": ["seq", "command_id"],
    "properties": {
        "seq": {"type": "integer", "minimum": 1},
        "command_id": {"type": "string"},
    },
}
_TURN: dict[str, Any] = {
    "title": "TakenTurn",
    "type": "object",
    "required": ["turn", "version", "seqs", "command_id"],
    "properties": {
        "turn": {"type": "string"},
        "version": {"type": "integer", "minimum": 1},
        "seqs": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "command_id": {"type": "string"},
    },
}
_BROADCAST: dict[str, Any] = {
    "title": "Told",
    "type": "object",
    "required": ["command_id"],
    "properties": {"command_id": {"type": "string"}},
}


def read(schema: str, *more: int, headers: tuple[str, ...] = ()) -> Responses:
    """
    Responses of a read: *schema*, the problems of all routes, and those of *more*.
    """
    headers_ = (*headers, "Everbus-Source", "Everbus-Behind")

    return {200: _answer(schema, "Found.", headers_), **_problems(*_ALWAYS, *more)}


def write(
    status: int,
    schema: str,
    *more: int,
    body: bool = True,
    headers: tuple[str, ...] = (),
) -> Responses:
    """
    Responses of a write.
    """
    done = (*headers, "Idempotency-Replayed")
    statuses = (*_ALWAYS, *more, *(_WITH_BODY if body else ()))

    return {status: _answer(schema, "Done.", done), **_problems(*statuses)}


def stream(description: str) -> Responses:
    """
    Responses of a live stream, up to its first event.
    """
    content = {"text/event-stream": {"schema": {"type": "string"}}}
    opened = {"description": description, "content": content, **_with_headers(())}
    # It takes no body and waits for no command: nothing of it is 406 or 408.
    refused = (401, 403, 404, 414, 422, 429, 431, 500, 503, 504)

    return {200: opened, **_problems(*refused)}


def not_modified() -> Responses:
    """
    The response to a client with the current version.
    """
    return {304: {"description": "You have this version.", **_with_headers(("ETag",))}}


def install(app: FastAPI, served: Sequence[BaseRoute]) -> None:
    """
    Install this description in *app*, whose API routes are *served*.
    """
    # FastAPI documents replacing the method as the only way.
    app.openapi = _describer(app, served)  # type: ignore[method-assign]


def _describer(
    app: FastAPI, served: Sequence[BaseRoute]
) -> Callable[[], dict[str, Any]]:
    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, served)
        return app.openapi_schema

    return describe


def _describe(app: FastAPI, served: Sequence[BaseRoute]) -> dict[str, Any]:
    document = get_openapi(
        title=TITLE, version=app.version, description=ABOUT, routes=app.routes
    )
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template=REF + "{name}")
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(
        {
            **schemas,
            "Problem": _PROBLEM,
            "Appended": _APPENDED,
            "TakenTurn": _TURN,
            "Told": _BROADCAST,
        }
    )
    components["headers"] = _HEADERS
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    for route in served:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                operation["security"] = [{"bearer": []}]
                _correct(operation)
    return document


def _correct(operation: dict[str, Any]) -> None:
    # FastAPI assumes its own shape of 422.
    operation["responses"]["422"] = _problem(422)


def _answer(schema: str, description: str, headers: tuple[str, ...]) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": REF + schema}}} if schema else None
    document = {"description": description, **_with_headers(headers)}

    return {**document, "content": content} if content else document


def _with_headers(headers: tuple[str, ...]) -> dict[str, Any]:
    return {
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in (REQUEST_ID, *headers)
        }
    }


def _problems(*statuses: int) -> Responses:
    return {status: _problem(status) for status in sorted(set(statuses))}


def _problem(status: int) -> dict[str, Any]:
    headers: tuple[str, ...] = (RETRY_AFTER,) if status in RETRYABLE else ()
    if status == HTTPStatus.UNAUTHORIZED:
        headers = ("WWW-Authenticate",)
    shape: dict[str, Any] = {"schema": {"$ref": REF + "Problem"}}
    if status == HTTPStatus.CONFLICT:
        shape["example"] = _PROBLEM_EXAMPLE

    return {
        "description": _DESCRIPTIONS[status],
        "content": {MEDIA_TYPE: shape},
        **_with_headers(headers),
    }
