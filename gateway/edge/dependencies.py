"""
FastAPI dependencies of the routes: one request as a read or as a write on the bus.

All routes share what is here: deadline, durability, idempotency and the shape of an
answer. A route states its call and nothing else.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

from fastapi import Depends, Header, Request, Response
from msgspec.json import encode

from everbus.bus.client import Mad
from everbus.bus.messages import Durability, Session
from everbus.gateway.edge.caller import CommandSigner
from everbus.gateway.edge.etags import expected_version, tag_of
from everbus.gateway.edge.fallback import Answer
from everbus.gateway.edge.idempotency import (
    HttpAnswer,
    IdempotencyCache,
    command_id_of,
    fingerprint_of,
)
from everbus.gateway.edge.request_models import (
    ConditionalHeaders,
    ReadHeaders,
    WriteHeaders,
)
from everbus.gateway.edge.route import JSON, caller_in
from everbus.gateway.identity.principal import Principal

SOURCE, BEHIND = "Everbus-Source", "Everbus-Behind"

T = TypeVar("T")


class WriteOptions(TypedDict):
    """
    Options of every write of the SDK.
    """

    timeout: float
    durability: NotRequired[Durability]


class ReadRequest:
    """
    One request as a read.
    """

    def __init__(self, request: Request, options: ReadHeaders) -> None:
        self.request = request
        self._caller = caller_in(request)
        self._timeout_s = options.everbus_timeout

    async def run(self, call: Callable[[Mad, float], Awaitable[T]]) -> Answer[T]:
        """
        The answer of *call* on the bus, or on MongoDB while the bus is away.

        Raises:
            EverbusError: of the call.
        """
        caller = self._caller
        fallback, principal = caller.context.fallback, caller.principal

        return await fallback.read(
            lambda: call(caller.mad(), self._timeout_s),
            lambda: call(fallback.warm(principal), self._timeout_s),
        )


class WriteRequest:
    """
    One request as a write.
    """

    def __init__(self, request: Request, options: WriteHeaders) -> None:
        self.request = request
        self.key = options.idempotency_key
        self._if_match: str | None = None
        self._caller = caller_in(request)
        self._options: WriteOptions = {"timeout": options.everbus_timeout}
        if options.everbus_durability is not None:
            self._options["durability"] = options.everbus_durability

    @property
    def principal(self) -> Principal:
        """
        Who asks.
        """
        return self._caller.principal

    async def run(
        self,
        call: Callable[[Mad, WriteOptions], Awaitable[T]],
        to_answer: Callable[[T, str], HttpAnswer],
        expected: int | None = None,
    ) -> Response:
        """
        Run *call* and answer with *to_answer* of its result and its command's id; a
        repetition gets the first answer.

        Args:
            expected: the version in the request, part of its fingerprint.

        Raises:
            EverbusError: of the call.
        """
        if self.key is None:
            return response_of(await self._once("", call, to_answer))
        command_id = command_id_of(self._caller.principal, self.key)
        path = self.request.url.path
        parts = (self.request.method, path, expected, await self.request.json())
        idempotency: IdempotencyCache = self.request.app.state.idempotency

        return response_of(
            await idempotency.once(
                command_id,
                fingerprint_of(*parts),
                lambda: self._once(command_id, call, to_answer),
            )
        )

    async def _once(
        self,
        command_id: str,
        call: Callable[[Mad, WriteOptions], Awaitable[T]],
        to_answer: Callable[[T, str], HttpAnswer],
    ) -> HttpAnswer:
        signer: CommandSigner = self._caller.signer
        mad = self._caller.mad(command_id, sign=signer)
        result = await self._caller.context.fallback.write(
            lambda: call(mad, self._options), command_id=command_id
        )
        return to_answer(result, signer.command_id)


class ConditionalWriteRequest(WriteRequest):
    """
    A write with an optional condition on the session's version.
    """

    def __init__(self, request: Request, options: ConditionalHeaders) -> None:
        super().__init__(request, options)
        self._if_match = options.if_match

    def expected(self, stated: int | None) -> int | None:
        """
        The expected version, from `If-Match` or from *stated*.

        Raises:
            Invalid: both are given and differ.
        """
        return expected_version(self._if_match, stated)


async def _read_request(
    request: Request, options: Annotated[ReadHeaders, Header()]
) -> ReadRequest:
    return ReadRequest(request, options)


async def _write_request(
    request: Request, options: Annotated[WriteHeaders, Header()]
) -> WriteRequest:
    return WriteRequest(request, options)


async def _conditional_write_request(
    request: Request, options: Annotated[ConditionalHeaders, Header()]
) -> ConditionalWriteRequest:
    return ConditionalWriteRequest(request, options)


# Parameters of the routes. Async functions, since FastAPI calls a class in a thread,
# which costs as much as the rest of a request.
Read = Annotated[ReadRequest, Depends(_read_request)]
Write = Annotated[WriteRequest, Depends(_write_request)]
ConditionalWrite = Annotated[
    ConditionalWriteRequest, Depends(_conditional_write_request)
]


def json_answer(
    value: Any, status: int = 200, **headers: str
) -> HttpAnswer:  # a message's value
    """
    *value* as JSON.
    """
    return HttpAnswer(status, encode(value), headers)


def session_answer(session: Session, command_id: str = "") -> HttpAnswer:
    """
    *session* as JSON, with its ETag.
    """
    return json_answer(session, ETag=tag_of(session.version))


def response_of(
    answer: HttpAnswer, headers: Mapping[str, str] | None = None
) -> Response:
    """
    *answer* as a response; without a body it has no media type.
    """
    given = {**answer.headers, **(headers or {})}

    return Response(answer.body, answer.status, given, JSON if answer.body else None)


def read_response(
    answer: Answer[Any], headers: Mapping[str, str] | None = None
) -> Response:
    """
    The response to a read, with its source and age if MongoDB answered.
    """
    return response_of(
        json_answer(answer.value), {**source_headers(answer), **(headers or {})}
    )


def source_headers(answer: Answer[Any]) -> dict[str, str]:
    """
    Headers that name the source of a read; none if the bus answered.
    """
    if answer.source == "bus":
        return {}
    return {SOURCE: answer.source, BEHIND: f"{answer.behind_s:.1f}"}


def next_page(request: Request, **parameters: str | int) -> dict[str, str]:
    """
    The `Link` header of the next page (RFC 8288).
    """
    url = request.url.include_query_params(**parameters)

    return {"Link": f'<{url.path}?{url.query}>; rel="next"'}
