"""
Requests: publish a command and wait for its reply.

Only the event loop of a client sends the commands that a call queues. A call from
another process, loop or thread would return the id of a command that nobody sends, so
every call checks here first.
"""

import asyncio
import os
import secrets
import time
from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from everbus.bus.arguments import check_choice, check_text, check_timeout, check_version
from everbus.bus.errors import (
    EverbusError,
    Invalid,
    ReplyTimeout,
    Unavailable,
    error_of,
)
from everbus.bus.keys import partition_of
from everbus.bus.messages import (
    DURABILITIES,
    SCHEMA,
    Envelope,
    Reply,
    check_free_id,
    check_session_id,
    ordinal_of,
    pack,
    unpack,
)
from everbus.bus.outgoing_command import OutgoingCommand
from everbus.bus.publisher import Publisher, Sign
from everbus.bus.reply_receiver import ReplyReceiver
from everbus.bus.settled_numbers import SETTLED_KIND, SettledNumbers
from everbus.bus.trace_context import current_traceparent, opentelemetry
from everbus.bus.unsettled import UNANSWERED_S
from everbus.bus.watches import Watches

CLOSED = "this connection is closed, since its block has ended; connect() anew"
FORKED = (
    "this connection stayed in the process that made it, and this is another one; "
    "connect() anew in it"
)
ELSEWHERE = (
    "called outside the event loop of this connection (another loop, or a thread). "
    "Use everbus.bus.sync for threads, asyncio.run_coroutine_threadsafe(…, loop) for "
    "one call, or connect() anew in this loop"
)
# One answer to `request.settled`; then it is asked again.
SETTLED_TIMEOUT_S = 5.0
# Commands whose reply did not come: their sessions, for questions about them.
MAX_UNANSWERED = 1_000


class ClientAffinity:
    """
    Where one client may be used: made in its event loop, until `end`.
    """

    __slots__ = ("_ended", "_loop", "_process")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._ended: EverbusError | None = None

    @property
    def same_process(self) -> bool:
        """
        Whether this is the process that made the client, not a forked child.
        """
        return os.getpid() == self._process

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """
        The event loop of the client.
        """
        return self._loop

    @property
    def open(self) -> bool:
        """
        Whether the block of the client still runs.
        """
        return self._ended is None

    def end(self, error: EverbusError | None = None) -> None:
        """
        Refuse every later call, with *error*; the first one stays.
        """
        self._ended = self._ended or error or Unavailable(CLOSED)

    def check(self) -> None:
        """
        Accept a call that the client can serve.

        Raises:
            Unavailable: this is a forked child, or the block has ended.
            Invalid: this is another event loop, or a thread.
            EverbusError: the error of `end`.
        """
        if not self.same_process:
            raise Unavailable(FORKED)
        if self._ended is not None:
            raise self._ended.copy()
        if _running_loop() is not self._loop:
            raise Invalid(ELSEWHERE, field="loop")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Delegation(NamedTuple):
    """
    The principal and the id for commands sent on behalf of another principal.

    Attributes:
        sign: makes the grant of a command; None: the grant of the instance.
        command_id: a freely chosen id, by which any instance recognises a repetition;
            only one command may then be sent. Empty: the instance's next id.
        instance: the instance that waits for the reply, if the id does not contain it.
        trace: W3C traceparent, or empty.
        tenant: tenant of the principal that *sign* signs for.
    """

    sign: Sign | None = None
    command_id: str = ""
    instance: str = ""
    trace: str = ""
    tenant: str = ""


OWN = Delegation()


