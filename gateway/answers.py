"""
What becomes of commands that were judged: replies, ledger entries, dead letters.

Everything is staged into the batch, so an answer is given by the very commit that
makes it true.
"""

from collections.abc import Collection, Mapping

from bus.codec import pack, unpack_reply
from bus.errors import (
    AlreadyExists,
    Cancelled,
    EverbusError,
    Expired,
    Invalid,
    Overloaded,
    Rejection,
    Unauthenticated,
    Unavailable,
)
from bus.messages import Envelope, Reply
from gateway.batch import TO_LEDGER, TO_STREAM, Batch, packed_reply
from gateway.clock import Now
from gateway.delivery import Work, fingerprint_of
from gateway.knowledge import Knowledge
from gateway.tracing import is_recorded
from handlers.routes import Route

# Refusals after which the same command may well be taken.
PASSING = (Unavailable, Overloaded, Expired, Unauthenticated)


class Answers:
    """
    Answers the commands of one lane.
    """

    def __init__(
        self, known: Knowledge, routes: Mapping[str, Route], kinds: Collection[str]
    ) -> None:
        """
        Answer by what is *known*; *kinds* are all that are served, with *routes* or
        by the lane itself.
        """
        self._known = known
        self._routes = routes
        self._known_kinds = kinds

    def changes(self, envelope: Envelope) -> bool:
        """
        Whether a command of its kind may change a session.
        """
        route = self._routes.get(envelope.kind)
        return route is not None and route.writes

    def bury(self, work: Work, batch: Batch, now: Now, cause: str) -> None:
        """
        Give *work* up: a dead letter, and a reply to whoever waits.
        """
        died = work.attempts[-1] if work.attempts else "no attempt was recorded"
        message = f"given up after {len(work.attempts)} attempts; the last: {died}"
        batch.bury(work, cause, message, now.ms)
        if work.envelope is not None:
            self._refuse(work, work.envelope, EverbusError(message), batch)
        self._settle(work, batch, now, cause)

    def repeated(self, work: Work, envelope: Envelope, batch: Batch, now: Now) -> None:
        """
        Give whoever sent a settled command, which changes something, again its first
        reply.
        """
        first = batch.kept.get(work.command) or self._known.firsts.get(work.command)
        refused = _misused(work, envelope, first)
        if envelope.reply and first is not None and refused is None:
            durability = envelope.durability
            self._reply(work, first, batch, 0, durability)
            self._replied(work, envelope, batch, now, "repeated", durability)
            return
        if envelope.reply and refused is not None:
            batch.reply(work, _refusal(envelope, refused), TO_STREAM)
        self._settle(work, batch, now, "repeated")

    def answer(
        self, work: Work, envelope: Envelope, packed: bytes, batch: Batch, now: Now
    ) -> None:
        """
        Reply ok, as soon as the command is as durable as it asks for.
        """
        changes = self.changes(envelope)
        keep = TO_LEDGER if changes else 0
        durability = envelope.durability if changes else "hot"
        if envelope.reply:
            self._reply(work, packed, batch, keep, durability)
        elif keep and work.ordinal is None:
            # A free id has no number to know it by: the ledger must.
            batch.reply(work, packed_reply(work, None), TO_LEDGER)
        self._replied(work, envelope, batch, now, "ok", durability)

    def hold(self, work: Work, packed: bytes, batch: Batch, now: Now) -> None:
        """
        Reply ok when MongoDB holds all that is committed so far.
        """
        batch.hold(work, packed)
        self._settle(work, batch, now, "ok")

    def _reply(
        self, work: Work, packed: bytes, batch: Batch, keep: int, durability: str
    ) -> None:
        """
        Stage the reply for when the command is as durable as it asks for.
        """
        if durability == "hot":
            batch.reply(work, packed, TO_STREAM | keep)
            return
        if keep:
            batch.reply(work, packed, keep)
        if durability == "warm":
            batch.hold(work, packed)
        else:
            batch.replicate(work, packed)

    def _replied(
        self,
        work: Work,
        envelope: Envelope,
        batch: Batch,
        now: Now,
        code: str,
        durability: str,
    ) -> None:
        self._note(work, batch, now, code)
        # Until it is replied to, the entry of a replicated command stays pending.
        if not envelope.reply or durability != "replicated":
            batch.release(work)

    def rejected(
        self,
        work: Work,
        envelope: Envelope,
        error: EverbusError,
        batch: Batch,
        now: Now,
    ) -> None:
        """
        Refuse it; if nobody waits to hear so, it is a dead letter.
        """
        self._refuse(work, envelope, error, batch)
        if not envelope.reply and not isinstance(error, Cancelled):
            batch.bury(work, error.code, error.message, now.ms)
        self._settle(work, batch, now, error.code)

    def malformed(self, work: Work, batch: Batch, now: Now) -> None:
        """
        Make a dead letter of what is no command, and tell its sender if that can be.
        """
        trouble = work.trouble
        if trouble is None:
            raise AssertionError("work is either malformed or an envelope")
        cause = trouble.details["cause"]
        batch.bury(work, cause, trouble.message, now.ms)
        # To an id that is foreign to this lane there is no stream to reply on.
        ours = work.ordinal or cause not in ("invalid_id", "wrong_partition")
        if work.envelope is not None and ours:
            self._refuse(work, work.envelope, trouble, batch)
        self._settle(work, batch, now, cause)

    def _refuse(
        self, work: Work, envelope: Envelope, error: EverbusError, batch: Batch
    ) -> None:
        # Kept although nobody waits: request.outcome must be able to tell. A kind
        # that we do not know may be one that changes something.
        keep = self.changes(envelope) or envelope.kind not in self._known_kinds
        if work.ordinal is None and isinstance(error, PASSING):
            # Whoever chose the id repeats the command under it.
            keep = False
        flags = (TO_STREAM if envelope.reply else 0) | (TO_LEDGER if keep else 0)
        if flags:
            batch.reply(work, _refusal(envelope, error, fingerprint_of(work)), flags)

    def _settle(self, work: Work, batch: Batch, now: Now, code: str) -> None:
        self._note(work, batch, now, code)
        batch.release(work)

    def _note(self, work: Work, batch: Batch, now: Now, code: str) -> None:
        progress, envelope = self._known.sight(work), work.envelope
        kind = envelope.kind if envelope is not None else ""
        batch.outcomes[kind if kind in self._routes else "other", code] += 1
        if envelope is not None and is_recorded(envelope.trace):
            batch.traced.append((envelope, code))
        batch.note(work, progress, now.ms // 1000)


def _misused(work: Work, envelope: Envelope, first: bytes | None) -> Rejection | None:
    """
    Why the sender of a repeated command cannot be given its *first* reply.
    """
    if first is None:
        return AlreadyExists(
            f"command {envelope.id} was settled before; its first reply is no "
            "longer kept. Read the session to see its state"
        )
    fingerprint = fingerprint_of(work)
    if fingerprint and unpack_reply(first).fingerprint != fingerprint:
        return Invalid(
            f"the id {envelope.id} was used for another command; choose a fresh one "
            "for each",
            field="id",
        )
    return None


def _refusal(
    envelope: Envelope, error: EverbusError, fingerprint: bytes = b""
) -> bytes:
    return pack(
        Reply(
            id=envelope.id,
            code=error.code,
            message=error.message,
            details=error.details,
            trace=envelope.trace,
            fingerprint=fingerprint,
        )
    )
