"""
The decision on one command: from a delivery to staged writes.

`Decider.decide` is the chain, and its order is the promise: settled before, in time,
who asks, still valid, may they, ready, and only then the handler and the writes. No
step does I/O; a lookup loaded everything before.
"""

import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import cast, get_args

import msgspec
import structlog

from everbus.bus.derived_ids import check_reserved
from everbus.bus.errors import (
    EverbusError,
    Expired,
    Invalid,
    Overloaded,
    Rejection,
    Unauthenticated,
    Unavailable,
)
from everbus.bus.keys import EDGE, GATEWAY
from everbus.bus.messages import (
    DURABILITIES,
    CommandOutcome,
    Envelope,
    Session,
    unpack_body,
)
from everbus.bus.settled_numbers import SETTLED_KIND, SettledNumbers
from everbus.bus.trace_context import trace_id_of
from everbus.gateway.identity.grants import BAD_GRANT, Grants
from everbus.gateway.identity.policy import Policy
from everbus.gateway.identity.principal import (
    GATEWAY_PRINCIPAL,
    Claimed,
    Principal,
    Role,
)
from everbus.gateway.identity.token_revocations import TokenRevocations
from everbus.gateway.lane.attachments import MOVING
from everbus.gateway.lane.cache import LaneCache, RequestOutcome, RequestSettled
from everbus.gateway.lane.commit import Batch, packed_reply
from everbus.gateway.lane.connection import UndecodableRecord
from everbus.gateway.lane.delivery import (
    CANCEL_KIND,
    LANES_OWN,
    OUTCOME_KIND,
    WATCH_KIND,
    Delivery,
    Now,
    Received,
)
from everbus.gateway.lane.fencing import LOST_KIND, InstanceLost
from everbus.gateway.lane.rates import CommandRates
from everbus.gateway.lane.replies import ReplyStager, UnreadLimits, UnreadReplies
from everbus.gateway.lane.revocation import Revocation, check_fences
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.lane.subscribers import Subscribers
from everbus.gateway.store.uuid_age import check_made
from everbus.gateway.telemetry.failures import NOTED
from everbus.gateway.telemetry.metrics import REVOKED_REFUSALS
from everbus.gateway.telemetry.tracing import is_recorded
from everbus.handlers.commands import Command, CreateSession
from everbus.handlers.outcomes import Outcome
from everbus.handlers.routes import HANDLERS, Route
from everbus.handlers.sessions import no_session

log = structlog.get_logger()

# Each of their commands has a claim of its own.
_FOR_OTHERS = frozenset({EDGE, GATEWAY})
# Tells two generations of one id apart in every store (MongoDB keeps milliseconds).
GENERATION_STEP = timedelta(milliseconds=1)


class Decision(Enum):
    """
    The result of a decision: the command is over, or its session waits.
    """

    SETTLED = auto()
    # A defect of ours: the lane tries it again later.
    FAILED = auto()
    # A write that wants no reply meets overload: it waits, since a refusal would
    # lose it.
    DEFERRED = auto()
    # It needs data of the lower tiers first.
    WANTS = auto()
    # Its session is on its way to the cold tier and must arrive there first.
    LEAVING = auto()


