"""
Requests: a command published, and its reply awaited.
"""

import asyncio
import secrets
import time
from typing import Any

import msgspec

from bus.codec import ordinal_of, pack
from bus.errors import EverbusError, Invalid, ReplyTimeout, Unavailable, error_of
from bus.keys import partition_of
from bus.messages import DURABILITIES, SCHEMA, Envelope, Reply, check_session_id
from bus.outgoing import Outgoing
from bus.publisher import Publisher
from bus.replies import Replies


class Requests:
    """
    What one instance asks of the managers, under one token.
    """

    def __init__(
        self, token: str, publisher: Publisher, replies: Replies, partitions: int
    ) -> None:
        self._partitions = partitions
        self._token = token
        self._publisher = publisher
        self._replies = replies

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._publisher.waiting

    async def ask(
        self,
        kind: str,
        session_id: str,
        body: dict[str, Any],
        timeout: float,
        expected_version: int | None = None,
        *,
        durability: str = "hot",
    ) -> Reply:
        """
        Publish a command on a session and return its ok reply.

        Raises:
            Invalid: *durability* is none of DURABILITIES; nothing was sent.
            EverbusError: the reply's refusal, as the exception named like it.
            ReplyTimeout: none came in time; the outcome is unknown.
            Unavailable: it was not even sent in time, and will not be applied.
        """
        partition = partition_of(check_session_id(session_id), self._partitions)
        envelope = self._envelope(
            kind,
            session_id,
            body,
            expected_version=expected_version,
            deadline_ms=int(timeout * 1000),
            reply=True,
            durability=_checked(durability),
        )
        return await self._reply_to(envelope, partition, timeout)

    async def ask_anyone(
        self, kind: str, body: dict[str, Any], timeout: float
    ) -> Reply:
        """
        Ask what is about no session of any one lane, a random one each time.

        Raises:
            EverbusError: as in `ask`.
        """
        envelope = self._envelope(
            kind, "", body, deadline_ms=int(timeout * 1000), reply=True
        )
        partition = secrets.randbelow(self._partitions)

        return await self._reply_to(envelope, partition, timeout)

    async def ask_about(self, kind: str, command_id: str, timeout: float) -> Reply:
        """
        Ask what concerns a command, of the partition that it went to.

        Raises:
            Invalid: no publisher gives out such an id.
            EverbusError: as in `ask`.
        """
        ordinal = ordinal_of(command_id)
        if ordinal is None or ordinal.partition >= self._partitions:
            raise Invalid(f"{command_id[:80]!r} is no id of ours", field="id")
        envelope = self._envelope(
            kind,
            "",
            {"command_id": command_id},
            deadline_ms=int(timeout * 1000),
            reply=True,
        )

        return await self._reply_to(envelope, ordinal.partition, timeout)

    def publish(
        self,
        kind: str,
        session_id: str,
        body: dict[str, Any],
        *,
        expected_version: int | None = None,
        durability: str = "hot",
    ) -> str:
        """
        Queue a command that wants no reply and has no deadline; its id.

        Raises:
            Invalid: *durability* is none of DURABILITIES; nothing was queued.
        """
        partition = partition_of(check_session_id(session_id), self._partitions)
        envelope = self._envelope(
            kind,
            session_id,
            body,
            expected_version=expected_version,
            durability=_checked(durability),
        )

        return self._publisher.publish(envelope, partition).envelope.id

    async def flush(self, timeout: float) -> None:
        """
        Return when everything published so far is on the bus.

        Raises:
            Unavailable: it is not within *timeout*; it goes on trying.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._publisher.flush()
        except TimeoutError as error:
            raise Unavailable(
                f"{self.waiting} commands are not on the bus after {timeout} s"
                f"{self._why()}; they are still being sent",
                waiting=self.waiting,
            ) from error

    def _envelope(
        self, kind: str, session_id: str, body: dict[str, Any], **fields: Any
    ) -> Envelope:
        return Envelope(
            v=SCHEMA,
            id="",
            kind=kind,
            session=session_id,
            body=msgspec.Raw(pack(body)),
            token=self._token,
            **fields,
        )

    async def _reply_to(
        self, envelope: Envelope, partition: int, timeout: float
    ) -> Reply:
        expires_at = time.monotonic() + timeout
        outgoing = self._publisher.publish(envelope, partition, expires_at=expires_at)
        identifier = outgoing.envelope.id
        expected = self._replies.expect(partition, identifier)
        # A timer on the future: asyncio.timeout() would cost more than the rest.
        timer = asyncio.get_running_loop().call_later(timeout, _expire, expected)
        try:
            reply = await expected
        except TimeoutError as error:
            raise self._overdue(outgoing, timeout) from error
        finally:
            timer.cancel()
            self._replies.forget(identifier)
        if reply.code != "ok":
            raise error_of(reply.code, reply.message, reply.details)
        return reply

    def _overdue(self, outgoing: Outgoing, timeout: float) -> EverbusError:
        identifier, kind = outgoing.envelope.id, outgoing.envelope.kind
        if not outgoing.attempted:
            return Unavailable(
                f"{kind} was not sent within {timeout} s{self._why()}; it will not be "
                "applied",
                command_id=identifier,
            )
        return ReplyTimeout(
            f"no reply to {kind} within {timeout} s{self._why()}; ask "
            f"outcome({identifier!r})",
            command_id=identifier,
        )

    def _why(self) -> str:
        trouble = self._publisher.trouble
        return f" ({trouble.message})" if trouble is not None else ""


def _checked(durability: str) -> str:
    if durability in DURABILITIES:
        return durability
    raise Invalid(
        f"durability is {durability!a:.80}; one of {', '.join(sorted(DURABILITIES))}",
        field="durability",
    )


def _expire(expected: asyncio.Future[Reply]) -> None:
    if not expected.done():
        expected.set_exception(TimeoutError())
