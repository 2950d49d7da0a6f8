"""
Requests: a command published, and its reply awaited.
"""

import asyncio
import secrets
import time
from typing import Any, NamedTuple

import msgspec

from bus.codec import ordinal_of, pack
from bus.errors import EverbusError, Invalid, ReplyTimeout, Unavailable, error_of
from bus.keys import partition_of
from bus.messages import DURABILITIES, SCHEMA, Envelope, Reply, check_session_id
from bus.outgoing import Outgoing
from bus.publisher import Publisher, Sign
from bus.replies import Replies
from bus.tracing import current
from bus.watching import Watching


class Acting(NamedTuple):
    """
    On whose behalf, and under which name, a command is sent.

    Attributes:
        sign: makes its grant; None: that of the instance.
        command_id: an id made freely, by which its repetition is known from any
            instance; only one command may then be sent. Empty: the instance's next.
        instance: the one that waits, for ids that do not tell it.
        trace: W3C traceparent, or empty.
        tenant: of whom *sign* signs for.
    """

    sign: Sign | None = None
    command_id: str = ""
    instance: str = ""
    trace: str = ""
    tenant: str = ""


OWN = Acting()


class Requests:
    """
    What one instance asks of the managers.
    """

    def __init__(
        self,
        publisher: Publisher,
        replies: Replies,
        partitions: int,
        acting: Acting = OWN,
    ) -> None:
        self._partitions = partitions
        self._publisher = publisher
        self._replies = replies
        self._acting = acting

    @property
    def grant(self) -> bytes:
        """
        What the instance's commands carry; empty before a manager gave one.
        """
        return self._publisher.grant

    async def tenant(self, timeout: float) -> str:
        """
        Whose the sessions are that are created here; empty if no tenant's.

        Raises:
            Unauthenticated: the managers refuse the instance's token.
            Unavailable: no manager has told it in time.
        """
        if self._acting.sign is not None:
            return self._acting.tenant
        return await self._publisher.tenant(timeout)

    @property
    def watching(self) -> Watching:
        """
        What the instance watches, for whomever.
        """
        return self._replies.watching

    def acting(self, acting: Acting) -> "Requests":
        """
        The same instance's requests, for somebody else.

        Raises:
            Invalid: the free id is one that publishers give out.
        """
        if ordinal_of(acting.command_id) is not None:
            raise Invalid(
                f"{acting.command_id:.80} is a publisher's number; choose an id "
                "without dots",
                field="id",
            )
        return Requests(self._publisher, self._replies, self._partitions, acting)

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

        sign = self._acting.sign
        return self._publisher.publish(envelope, partition, sign=sign).envelope.id

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
            id=self._acting.command_id,
            kind=kind,
            session=session_id,
            body=msgspec.Raw(pack(body)),
            trace=self._acting.trace or current(),
            wake=self._acting.instance if self._acting.command_id else "",
            **fields,
        )

    async def _reply_to(
        self, envelope: Envelope, partition: int, timeout: float
    ) -> Reply:
        expires_at = time.monotonic() + timeout
        outgoing = self._publisher.publish(
            envelope, partition, expires_at=expires_at, sign=self._acting.sign
        )
        identifier = outgoing.envelope.id
        expected = self._replies.expect(partition, identifier, envelope.wake)
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
