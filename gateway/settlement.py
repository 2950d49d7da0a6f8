"""
The judgement of one command: from decoded work to staged writes.

The order of the questions is the promise: has it been settled before, is it
still in time, who asks, may they, and only then what it does. No I/O happens
here; whatever has to be looked up was loaded before.
"""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, cast, get_args

import msgspec
import structlog

from bus.codec import pack, unpack
from bus.errors import (
    AlreadyExists,
    Cancelled,
    EverbusError,
    Expired,
    Invalid,
    Overloaded,
    Rejection,
    Unavailable,
)
from bus.keys import GATEWAY
from bus.messages import DURABILITIES, CommandOutcome, Envelope, Reply, Session
from gateway.batch import TO_LEDGER, TO_STREAM, Batch, packed_reply
from gateway.clock import Now
from gateway.delivery import CANCEL_KIND, LANES_OWN, OUTCOME_KIND, Work
from gateway.failures import NOTED
from gateway.fencing import LOST_KIND, InstanceLost
from gateway.identity import GATEWAY_PRINCIPAL, Claimed, Identity, Principal, Role
from gateway.knowledge import Knowledge, RequestOutcome
from gateway.policy import Policy
from gateway.standing import Standing
from gateway.store.newborn import check_made
from gateway.whereabouts import MOVING
from handlers.commands import Command, CreateSession, Outcome
from handlers.routes import HANDLERS, Route

log = structlog.get_logger()

# What tells two lives of one id apart in every store (MongoDB keeps milliseconds).
LIFE_STEP = timedelta(milliseconds=1)


class Verdict(Enum):
    """
    What is to happen with a command that was judged.
    """

    SETTLED = auto()
    # Failed for a fault of ours: tried again, its session waits.
    FAILED = auto()
    # Cannot be taken now and nobody waits to hear so: its session waits.
    HELD = auto()
    # Needs something of the tiers below first.
    WANTS = auto()
    # Its session is on its way to the cold tier: it waits until it has got there.
    LEAVING = auto()


