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
from typing import cast, get_args

import msgspec
import structlog

from bus.codec import unpack_body
from bus.errors import (
    EverbusError,
    Expired,
    Invalid,
    Overloaded,
    Rejection,
    Unavailable,
)
from bus.keys import EDGE, GATEWAY
from bus.messages import DURABILITIES, CommandOutcome, Envelope, Session
from bus.tracing import trace_id_of
from gateway.answers import Answers
from gateway.batch import Batch, packed_reply
from gateway.clock import Now
from gateway.delivery import (
    CANCEL_KIND,
    LANES_OWN,
    OUTCOME_KIND,
    WATCH_KIND,
    Work,
)
from gateway.failures import NOTED
from gateway.fencing import LOST_KIND, InstanceLost
from gateway.identity.grants import Grants
from gateway.identity.principal import GATEWAY_PRINCIPAL, Claimed, Principal, Role
from gateway.knowledge import Knowledge, RequestOutcome
from gateway.policy import Policy
from gateway.standing import Standing
from gateway.store.newborn import check_made
from gateway.tracing import is_recorded
from gateway.watchers import Watchers
from gateway.whereabouts import MOVING
from handlers.commands import Command, CreateSession
from handlers.outcomes import Outcome
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
        watchers: who is to be told of what is committed.
    """

    def __init__(
        self,
        grants: Grants,
        policy: Policy,
        routes: Mapping[str, Route] = HANDLERS,
        *,
        tiers: bool = False,
    ) -> None:
        self._grants = grants
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
        self._answers = Answers(self.known, routes, self._bodies.keys())
        self.standing = Standing(self.known, self._principal)
        self.watchers = Watchers(self._may_watch)

    def holds(self, work: Work) -> bool:
        """
        Whether `judge` would let *work* wait without trying what it does.
        """
        envelope = work.envelope
        if envelope is None or envelope.reply:
            return False
        return self.overloaded and self._answers.changes(envelope)

    def writes(self, work: Work) -> bool:
        """
        Whether *work* may change its session.
        """
        return work.envelope is not None and self._answers.changes(work.envelope)

    def judge(self, work: Work, batch: Batch, now: Now) -> Verdict:
        """
        Settle *work* into *batch*, or say why it has to wait.
        """
        envelope = work.envelope
        if work.trouble is not None or envelope is None:
            self._answers.malformed(work, batch, now)
            return Verdict.SETTLED
        if self._is_known(work, batch) and self._answers.changes(envelope):
            return self._repeated(work, envelope, batch, now)
        try:
            return self._judged(work, envelope, batch, now)
        except Overloaded as error:
            # Nobody would hear of it: an append must wait, never be lost.
            if not envelope.reply:
                return Verdict.HELD
            self._answers.rejected(work, envelope, error, batch, now)
            return Verdict.SETTLED
        except (Rejection, Unavailable) as error:
            # Unavailable is a tier that could not give what is wanted: no defect,
            # and whoever asks can ask again.
            self._answers.rejected(work, envelope, error, batch, now)
            return Verdict.SETTLED
        except Exception as error:
            log.exception(
                "command.failed",
                command=envelope.id,
                kind=envelope.kind,
                trace=trace_id_of(envelope.trace),
            )
            NOTED.count("defect")
            work.attempts.append(f"{type(error).__name__}: {error}"[:300])
            return Verdict.FAILED

    def _is_known(self, work: Work, batch: Batch) -> bool:
        """
        Whether an earlier delivery was settled, be it by this very batch.
        """
        if self.known.settled_before(work):
            return True
        # A number is settled with the publisher's progress, a free id is only kept.
        return work.ordinal is None and work.command in batch.kept

    def _repeated(
        self, work: Work, envelope: Envelope, batch: Batch, now: Now
    ) -> Verdict:
        try:
            if work.ordinal is None:
                # A free id can be known to others: only who used it is answered.
                work.principal = self._principal(work, envelope)
            self._answers.repeated(work, envelope, batch, now)
        except Rejection as error:
            self._answers.rejected(work, envelope, error, batch, now)
        return Verdict.SETTLED

    def bury(self, work: Work, batch: Batch, now: Now, cause: str) -> None:
        """
        Give *work* up: a dead letter, and a reply to whoever waits.
        """
        self._answers.bury(work, batch, now, cause)

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
        # From here on another tenant's session is not there, for everything.
        seen = self._policy.seen(principal, session)
        if route.writes:
            self._check_write(envelope, seen, now)
        outcome = route.handler(seen, command, _moment(work, batch, now))
        if seen is not session:
            raise AssertionError(f"{envelope.kind} made something of no session")
        self._note_who(work, command, batch, now)
        if outcome.wants is not None:
            work.want(outcome.wants, session)
            return Verdict.WANTS
        return self._applied(work, envelope, outcome, batch, now)

    def _note_who(self, work: Work, command: Command, batch: Batch, now: Now) -> None:
        """
        Note who comes, goes or watches by a command that its handler let pass.

        Before anything is read for it: what happens meanwhile is pushed.
        """
        if command.kind in MOVING:
            batch.whereabouts.settle(work, command)
        elif command.kind == WATCH_KIND:
            self.watchers.watch(work, command.body, now.ms / 1000)

    def _applied(
        self,
        work: Work,
        envelope: Envelope,
        outcome: Outcome,
        batch: Batch,
        now: Now,
    ) -> Verdict:
        # Pack first: what cannot be packed must fail before it has an effect.
        packed = packed_reply(work, outcome.reply) if envelope.reply else b""
        if is_recorded(envelope.trace):
            outcome = _traced(outcome, envelope.trace)
        if envelope.session in batch.changes:
            batch.changes[envelope.session].apply(outcome)
            self.known.sessions[envelope.session] = outcome.session
        if outcome.when_durable and envelope.reply:
            self._check_tiers()
            self._answers.hold(work, packed, batch, now)
        else:
            self._answers.answer(work, envelope, packed, batch, now)
        return Verdict.SETTLED

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
        body = unpack_body(envelope.body, self._bodies[envelope.kind])
        told: CommandOutcome | None = None
        if envelope.kind == LOST_KIND:
            self.standing.settle_loss(work, body, batch)
        else:
            told = self.known.outcome(work.entry.mad, body.command_id, batch.kept)
        self._answers.answer(work, envelope, packed_reply(work, told), batch, now)

        return Verdict.SETTLED

    def forget(self) -> None:
        """
        Drop all that is known, because it may not be true any more.
        """
        self.known.forget()
        self.standing.forget()

    def _principal(self, work: Work, envelope: Envelope) -> Principal:
        if work.entry.mad != GATEWAY:
            return self._grants.principal_of(work.entry.mad, envelope)
        behalf = envelope.on_behalf
        if behalf is None:
            return GATEWAY_PRINCIPAL
        if behalf.role not in get_args(Claimed):
            raise Invalid(f"no role {behalf.role[:80]!a}", field="on_behalf")
        role = cast(Role, behalf.role)
        return Principal(behalf.principal, role, math.inf, behalf.tenant)

    def _may_watch(self, principal: Principal, mad: str, session: Session) -> bool:
        asking = principal.name if mad == EDGE else mad
        try:
            self._policy.allow(principal, WATCH_KIND, asking, session)
        except Rejection:
            return False
        return self._policy.seen(principal, session) is not None

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
        body = unpack_body(envelope.body, self._bodies[envelope.kind])
        owner = body.user_id if isinstance(body, CreateSession) else ""
        mad = work.mad
        may_share = self._policy.allow(principal, envelope.kind, mad, session, owner)
        return Command(
            id=envelope.id,
            kind=envelope.kind,
            session_id=envelope.session,
            mad=mad,
            principal=principal.name,
            tenant=principal.tenant,
            body=body,
            expected_version=envelope.expected_version,
            may_share=may_share,
            sees_all=self._policy.sees_all(principal),
            given=work.given_of(session),
            attached=batch.whereabouts.now(work.attached, envelope.session),
        )


def _traced(outcome: Outcome, trace: str) -> Outcome:
    replace = msgspec.structs.replace
    events = tuple(replace(event, trace=trace) for event in outcome.events)

    return replace(outcome, events=events)


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
