"""
One request's errand: to the managers and back, as a read or as a write.

What all routes have in common is here, so that a route says what it asks and nothing
else: deadline, durability, repetition, and the shape of an answer.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

from fastapi import Depends, Header, Request, Response
from msgspec.json import encode

from bus.client import Mad
from bus.messages import Durability, Session
from gateway.edge.bodies import ConditionalHeaders, ReadHeaders, WriteHeaders
from gateway.edge.caller import Signature
from gateway.edge.conditional import expected_version, tag_of
from gateway.edge.desk import Answer
from gateway.edge.idempotency import (
    Repetitions,
    Told,
    command_id_of,
    fingerprint_of,
)
from gateway.edge.reception import JSON, caller_in
from gateway.identity.principal import Principal

SOURCE, BEHIND = "Everbus-Source", "Everbus-Behind"

T = TypeVar("T")


class How(TypedDict):
    """
    What every write of the SDK takes.
    """

    timeout: float
    durability: NotRequired[Durability]


class Reading:
    """
    A read, as one request asks for it.
    """

    def __init__(self, request: Request, how: ReadHeaders) -> None:
        self.request = request
        self._caller = caller_in(request)
        self._timeout_s = how.everbus_timeout

    async def ask(self, call: Callable[[Mad, float], Awaitable[T]]) -> Answer[T]:
        """
        What *call* finds on the bus, or below it while that is away.

        Raises:
            EverbusError: as the call does.
        """
        caller = self._caller
        desk, principal = caller.parts.desk, caller.principal

        return await desk.read(
            lambda: call(caller.mad(), self._timeout_s),
            lambda: call(desk.warm(principal), self._timeout_s),
        )


class Writing:
    """
    A write, as one request asks for it.
    """

    def __init__(self, request: Request, how: WriteHeaders) -> None:
        self.request = request
        self.key = how.idempotency_key
        self._if_match: str | None = None
        self._caller = caller_in(request)
        self._how: How = {"timeout": how.everbus_timeout}
        if how.everbus_durability is not None:
            self._how["durability"] = how.everbus_durability

    @property
    def principal(self) -> Principal:
        """
        Who asks.
        """
        return self._caller.principal

    async def made(
        self,
        call: Callable[[Mad, How], Awaitable[T]],
        tell: Callable[[T, str], Told],
        expected: int | None = None,
    ) -> Response:
        """
        The answer to what *call* does, made by *tell* from its result and its
        command's id; the first one's if it is a repetition.

        Args:
            expected: the version that the request names, for its fingerprint.

        Raises:
            EverbusError: as the call does.
        """
        if self.key is None:
            return answered(await self._once("", call, tell))
        command_id = command_id_of(self._caller.principal, self.key)
        path = self.request.url.path
        asked = (self.request.method, path, expected, await self.request.json())
        repetitions: Repetitions = self.request.app.state.repetitions

        return answered(
            await repetitions.once(
                command_id,
                fingerprint_of(*asked),
                lambda: self._once(command_id, call, tell),
            )
        )

    async def _once(
        self,
        command_id: str,
        call: Callable[[Mad, How], Awaitable[T]],
        tell: Callable[[T, str], Told],
    ) -> Told:
        signature: Signature = self._caller.signature
        mad = self._caller.mad(command_id, sign=signature)
        found = await self._caller.parts.desk.write(
            lambda: call(mad, self._how), command_id=command_id
        )
        return tell(found, signature.command_id)


class Conditional(Writing):
    """
    A write that may depend on the session's version.
    """

    def __init__(self, request: Request, how: ConditionalHeaders) -> None:
        super().__init__(request, how)
        self._if_match = how.if_match

    def expected(self, stated: int | None) -> int | None:
        """
        The version that is expected, by `If-Match` or by *stated*.

        Raises:
            Invalid: both are given and differ.
        """
        return expected_version(self._if_match, stated)


async def _reading(request: Request, how: Annotated[ReadHeaders, Header()]) -> Reading:
    return Reading(request, how)


async def _writing(request: Request, how: Annotated[WriteHeaders, Header()]) -> Writing:
    return Writing(request, how)


async def _conditional(
    request: Request, how: Annotated[ConditionalHeaders, Header()]
) -> Conditional:
    return Conditional(request, how)


# What routes take. The classes themselves FastAPI would call in a thread, which cost
# as much as all the rest of a request.
ARead = Annotated[Reading, Depends(_reading)]
AWrite = Annotated[Writing, Depends(_writing)]
AConditionalWrite = Annotated[Conditional, Depends(_conditional)]


def told(value: Any, status: int = 200, **headers: str) -> Told:  # a message's value
    """
    *value* as JSON.
    """
    return Told(status, encode(value), headers)


def told_session(session: Session, command_id: str = "") -> Told:
    """
    A session and its ETag.
    """
    return told(session, ETag=tag_of(session.version))


def answered(told: Told, headers: Mapping[str, str] | None = None) -> Response:
    """
    *told* as it leaves; without a body, without a type.
    """
    given = {**told.headers, **(headers or {})}

    return Response(told.body, told.status, given, JSON if told.body else None)


def found(answer: Answer[Any], headers: Mapping[str, str] | None = None) -> Response:
    """
    What a read found, and, if it is not the bus's, how old it may be.
    """
    return answered(told(answer.value), {**sources(answer), **(headers or {})})


def sources(answer: Answer[Any]) -> dict[str, str]:
    """
    Where a read's answer is from; nothing if it is from the bus.
    """
    if answer.source == "bus":
        return {}
    return {SOURCE: answer.source, BEHIND: f"{answer.behind_s:.1f}"}


def next_page(request: Request, **parameters: str | int) -> dict[str, str]:
    """
    The header that leads to the next page (RFC 8288).
    """
    url = request.url.include_query_params(**parameters)

    return {"Link": f'<{url.path}?{url.query}>; rel="next"'}
