"""
How a request to the API is received: who asks, how often, how much, and what.

The order is the point. A token is judged before a byte of the body is read, limits
before any work, sizes while the body comes in; only then does FastAPI see the request.
"""

import asyncio
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from bus.errors import Invalid, TooLarge
from bus.messages import MAX_COMMAND_BYTES
from gateway.edge.caller import Caller, caller_of, limiter_of
from gateway.edge.problem import Refused, expired
from gateway.edge.strict_json import parsed

# A body is a command and the JSON around it.
MAX_BODY_BYTES = MAX_COMMAND_BYTES + 4 * 1024
BODY_WITHIN_S = 10.0
JSON = "application/json"
# What a client may accept to be answered in JSON; problems come in any case.
_ACCEPTABLE = frozenset({"*/*", "application/*", JSON, "application/problem+json"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Received(Request):
    """
    A request whose body is here, and is strict JSON.
    """

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._received = body
        # Now, since FastAPI would take what this raises for a fault of its own.
        self._value = parsed(body) if body else None

    async def body(self) -> bytes:
        """
        The body as it came.
        """
        return self._received

    async def json(self) -> Any:  # a JSON value
        """
        The value in the body; None if there is none.
        """
        return self._value


class Reception(APIRoute):
    """
    A route that receives its requests in that order.
    """

    def get_route_handler(self) -> Handler:
        """
        What serves a request of this route.
        """
        serve = super().get_route_handler()
        takes_body = self.body_field is not None

        async def receive(request: Request) -> Response:
            caller = await caller_of(request, request.app.state.parts)
            limiter = limiter_of(request)
            limiter.check_rate(caller.principal)
            with limiter.at_work(caller.principal):
                request.scope["everbus.caller"] = caller
                _check_accept(request)
                body = await _body(request) if takes_body else b""
                return await serve(Received(request, body))

        return receive


def caller_in(request: Request) -> Caller:
    """
    Who asks, as the reception found out.
    """
    caller: Caller = request.scope["everbus.caller"]

    return caller


def _check_accept(request: Request) -> None:
    """
    Refuse who takes no JSON; what it takes how gladly makes no difference.
    """
    wanted = request.headers.get("accept", "")
    kinds = {one.partition(";")[0].strip().lower() for one in wanted.split(",")}
    if wanted.strip() and kinds.isdisjoint(_ACCEPTABLE):
        raise Refused(Invalid, 406, f"answers are {JSON}; accept it", field="Accept")


async def _body(request: Request) -> bytes:
    """
    The body, never more of it than MAX_BODY_BYTES and a chunk.

    Raises:
        Refused: 413 too large, 415 not JSON or encoded, 400 cut off.
        Expired: it did not come in time.
    """
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            body = await _read(request)
    except TimeoutError:
        raise expired(BODY_WITHIN_S, "the body") from None
    except ClientDisconnect:
        raise Refused(Invalid, 400, "the body ended early", field="body") from None
    if body:
        _check_media(request)

    return body


async def _read(request: Request) -> bytes:
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
        # What is small on its way may be huge here.
        raise Refused(
            Invalid,
            415,
            "bodies are taken as they are; send no Content-Encoding",
            field="Content-Encoding",
        )
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    charset = str(message.get_param("charset") or "utf-8").lower()
    # get_content_type() takes what it cannot read for text/plain.
    if message.get_content_type() != JSON or charset not in ("utf-8", "utf8"):
        raise Refused(Invalid, 415, f"send Content-Type: {JSON}", field="Content-Type")


def _too_large() -> TooLarge:
    return TooLarge(
        f"body of more than {MAX_BODY_BYTES} bytes; store large things elsewhere and "
        "append a reference",
        limit=MAX_BODY_BYTES,
    )
