"""
The steps of every API request before its handler: token, limits, Accept, body.

The order matters. The token is verified before a byte of the body is read, limits are
checked before any work, sizes while the body arrives; FastAPI sees the request last.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from everbus.bus.errors import Invalid, TooLarge
from everbus.bus.messages import MAX_COMMAND_BYTES
from everbus.gateway.edge.caller import Caller, authenticate, limiter_of
from everbus.gateway.edge.json_body import parse_body
from everbus.gateway.edge.problem import RefusedRequest, deadline_exceeded

# A body holds one command and the JSON around it.
MAX_BODY_BYTES = MAX_COMMAND_BYTES + 4 * 1024
BODY_WITHIN_S = 10.0
JSON = "application/json"
# Values of Accept that allow a JSON answer; problems are sent in any case.
_ACCEPTABLE = frozenset({"*/*", "application/*", JSON, "application/problem+json"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ApiRequest(Request):
    """
    A request with its body read and parsed as strict JSON.
    """

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._received = body
        # Here, since FastAPI would report an error of json() as a fault of its own.
        self._value = parse_body(body) if body else None

    async def body(self) -> bytes:
        """
        The raw body.
        """
        return self._received

    async def json(self) -> Any:  # a JSON value
        """
        The value in the body; None without a body.
        """
        return self._value


class ApiRoute(APIRoute):
    """
    A route that runs these steps.
    """

    def get_route_handler(self) -> Handler:
        """
        The handler of this route behind the steps.
        """
        serve = super().get_route_handler()
        takes_body = self.body_field is not None
        takes_query = bool(self.dependant.query_params)

        async def receive(request: Request) -> Response:
            caller = await authenticate(request, request.app.state.context)
            limiter = limiter_of(request)
            limiter.check_rate(caller.principal)
            with limiter.in_flight(caller.principal):
                request.scope["everbus.caller"] = caller
                _check_accept(request)
                if not takes_query:
                    refuse_unknown_query(request.query_params)
                body = await _body(request) if takes_body else b""
                return await serve(ApiRequest(request, body))

        return receive


def caller_in(request: Request) -> Caller:
    """
    The caller that the route's first step has stored.
    """
    caller: Caller = request.scope["everbus.caller"]

    return caller


def refuse_unknown_query(query: Iterable[str], known: Iterable[str] = ()) -> None:
    """
    Refuse parameters that would have no effect: one may be a condition of the caller's.

    A route whose parameters are one model refuses others by that.

    Raises:
        Invalid: naming the first unknown one.
    """
    allowed = ", ".join(known)
    for name in query:
        if name not in known:
            raise Invalid(
                f"there is no query parameter {name[:40]!r} here; "
                + (f"known: {allowed}" if allowed else "this route takes none"),
                field=name[:40],
            )


def _check_accept(request: Request) -> None:
    """
    Refuse a client that does not accept JSON; quality values are ignored.
    """
    accepted = request.headers.get("accept", "")
    kinds = {one.partition(";")[0].strip().lower() for one in accepted.split(",")}
    if accepted.strip() and kinds.isdisjoint(_ACCEPTABLE):
        raise RefusedRequest(
            Invalid, 406, f"answers are {JSON}; accept it", field="Accept"
        )


async def _body(request: Request) -> bytes:
    """
    The body; reads at most MAX_BODY_BYTES and one chunk.

    Raises:
        RefusedRequest: 413 too large, 415 not JSON or encoded, 400 cut off.
        Expired: it did not arrive in time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            body = await _read_chunks(request)
    except TimeoutError:
        raise deadline_exceeded(BODY_WITHIN_S, "the body") from None
    except ClientDisconnect:
        raise RefusedRequest(
            Invalid, 400, "the body ended early", field="body"
        ) from None
    if body:
        _check_media(request)

    return body


async def _read_chunks(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(chunk)

    return b"".join(chunks)


def _check_media(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        # A small compressed body may be huge once it is decoded.
        raise RefusedRequest(
            Invalid,
            415,
            "encoded bodies are not accepted; send no Content-Encoding",
            field="Content-Encoding",
        )
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    charset = str(message.get_param("charset") or "utf-8").lower()
    # get_content_type() returns text/plain for a value that it cannot parse.
    if message.get_content_type() != JSON or charset not in ("utf-8", "utf8"):
        raise RefusedRequest(
            Invalid, 415, f"send Content-Type: {JSON}", field="Content-Type"
        )


def _too_large() -> TooLarge:
    return TooLarge(
        f"body of more than {MAX_BODY_BYTES} bytes; store large things elsewhere and "
        "append a reference",
        limit=MAX_BODY_BYTES,
    )