class Requests:
    """
    Requests of one instance to the managers.
    """

    def __init__(
        self,
        publisher: Publisher,
        replies: ReplyReceiver,
        partitions: int,
        acting: Delegation = OWN,
        *,
        affinity: ClientAffinity | None = None,
    ) -> None:
        self._affinity = affinity
        self._partitions = partitions
        self._publisher = publisher
        self._replies = replies
        self._acting = acting
        self._unanswered: OrderedDict[str, str] = OrderedDict()

    def check(self) -> None:
        """
        Accept a call here and now.

        Raises:
            EverbusError: as `ClientAffinity.check`.
        """
        if self._affinity is not None:
            self._affinity.check()

    @property
    def state(self) -> str:
        """
        `open`, or `closed` after the block.
        """
        return "open" if self._affinity is None or self._affinity.open else "closed"

    @property
    def grant(self) -> bytes:
        """
        The grant of the instance's commands; empty before the first one.
        """
        return self._publisher.grant

    async def tenant(self, timeout: float) -> str:
        """
        Tenant of the sessions created here; empty without tenants.

        Raises:
            Unauthenticated: the managers refuse the instance's token.
            Unavailable: no manager answered in time.
        """
        self.check()
        check_timeout(timeout)
        if self._acting.sign is not None:
            return self._acting.tenant
        return await self._publisher.tenant(timeout)

    @property
    def watching(self) -> Watches:
        """
        The watches of the instance, for any principal.
        """
        return self._replies.watching

    @property
    def broken(self) -> bool:
        """
        Whether no request can succeed any more, whatever the bus does.
        """
        return bool(self._replies.trouble)

    @property
    def trouble(self) -> str:
        """
        Why requests cannot succeed now; empty while they can.
        """
        return self._replies.trouble or self._publisher.trouble

    def acting(self, acting: Delegation) -> "Requests":
        """
        Requests of the same instance on behalf of another principal.

        Raises:
            Invalid: the freely chosen id has the form of a publisher's id.
        """
        if acting.command_id:
            check_free_id(acting.command_id)
        return Requests(
            *(self._publisher, self._replies, self._partitions, acting),
            affinity=self._affinity,
        )

    @property
    def waiting(self) -> int:
        """
        Number of commands that are not on the bus yet.
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
        command_id: str | None = None,
        durability: str = "hot",
    ) -> Reply:
        """
        Publish a command for a session and return its ok reply.

        Args:
            command_id: a freely chosen id, by which the ledger recognises a repetition.

        Raises:
            Invalid: an argument has a wrong type or value; nothing was sent.
            EverbusError: the refusal in the reply, as the exception of its code.
            ReplyTimeout: no reply came in time; the outcome is unknown.
            Unavailable: it was not sent in time, and is never applied.
        """
        self.check()
        partition = partition_of(check_session_id(session_id), self._partitions)
        envelope = self._envelope(
            kind,
            session_id,
            body,
            expected_version=check_version(expected_version),
            deadline_ms=_deadline_ms(timeout),
            reply=True,
            durability=_checked_durability(durability),
        )
        if command_id is not None:
            envelope = self._under(self._unused(command_id), envelope)

        return await self._reply_to(envelope, partition, timeout)

    async def ask_anyone(
        self, kind: str, body: dict[str, Any], timeout: float
    ) -> Reply:
        """
        Publish a command without a session to a random lane; return its ok reply.

        Raises:
            EverbusError: as in `ask`.
        """
        self.check()
        envelope = self._envelope(
            kind, "", body, deadline_ms=_deadline_ms(timeout), reply=True
        )
        partition = secrets.randbelow(self._partitions)

        return await self._reply_to(envelope, partition, timeout)

    async def settled_numbers(self, instance: str, partition: int) -> SettledNumbers:
        """
        Which numbers of *instance* in *partition* the managers have settled.

        Under a free id: a number of its own would have to be settled as well.

        Raises:
            EverbusError: as in `ask`.
        """
        self.check()
        envelope = self._under(
            f"{self._publisher.instance}-{secrets.token_hex(8)}",
            self._envelope(
                SETTLED_KIND,
                "",
                {"instance": instance},
                deadline_ms=_deadline_ms(SETTLED_TIMEOUT_S),
                reply=True,
            ),
        )
        reply = await self._reply_to(envelope, partition, SETTLED_TIMEOUT_S)
        settled: SettledNumbers = unpack(reply.body, SettledNumbers)

        return settled

    def session_of(self, command_id: str) -> str:
        """
        The session of a command of this instance that may not be settled; else empty.
        """
        return self._unanswered.get(command_id) or self._publisher.session_of(
            command_id
        )

    async def ask_about(
        self, kind: str, command_id: str, timeout: float, *, session_id: str = ""
    ) -> Reply:
        """
        Ask about a command, in the partition of the command.

        Args:
            session_id: the session that has to be hot before the answer, so that the
                commands count that MongoDB has of it, too.

        Raises:
            Invalid: *command_id* is not the id of a publisher.
            EverbusError: as in `ask`.
        """
        self.check()
        ordinal = ordinal_of(check_text(command_id, "id"))
        if ordinal is None or ordinal.partition >= self._partitions:
            raise Invalid(
                f"{command_id[:80]!r} is no id of ours; to learn the outcome under an "
                "id of your own, repeat the command under it",
                field="id",
            )
        envelope = self._envelope(
            kind,
            session_id,
            {"command_id": command_id},
            deadline_ms=_deadline_ms(timeout),
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
        Queue a command without reply and deadline; return its id.

        Raises:
            Invalid: an argument has a wrong type or value; nothing was queued.
        """
        self.check()
        partition = partition_of(check_session_id(session_id), self._partitions)
        envelope = self._envelope(
            kind,
            session_id,
            body,
            expected_version=check_version(expected_version),
            durability=_checked_durability(durability),
        )

        sign = self._acting.sign
        return self._publisher.publish(envelope, partition, sign=sign).envelope.id

    async def flush(self, timeout: float, *, settled: bool = False) -> None:
        """
        Wait until all commands published so far are on the bus, or *settled*.

        Raises:
            Unavailable: *timeout* seconds have passed; sending goes on. Or the managers
                do not report all commands as settled by then; the next flush reports
                their refusals.
            EverbusError: the code of the first command that was refused since.
        """
        deadline = time.monotonic() + check_timeout(timeout)
        await self.on_bus(timeout)
        left_s = max(0.0, deadline - time.monotonic())
        if settled and not await self.settled(left_s, patience_s=left_s):
            raise Unavailable(
                f"{self._publisher.unsettled} commands are on the bus, and no manager "
                f"tells that they are settled within {timeout} s; flush again",
                unsettled=self._publisher.unsettled,
            )
        self._publisher.check_refused()

    async def on_bus(self, timeout: float) -> None:
        """
        Wait until all commands published so far are on the bus.

        Raises:
            Unavailable: *timeout* seconds have passed; sending goes on.
        """
        self.check()
        try:
            async with asyncio.timeout(timeout):
                await self._publisher.flush()
        except TimeoutError:
            raise Unavailable(
                f"{self.waiting} commands are not on the bus after {timeout} s"
                f"{self._reason()}; they are still being sent",
                waiting=self.waiting,
            ) from None

    async def settled(
        self, timeout: float, *, patience_s: float = UNANSWERED_S
    ) -> bool:
        """
        Wait until all commands that are on the bus now are settled; whether they are.
        Ends early when no manager answers for *patience_s*.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._publisher.settled(patience_s)
        except TimeoutError:
            return False

    def _envelope(
        self, kind: str, session_id: str, body: dict[str, Any], **fields: Any
    ) -> Envelope:
        return Envelope(
            v=SCHEMA,
            id=self._acting.command_id,
            kind=kind,
            session=session_id,
            body=msgspec.Raw(pack(body)),
            trace=self._acting.trace or _traceparent(),
            wake=self._acting.instance if self._acting.command_id else "",
            **fields,
        )

    def _under(self, free_id: str, envelope: Envelope) -> Envelope:
        """
        The envelope under a freely chosen id, with the reply to this instance.
        """
        return msgspec.structs.replace(
            envelope, id=free_id, wake=self._publisher.instance
        )

    def _unused(self, command_id: str) -> str:
        """
        Return *command_id* if it can be told from the ids of this instance.

        Raises:
            Invalid: it is no free id, or a call waits for its reply: one reply cannot
                go to two.
        """
        if self._replies.expects(check_free_id(command_id, "command_id")):
            raise Invalid(
                f"a call under {command_id} waits for its reply; await that one first",
                field="command_id",
            )
        return command_id

    async def _reply_to(
        self, envelope: Envelope, partition: int, timeout: float
    ) -> Reply:
        expires_at = time.monotonic() + timeout
        outgoing = self._publisher.publish(
            envelope, partition, expires_at=expires_at, sign=self._acting.sign
        )
        identifier = outgoing.envelope.id
        expected = self._replies.expect(partition, identifier, envelope.wake)
        # A timer on the future: asyncio.timeout() would cost more than all else here.
        timer = asyncio.get_running_loop().call_later(timeout, _expire, expected)
        try:
            reply = await expected
        except TimeoutError:
            raise self._timeout_error(outgoing, timeout) from None
        finally:
            timer.cancel()
            self._replies.forget(identifier)
        if reply.code == Unavailable.code and outgoing.again:
            raise self._unknown(outgoing, reply.message)
        if reply.code != "ok":
            raise error_of(reply.code, reply.message, reply.details)
        return reply

    def _unknown(self, outgoing: OutgoingCommand, reason: str) -> ReplyTimeout:
        """
        The outcome of a command that was sent again: the answer is about the second
        time, and the first one may have had its effect before the bus lost its memory.
        """
        envelope = outgoing.envelope
        self._note_unanswered(envelope)
        return ReplyTimeout(
            f"{envelope.kind} was sent again, and was refused then ({reason}); the "
            f"first time may have had its effect; {_remedy(envelope.id)}",
            command_id=envelope.id,
        )

    def _note_unanswered(self, envelope: Envelope) -> None:
        self._unanswered[envelope.id] = envelope.session
        if len(self._unanswered) > MAX_UNANSWERED:
            self._unanswered.popitem(last=False)

    def _timeout_error(self, outgoing: OutgoingCommand, timeout: float) -> EverbusError:
        identifier, kind = outgoing.envelope.id, outgoing.envelope.kind
        self._note_unanswered(outgoing.envelope)
        if not outgoing.attempted:
            return Unavailable(
                f"{kind} was not sent within {timeout} s{self._reason()}; it will "
                "not be applied",
                command_id=identifier,
            )
        return ReplyTimeout(
            f"no reply to {kind} within {timeout} s{self._reason()}; "
            f"{_remedy(identifier)}",
            command_id=identifier,
        )

    def _reason(self) -> str:
        last_error = self._publisher.last_error
        return f" ({last_error.message})" if last_error is not None else ""


def _traceparent() -> str:
    """
    `traceparent` of the current span, which few calls have.
    """
    if opentelemetry is None:
        return ""
    if opentelemetry.get_current_span() is opentelemetry.INVALID_SPAN:
        return ""
    return current_traceparent()


def _remedy(identifier: str) -> str:
    """
    How to end the doubt about a command without a reply.
    """
    if ordinal_of(identifier) is None:
        return f"repeat it under {identifier!r}: it is applied once"
    return f"ask outcome({identifier!r}) before you repeat it"


def _checked_durability(durability: str) -> str:
    return check_choice(durability, "durability", DURABILITIES)


def _deadline_ms(timeout: float) -> int:
    return int(check_timeout(timeout) * 1000)


def _expire(expected: asyncio.Future[Reply]) -> None:
    if not expected.done():
        expected.set_exception(TimeoutError())