class Settlement:
    """
    Judges the commands of one lane in order.

    Attributes:
        known: what it may rely on, as loaded and as it changed since.
        overloaded: whether writes must wait or be refused.
        tiers: whether there is a MongoDB that can hold what is committed.
        standing: which commands count no longer.
    """

    def __init__(
        self,
        identity: Identity,
        policy: Policy,
        routes: Mapping[str, Route] = HANDLERS,
        *,
        tiers: bool = False,
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._routes = routes
        self._bodies: dict[str, type[msgspec.Struct]] = {
            OUTCOME_KIND: RequestOutcome,
            CANCEL_KIND: RequestOutcome,
            LOST_KIND: InstanceLost,
            **{kind: route.body for kind, route in self._routes.items()},
        }
        self.known = Knowledge()
        self.overloaded = False
        self.tiers = tiers
        self.standing = Standing(self.known, self._principal)

    def holds(self, work: Work) -> bool:
        """
        Whether `judge` would let *work* wait without trying what it does.
        """
        envelope = work.envelope
        if envelope is None or envelope.reply:
            return False
        return self.overloaded and self._changes(envelope)

    def writes(self, work: Work) -> bool:
        """
        Whether *work* may change its session.
        """
        return work.envelope is not None and self._changes(work.envelope)

    def judge(self, work: Work, batch: Batch, now: Now) -> Verdict:
        """
        Settle *work* into *batch*, or say why it has to wait.
        """
        envelope = work.envelope
        if work.trouble is not None or envelope is None:
            return self._malformed(work, batch, now)
        known = self.known.settled_before(work) or (
            batch.kept and work.command in batch.kept
        )
        if known and self._changes(envelope):
            return self._repeated(work, envelope, batch, now)
        try:
            return self._judged(work, envelope, batch, now)
        except Overloaded as error:
            # Nobody would hear of it: an append must wait, never be lost.
            if not envelope.reply:
                return Verdict.HELD
            return self._rejected(work, envelope, error, batch, now)
        except (Rejection, Unavailable) as error:
            # Unavailable is a tier that could not give what is wanted: no defect,
            # and whoever asks can ask again.
            return self._rejected(work, envelope, error, batch, now)
        except Exception as error:
            log.exception("command.failed", command=envelope.id, kind=envelope.kind)
            NOTED.count("defect")
            work.attempts.append(f"{type(error).__name__}: {error}"[:300])
            return Verdict.FAILED

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

    def _judged(
        self, work: Work, envelope: Envelope, batch: Batch, now: Now
    ) -> Verdict:
        _check_deadline(work, envelope, now)
        principal = self._principal(work, envelope)
        work.principal = principal
        if envelope.kind in LANES_OWN:
            return self._about_no_session(work, envelope, principal, batch, now)
        self.standing.check(work, envelope, principal)
        if isinstance(work.given, EverbusError):
            raise work.given
        route = self._routes[envelope.kind]
        session = self.known.sessions[envelope.session] if work.session else None
        if session is not None and session.state == "archived":
            return Verdict.LEAVING
        if not route.sessionless:
            batch.touch(envelope.session, session)
        command = self._command(work, envelope, principal, session, batch)
        if route.writes:
            self._check_write(envelope, session, now)
        outcome = route.handler(session, command, _moment(work, batch, now))
        if outcome.wants is not None:
            work.want(outcome.wants, session)
            return Verdict.WANTS
        if envelope.kind in MOVING:
            batch.whereabouts.settle(work, command)
        return self._applied(work, envelope, outcome, batch, now)

    def _applied(
        self,
        work: Work,
        envelope: Envelope,
        outcome: Outcome,
        batch: Batch,
        now: Now,
    ) -> Verdict:
        # Pack first: what cannot be packed must fail before it has an effect.
        packed = packed_reply(envelope.id, outcome.reply) if envelope.reply else b""
        if envelope.session in batch.changes:
            batch.changes[envelope.session].apply(outcome)
            self.known.sessions[envelope.session] = outcome.session
        if outcome.when_durable and envelope.reply:
            self._check_tiers()
            batch.hold(work, packed)
            self._settle(work, batch, now, "ok")
            return Verdict.SETTLED
        return self._answer(work, envelope, packed, batch, now)

    def _check_write(
        self, envelope: Envelope, session: Session | None, now: Now
    ) -> None:
        if session is None and envelope.kind == "session.create":
            check_made(envelope.session, now.ms)
        if self.overloaded:
            raise Overloaded("the outbox is full: MongoDB is behind. Try again later")
        if envelope.durability not in DURABILITIES:
            raise Invalid(
                f"durability is {envelope.durability[:80]!a}; one of "
                f"{', '.join(sorted(DURABILITIES))}",
                field="durability",
            )
        if envelope.durability == "warm" and envelope.reply:
            self._check_tiers()

    def _check_tiers(self) -> None:
        if not self.tiers:
            raise Unavailable(
                "this manager has no MongoDB, so nothing becomes durable in it; set "
                "EVERBUS_MONGO_URL"
            )

    def _about_no_session(
        self,
        work: Work,
        envelope: Envelope,
        principal: Principal,
        batch: Batch,
        now: Now,
    ) -> Verdict:
        self._policy.allow(principal, envelope.kind, work.entry.mad, None)
        body = self._body(envelope)
        told: CommandOutcome | None = None
        if envelope.kind == LOST_KIND:
            self.standing.settle_loss(work, body, batch)
        else:
            told = self.known.outcome(work.entry.mad, body.command_id, batch.kept)
        return self._answer(work, envelope, packed_reply(envelope.id, told), batch, now)

    def forget(self) -> None:
        """
        Drop all that is known, because it may not be true any more.
        """
        self.known.forget()
        self.standing.forget()

    def _principal(self, work: Work, envelope: Envelope) -> Principal:
        if work.entry.mad != GATEWAY:
            return self._identity.principal_of(envelope.token)
        behalf = envelope.on_behalf
        if behalf is None:
            return GATEWAY_PRINCIPAL
        if behalf.role not in get_args(Claimed):
            raise Invalid(f"no role {behalf.role[:80]!a}", field="on_behalf")
        return Principal(behalf.principal, cast(Role, behalf.role), math.inf)

    def _command(
        self,
        work: Work,
        envelope: Envelope,
        principal: Principal,
        session: Session | None,
        batch: Batch,
    ) -> Command:
        """
        The authorised command; the decision is taken on the session as it is.
        """
        body = self._body(envelope)
        owner = body.user_id if isinstance(body, CreateSession) else ""
        mad = work.mad
        may_share = self._policy.allow(principal, envelope.kind, mad, session, owner)
        return Command(
            id=envelope.id,
            kind=envelope.kind,
            session_id=envelope.session,
            mad=mad,
            principal=principal.name,
            body=body,
            expected_version=envelope.expected_version,
            may_share=may_share,
            sees_all=self._policy.sees_all(principal),
            given=work.given_of(session),
            attached=batch.whereabouts.now(work.attached, envelope.session),
        )

    def _body(self, envelope: Envelope) -> Any:
        try:
            return unpack(envelope.body, self._bodies[envelope.kind])
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$.")
            field = path.rstrip("`") or "body"
            raise Invalid(f"{field}: {what}", field=field) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"body is not msgpack: {error}", field="body") from error

    def _changes(self, envelope: Envelope) -> bool:
        route = self._routes.get(envelope.kind)
        return route is not None and route.writes

    def _repeated(
        self, work: Work, envelope: Envelope, batch: Batch, now: Now
    ) -> Verdict:
        first = batch.kept.get(work.command) or self.known.firsts.get(work.command)
        if envelope.reply and first is not None:
            self._reply(work, envelope, first, batch, keep=0)
            return self._replied(work, envelope, batch, now, "repeated")
        if envelope.reply:
            late = AlreadyExists(
                f"command {envelope.id} was settled before; its first reply is no "
                "longer kept. Read the session to see its state"
            )
            batch.reply(work, _refusal(envelope, late), TO_STREAM)
        self._settle(work, batch, now, "repeated")

        return Verdict.SETTLED

    def _answer(
        self, work: Work, envelope: Envelope, packed: bytes, batch: Batch, now: Now
    ) -> Verdict:
        keep = TO_LEDGER if self._changes(envelope) else 0
        if envelope.reply:
            self._reply(work, envelope, packed, batch, keep)
        elif keep and work.ordinal is None:
            # A free id has no number to know it by: the ledger must.
            batch.reply(work, packed_reply(envelope.id, None), TO_LEDGER)

        return self._replied(work, envelope, batch, now, "ok")

    def _reply(
        self, work: Work, envelope: Envelope, packed: bytes, batch: Batch, keep: int
    ) -> None:
        """
        Stage the reply for when the command is as durable as it asks for.
        """
        durability = self._durability(envelope)
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
        self, work: Work, envelope: Envelope, batch: Batch, now: Now, code: str
    ) -> Verdict:
        self._note(work, batch, now, code)
        # Until it is replied to, the entry of a replicated command stays pending.
        if not envelope.reply or self._durability(envelope) != "replicated":
            batch.release(work)
        return Verdict.SETTLED

    def _durability(self, envelope: Envelope) -> str:
        return envelope.durability if self._changes(envelope) else "hot"

    def _rejected(
        self,
        work: Work,
        envelope: Envelope,
        error: EverbusError,
        batch: Batch,
        now: Now,
    ) -> Verdict:
        self._refuse(work, envelope, error, batch)
        if not envelope.reply and not isinstance(error, Cancelled):
            batch.bury(work, error.code, error.message, now.ms)
        self._settle(work, batch, now, error.code)

        return Verdict.SETTLED

    def _malformed(self, work: Work, batch: Batch, now: Now) -> Verdict:
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

        return Verdict.SETTLED

    def _refuse(
        self, work: Work, envelope: Envelope, error: EverbusError, batch: Batch
    ) -> None:
        # Kept although nobody waits: request.outcome must be able to tell. A kind
        # that we do not know may be one that changes something.
        keep = self._changes(envelope) or envelope.kind not in self._bodies
        flags = (TO_STREAM if envelope.reply else 0) | (TO_LEDGER if keep else 0)
        if flags:
            batch.reply(work, _refusal(envelope, error), flags)

    def _settle(self, work: Work, batch: Batch, now: Now, code: str) -> None:
        self._note(work, batch, now, code)
        batch.release(work)

    def _note(self, work: Work, batch: Batch, now: Now, code: str) -> None:
        progress = self.known.sight(work)
        kind = work.envelope.kind if work.envelope is not None else ""
        batch.outcomes[kind if kind in self._routes else "other", code] += 1
        batch.note(work, progress, now.ms // 1000)


def _moment(work: Work, batch: Batch, now: Now) -> datetime:
    """
    When the command is applied; a new life begins later than the one it follows.
    """
    change = batch.changes.get(work.session)
    if change is None or change.now is not None or change.read is None:
        return now.datetime
    return max(now.datetime, change.read.created_at + LIFE_STEP)


def _check_deadline(work: Work, envelope: Envelope, now: Now) -> None:
    deadline = envelope.deadline_ms
    if deadline is not None and now.ms >= work.entry.arrived_ms + deadline:
        raise Expired(
            f"deadline of {deadline} ms after arrival had passed; not applied"
        )


def _refusal(envelope: Envelope, error: EverbusError) -> bytes:
    return pack(
        Reply(
            id=envelope.id,
            code=error.code,
            message=error.message,
            details=error.details,
        )
    )