class Decider:
    """
    Decides the commands of one lane in order.

    Attributes:
        cache: everything that it may rely on, kept up to date.
        overloaded: whether writes must wait or be refused.
        memory_full: whether that is for want of memory.
        tiers: whether there is a MongoDB that can hold commits.
        replies: stages the answers.
        revocation: the cancelled and fenced commands.
        subscribers: the receivers of pushes.
        unread: the replies that nobody has received yet.
    """

    def __init__(
        self,
        grants: Grants,
        policy: Policy,
        routes: Mapping[str, Route] = HANDLERS,
        *,
        tiers: bool = False,
        unread: UnreadLimits | None = None,
        rates: CommandRates | None = None,
        cache: LaneCache | None = None,
        revocations: TokenRevocations | None = None,
    ) -> None:
        self._grants = grants
        self._revoked_tokens = (
            TokenRevocations() if revocations is None else revocations
        )
        self._rates = None if rates is None or rates.unlimited else rates
        self._policy = policy
        self._routes = routes
        self._bodies: dict[str, type[msgspec.Struct]] = {
            OUTCOME_KIND: RequestOutcome,
            CANCEL_KIND: RequestOutcome,
            SETTLED_KIND: RequestSettled,
            LOST_KIND: InstanceLost,
            **{kind: route.body for kind, route in self._routes.items()},
        }
        self.cache = cache or LaneCache()
        self.overloaded = False
        self.memory_full = False
        self.tiers = tiers
        self.replies = ReplyStager(self.cache, routes, self._bodies.keys())
        self.revocation = Revocation(self.cache, self.sender_of)
        self.subscribers = Subscribers(self.may_watch, self.may_hear)
        self.unread = UnreadReplies(unread)

    def decide(self, delivery: Delivery, batch: Batch) -> Decision:
        """
        Settle *delivery* into *batch*, or return why its session has to wait.
        """
        try:
            if self.settled(delivery, batch):
                return self.repeat(delivery, batch)
            in_time(delivery, batch.now)
            sender = self.who(delivery)
            self.within_bounds(delivery, sender)
            if delivery.envelope.kind in LANES_OWN:
                return self.answer(delivery, sender, batch)
            self.still_valid(delivery, sender)
            session = self.session_of(delivery)
            if session is not None and session.state == "archived":
                return Decision.LEAVING
            command = self.may(delivery, sender, session, batch)
            self.ready(delivery, sender, session, batch.now)
            outcome = self.handle(delivery, sender, session, command, batch)
            return self.stage(delivery, outcome, batch)
        except Overloaded as error:
            return self.overload(delivery, error, batch)
        except (Rejection, Unavailable) as error:
            # Unavailable: a lower tier could not give the data. That is no defect,
            # and the sender can ask again.
            if isinstance(error, Expired) and isinstance(delivery.given, Unavailable):
                # Nobody could tell whether it was applied before it came too late.
                error = delivery.given
            self.replies.rejected(delivery, error, batch)
            return Decision.SETTLED
        except Exception as error:  # noqa: BLE001 - a defect fails one command only
            return failed(delivery, error)

    def settled(self, delivery: Delivery, batch: Batch) -> bool:
        """
        Whether it is a write that was settled before, also by this very batch.
        """
        before = self.cache.settled_before(delivery)
        if not before and delivery.ordinal is None:
            # A window knows a settled number at once; a free id is only kept.
            before = delivery.command in batch.kept
        return before and self.replies.changes(delivery.envelope)

    def repeat(self, delivery: Delivery, batch: Batch) -> Decision:
        """
        Give the first reply again.
        """
        if delivery.ordinal is None:
            # Others can know a free id: only its user gets an answer.
            self.who(delivery)
        self.replies.repeated(delivery, batch)
        return Decision.SETTLED

    def who(self, delivery: Delivery) -> Principal:
        """
        Find the sender and note it on the delivery.

        A batch has many commands under few grants, and verifies each grant once.
        """
        mad, publisher = delivery.entry.mad, delivery.publisher
        if publisher is None or mad in _FOR_OTHERS:
            sender = delivery.principal = self.sender_of(delivery)
            return sender
        key = (publisher, delivery.envelope.grant, delivery.envelope.epoch)
        verified = self.cache.senders.get(key)
        if verified is None:
            verified = self.cache.senders[key] = self.sender_of(delivery)
        delivery.principal = verified
        return verified

    def check_received(self, delivery: Delivery) -> None:
        """
        Let it pass unless its sender leaves too many replies unread.

        Raises:
            Overloaded: naming the remedy.
        """
        if delivery.envelope.reply and self.unread.is_full(delivery):
            raise Overloaded(
                "too many replies, or bytes of them, wait to be received; read them "
                "first, or ask for less at once"
            )

    def within_bounds(self, delivery: Delivery, sender: Principal) -> None:
        """
        Let it pass unless its sender takes more than its share.

        A command that comes again with data of the lower tiers was counted before.

        Raises:
            Overloaded: naming the remedy.
        """
        if delivery.envelope.reply and self.unread.full:
            self.check_received(delivery)
        if self._rates is not None and delivery.wants is None:
            self._rates.take(delivery, sender)

    def refuse_uncounted(self, received: Sequence[Received]) -> None:
        """
        Give writes their refusal whose publisher's record does not decode: whether they
        were applied before, nobody can tell, and to apply them could be twice.
        """
        for one in received:
            window: ProducerWindow | None = self.cache.windows.get(one.publisher or "")
            if window is None or not window.undecodable:
                continue
            if isinstance(one, Delivery) and self.writes(one):
                one.given = UndecodableRecord(
                    f"the record of producer {one.publisher} does not decode, so "
                    "nobody can tell whether the command was applied before; look at "
                    "its session, connect anew, and send it again if it is not there",
                    cause=UndecodableRecord.cause,
                )

    def worth_loading(self, delivery: Delivery, now: Now) -> bool:
        """
        Whether the command is new, in time, and its sender known: else nothing is
        loaded for it, since its decision only repeats a reply or refuses it.

        Where records of publishers were lost, a late command may be a repeat of what
        MongoDB holds: to refuse it as not applied could be untrue.
        """
        if self.cache.settled_before(delivery) and self.writes(delivery):
            return False
        try:
            if not self.cache.records_lost:
                in_time(delivery, now)
            self.who(delivery)
        except Rejection:
            return False
        return True

    def in_doubt(self, delivery: Delivery, now: Now) -> bool:
        """
        Whether it is a write past its deadline that may have had its effect: records of
        publishers were lost, and it may be a repeat of what MongoDB holds.
        """
        if not self.cache.records_lost or not self.writes(delivery):
            return False
        try:
            in_time(delivery, now)
        except Expired:
            return True
        return False

    def refused_by(self, stored: Session, delivery: Delivery) -> bool:
        """
        Whether policy refuses the command by what a lower tier tells of its session:
        owner, ACL and tenant. Its refusal is then the data that it is given.
        """
        try:
            # Not by `who`: this comes between two batches.
            sender = delivery.principal = self.sender_of(delivery)
            if delivery.envelope.kind not in LANES_OWN:
                self._check_touch(delivery, sender, stored)
        except Rejection as error:
            delivery.given = error
        return isinstance(delivery.given, EverbusError)

    def _check_touch(
        self, delivery: Delivery, sender: Principal, stored: Session
    ) -> None:
        """
        Raises:
            Rejection: as the decision on the loaded session would.
        """
        kind, mad = delivery.envelope.kind, delivery.mad
        body = unpack_body(delivery.envelope.body, self._bodies[kind])
        owner = body.user_id if isinstance(body, CreateSession) else ""
        self._policy.allow(sender, kind, mad, stored, owner)
        if self._policy.seen(sender, stored) is None:
            raise no_session(delivery.session)

    def still_valid(self, delivery: Delivery, sender: Principal) -> None:
        """
        Let it pass unless its sender cancelled it or its instance is fenced.

        Raises:
            Cancelled: its sender cancelled it.
            Superseded: its instance was declared lost before it arrived.
        """
        if self.revocation.cancelled:
            self.revocation.check_cancelled(delivery, sender)
        window: ProducerWindow | None = self.cache.windows.get(delivery.publisher or "")
        if window is not None and window.fences:
            check_fences(window.fences, delivery)

    def session_of(self, delivery: Delivery) -> Session | None:
        """
        The command's session; raises the error that the lower tiers gave for it.
        """
        if isinstance(delivery.given, EverbusError):
            raise delivery.given
        if not delivery.session:
            return None
        session: Session | None = self.cache.sessions[delivery.session]
        return session

    def may(
        self,
        delivery: Delivery,
        sender: Principal,
        session: Session | None,
        batch: Batch,
    ) -> Command:
        """
        The authorised command; the policy sees the session as it is.

        From here on the commit checks the session: an answer must not rest on a
        state that is not true any more.
        """
        envelope = delivery.envelope
        if not self._routes[envelope.kind].sessionless:
            batch.touch(envelope.session, session)
        body = unpack_body(envelope.body, self._bodies[envelope.kind])

        return self._command(delivery, sender, session, body, batch)

    def ready(
        self, delivery: Delivery, sender: Principal, session: Session | None, now: Now
    ) -> None:
        """
        Let a write pass if the lane can take it and keep its promise now.
        """
        envelope = delivery.envelope
        if not self._routes[envelope.kind].writes:
            return
        creates = envelope.kind == "session.create"
        if creates and self._policy.seen(sender, session) is None:
            check_made(envelope.session, now.ms, time.time_ns() // 10**6)
            body = unpack_body(envelope.body, CreateSession)
            check_reserved(
                envelope.session, sender.tenant, body.user_id, delivery.entry.mad
            )
        if self.overloaded:
            what = "bus's memory" if self.memory_full else "outbox"
            raise Overloaded(f"the {what} is full: MongoDB is behind. Try again later")
        check_durability(envelope)
        if envelope.durability == "warm" and envelope.reply:
            self._check_tiers()

    def handle(
        self,
        delivery: Delivery,
        sender: Principal,
        session: Session | None,
        command: Command,
        batch: Batch,
    ) -> Outcome:
        """
        Ask the handler; another tenant's session does not exist for it.

        Movements and subscriptions count from here, before a read of the lower
        tiers: pushes bring all events in between.
        """
        seen = self._policy.seen(sender, session)
        outcome = self._routes[command.kind].handler(
            seen, command, moment(delivery, batch)
        )
        if seen is not session:
            raise AssertionError(f"{command.kind} made something of no session")
        if command.kind in MOVING:
            batch.attachments.settle(delivery, command)
        elif command.kind == WATCH_KIND:
            now_s = batch.now.ms / 1000
            self.subscribers.watch(delivery, command.body, now_s)

        return outcome

    def stage(self, delivery: Delivery, outcome: Outcome, batch: Batch) -> Decision:
        """
        Stage the change and the reply, or note the data that is wanted first.
        """
        if outcome.fetch is not None:
            delivery.want(outcome.fetch, self.session_of(delivery))
            return Decision.WANTS
        envelope = delivery.envelope
        # Pack first: a reply that cannot be packed must fail before it has an effect.
        packed = packed_reply(delivery, outcome.reply) if envelope.reply else b""
        if envelope.trace and is_recorded(envelope.trace):
            outcome = traced(outcome, envelope.trace)
        change = batch.changes.get(envelope.session)
        if change is not None:
            change.apply(outcome)
            self.cache.sessions[envelope.session] = outcome.session
        if outcome.when_durable and envelope.reply:
            self._check_tiers()
            self.replies.hold(delivery, packed, batch)
        else:
            self.replies.answer(delivery, packed, batch)
        return Decision.SETTLED

    def answer(self, delivery: Delivery, sender: Principal, batch: Batch) -> Decision:
        """
        Answer a command that the lane itself serves: it is about no session.
        """
        envelope, mad = delivery.envelope, delivery.entry.mad
        self._policy.allow(sender, envelope.kind, mad, None)
        body = unpack_body(envelope.body, self._bodies[envelope.kind])
        outcome: CommandOutcome | SettledNumbers | None = None
        if envelope.kind == LOST_KIND:
            self.revocation.settle_loss(delivery, body, batch)
        elif envelope.kind == SETTLED_KIND:
            lineage = batch.lineages.current
            outcome = self.cache.settled_numbers(mad, body.instance, lineage)
        else:
            outcome = self.cache.outcome(mad, body.command_id, batch.kept)
        self.replies.answer(delivery, packed_reply(delivery, outcome), batch)

        return Decision.SETTLED

    def overload(self, delivery: Delivery, error: Overloaded, batch: Batch) -> Decision:
        """
        Refuse a request; an append that nobody waits for waits itself.
        """
        if not delivery.envelope.reply:
            return Decision.DEFERRED
        if self.unread.is_full(delivery):
            self.replies.refused_unstored(delivery, error, batch)
            return Decision.SETTLED
        self.replies.rejected(delivery, error, batch)
        return Decision.SETTLED

    def defers(self, delivery: Delivery) -> bool:
        """
        Whether `decide` would let *delivery* wait without trying it.
        """
        return self.overloaded and not delivery.envelope.reply and self.writes(delivery)

    def writes(self, delivery: Delivery) -> bool:
        """
        Whether *delivery* may change its session.
        """
        return self.replies.changes(delivery.envelope)

    def sender_of(self, delivery: Delivery) -> Principal:
        """
        The principal that sent the command, by its grant.

        Raises:
            Rejection: nobody knows, or the claim is no valid one.
        """
        envelope = delivery.envelope
        if delivery.entry.mad != GATEWAY:
            sender = self._grants.principal_of(delivery.entry.mad, envelope)
            if self._revoked_tokens.active and self.is_revoked(sender):
                raise Unauthenticated(BAD_GRANT)
            return sender
        behalf = envelope.on_behalf
        if behalf is None:
            return GATEWAY_PRINCIPAL
        if behalf.role not in get_args(Claimed):
            raise Invalid(f"no role {behalf.role[:80]!a}", field="on_behalf")
        role = cast(Role, behalf.role)
        return Principal(behalf.principal, role, math.inf, behalf.tenant)

    def is_revoked(self, sender: Principal) -> bool:
        """
        Whether the token behind the sender's grant is revoked.

        Raises:
            Overloaded: nobody can tell now. Not Unavailable: a write that wants no
                reply then waits, and is not lost.
        """
        try:
            revoked = self._revoked_tokens.refuses(sender)
        except Unavailable as error:
            raise Overloaded(error.message, **error.details) from error
        if revoked:
            REVOKED_REFUSALS.inc()
        return revoked

    def may_hear(self, principal: Principal) -> bool:
        """
        Whether *principal* may still get pushes, whatever the session.
        """
        if not self._revoked_tokens.active:
            return True
        try:
            return not self._revoked_tokens.refuses(principal)
        except Unavailable:
            return False

    def may_watch(self, principal: Principal, mad: str, session: Session) -> bool:
        """
        Whether *principal* may watch the session, from the ingress of *mad*.
        """
        asking = principal.name if mad == EDGE else mad
        try:
            self._policy.allow(principal, WATCH_KIND, asking, session)
        except Rejection:
            return False
        return self._policy.seen(principal, session) is not None

    def forget(self) -> None:
        """
        Drop the cache and all cancellations, because they may not be true any more.
        """
        self.cache.forget()
        self.revocation.forget()
        self.unread.clear()

    def _check_tiers(self) -> None:
        if not self.tiers:
            raise Unavailable(
                "this manager has no MongoDB, so nothing becomes durable in it; set "
                "EVERBUS_MONGO_URL"
            )

    def _command(
        self,
        delivery: Delivery,
        sender: Principal,
        session: Session | None,
        body: msgspec.Struct,
        batch: Batch,
    ) -> Command:
        envelope, mad = delivery.envelope, delivery.mad
        owner = body.user_id if isinstance(body, CreateSession) else ""
        may_share = self._policy.allow(sender, envelope.kind, mad, session, owner)

        return Command(
            id=envelope.id,
            kind=envelope.kind,
            session_id=envelope.session,
            mad=mad,
            principal=sender.name,
            tenant=sender.tenant,
            body=body,
            expected_version=envelope.expected_version,
            is_mad=sender.role == "mad",
            may_share=may_share,
            sees_all=self._policy.sees_all(sender),
            fetched=delivery.given_of(session),
            attached=batch.attached(delivery),
        )


def in_time(delivery: Delivery, now: Now) -> None:
    """
    Let it pass before its deadline.

    Raises:
        Expired: the deadline has passed; the command is not applied.
    """
    deadline = delivery.envelope.deadline_ms
    if deadline is not None and now.ms >= delivery.entry.arrived_ms + deadline:
        raise Expired(
            f"deadline of {deadline} ms after arrival had passed; not applied"
        )


def check_durability(envelope: Envelope) -> None:
    """
    Let the command pass if its durability level exists.

    Raises:
        Invalid: there is no such level.
    """
    if envelope.durability not in DURABILITIES:
        raise Invalid(
            f"durability is {envelope.durability[:80]!a}; one of "
            f"{', '.join(sorted(DURABILITIES))}",
            field="durability",
        )


def moment(delivery: Delivery, batch: Batch) -> datetime:
    """
    The time of the change; a new generation begins later than the one before it.
    """
    change = batch.changes.get(delivery.session)
    if change is None or change.now is not None or change.read is None:
        return batch.now.datetime
    return max(batch.now.datetime, change.read.created_at + GENERATION_STEP)


def traced(outcome: Outcome, trace: str) -> Outcome:
    """
    *outcome* with *trace* on each event.
    """
    replace = msgspec.structs.replace
    events = tuple(replace(event, trace=trace) for event in outcome.events)

    return replace(outcome, events=events)


def failed(delivery: Delivery, error: Exception) -> Decision:
    """
    Log a defect and add it to the attempts of the command.
    """
    envelope = delivery.envelope
    log.error(
        "command.failed",
        command=envelope.id,
        kind=envelope.kind,
        trace=trace_id_of(envelope.trace),
        exc_info=error,
    )
    NOTED.count("defect")
    delivery.attempts.append(f"{type(error).__name__}: {error}"[:300])

    return Decision.FAILED
