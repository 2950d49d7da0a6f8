"""
Replies, ledger entries and dead letters of decided commands.

Everything is staged into the batch, so the very commit that makes an answer true
gives it.

Replies that nobody has received are counted for each receiver, which unlinks the
stream of each reply that it has. A receiver that never reads would fill the bus, so
beyond the bound its requests are refused, and the refusals are not stored: only a
wake-up carries them.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import structlog

from everbus.bus.errors import (
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
from everbus.bus.keys import EDGE
from everbus.bus.messages import Envelope, Reply, pack, unpack_reply
from everbus.bus.settled_numbers import RefusedCommand
from everbus.gateway.lane.cache import LaneCache
from everbus.gateway.lane.commit import TO_LEDGER, TO_STREAM, Batch, packed_reply
from everbus.gateway.lane.connection import UndecodableRecord, Unreadable
from everbus.gateway.lane.delivery import (
    Delivery,
    Received,
    Undecodable,
    fingerprint_of,
)
from everbus.gateway.store.outbox_reader import Exchange
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.tracing import is_recorded
from everbus.handlers.routes import Route

log = structlog.get_logger()

# Names of one EXISTS.
KEYS_AT_ONCE = 500
# So many replies are kept in mind before the lane looks which ones are read.
SUSPECT_ITEMS = 1000
# How soon a receiver that has not read is looked at again.
RECHECK_S = 0.2
# Of the message of a refusal that nobody waits for; the dead letter has all of it.
MAX_ANNOUNCED_CHARS = 500
# Refusals after which the same command may well be taken.
PASSING = (Unavailable, Overloaded, Expired, Unauthenticated)


class UnreadLimits(NamedTuple):
    """
    Most replies, and their bytes, that one receiver may leave on one partition.
    """

    most_bytes: int = 32 * 1024 * 1024
    most_items: int = 10_000
    ttl_ms: int = 60_000


class _Unread:
    """
    The replies of one receiver, oldest first: end of life, key, bytes.
    """

    __slots__ = ("bytes", "look_at", "replies")

    def __init__(self) -> None:
        self.replies: deque[tuple[int, str, int]] = deque()
        self.bytes = 0
        self.look_at = 0.0


class UnreadReplies:
    """
    The unread replies of one lane.

    Attributes:
        full: the receivers whose requests are refused.
    """

    def __init__(
        self,
        limits: UnreadLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.full: set[str] = set()
        self._limits = limits or UnreadLimits()
        self._tidied_ms = 0
        self._clock = clock
        self._receivers: dict[str, _Unread] = {}
        self._suspected: set[str] = set()

    def is_full(self, delivery: Delivery) -> bool:
        """
        Whether the receiver of the reply to *delivery* has to read first.
        """
        return bool(self.full) and receiver_of(delivery) in self.full

    def note(self, delivery: Delivery, key: str, size: int, now_ms: int) -> None:
        """
        Count a committed reply of *size* bytes.
        """
        receiver = receiver_of(delivery)
        unread = self._receivers.get(receiver)
        if unread is None:
            self._tidy(now_ms)
            unread = self._receivers[receiver] = _Unread()
        unread.replies.append((now_ms + self._limits.ttl_ms, key, size))
        unread.bytes += size
        if 2 * unread.bytes >= self._limits.most_bytes or len(unread.replies) >= min(
            self._limits.most_items // 2, SUSPECT_ITEMS
        ):
            self._suspected.add(receiver)

    @property
    def is_due(self) -> bool:
        """
        Whether `look` has something to look at now.
        """
        return bool(self._suspected)

    async def look(self, wire: Exchange, now_ms: int) -> None:
        """
        See which replies of the suspected receivers are still there.

        Raises:
            WireFailed: the connection broke.
        """
        now = self._clock()
        for receiver in tuple(self._suspected):
            unread = self._receivers[receiver]
            if unread.look_at > now:
                continue
            unread.look_at = now + RECHECK_S
            await self._look(wire, unread, now_ms)
            self._judge(receiver, unread)

    def clear(self) -> None:
        """
        Forget all: what is unread expires.
        """
        self._receivers.clear()
        self._suspected.clear()
        self.full.clear()

    def _tidy(self, now_ms: int) -> None:
        """
        Forget the receivers whose last reply has expired.
        """
        if now_ms < self._tidied_ms + self._limits.ttl_ms:
            return
        self._tidied_ms = now_ms
        for receiver, unread in tuple(self._receivers.items()):
            if not unread.replies or unread.replies[-1][0] <= now_ms:
                del self._receivers[receiver]
                self._suspected.discard(receiver)
                self.full.discard(receiver)

    async def _look(self, wire: Exchange, unread: _Unread, now_ms: int) -> None:
        replies = [one for one in unread.replies if one[0] > now_ms]
        left: list[tuple[int, str, int]] = []
        for first in range(0, len(replies), KEYS_AT_ONCE):
            some = replies[first : first + KEYS_AT_ONCE]
            [there] = await wire.exchange([("EXISTS", *(key for _, key, _ in some))])
            if there:
                found = await wire.exchange([("EXISTS", key) for _, key, _ in some])
                left += [one for one, n in zip(some, found, strict=True) if n]
        unread.replies = deque(left)
        unread.bytes = sum(size for _, _, size in left)

    def _judge(self, receiver: str, unread: _Unread) -> None:
        limits = self._limits
        if (
            unread.bytes >= limits.most_bytes
            or len(unread.replies) >= limits.most_items
        ):
            if receiver not in self.full:
                log.warning(
                    "replies.unread",
                    receiver=receiver,
                    items=len(unread.replies),
                    bytes=unread.bytes,
                )
                metrics.BOUND_REACHED.labels("unread_max_bytes").inc()
            self.full.add(receiver)
            return
        self.full.discard(receiver)
        self._suspected.discard(receiver)
        if not unread.replies:
            del self._receivers[receiver]


def receiver_of(delivery: Delivery) -> str:
    """
    The one who reads the reply: a MAD; behind an edge, the caller.
    """
    mad, principal = delivery.entry.mad, delivery.principal
    if mad != EDGE or principal is None:
        return mad
    return f"{EDGE}/{principal.tenant}/{principal.name}"


class ReplyStager:
    """
    Stages the answers to the commands of one lane.

    Args:
        cache: holds the first replies.
        kinds: all kinds that are served, with *routes* or by the lane itself.
    """

    def __init__(
        self, cache: LaneCache, routes: Mapping[str, Route], kinds: Collection[str]
    ) -> None:
        self._cache = cache
        self._routes = routes
        self._kinds = kinds

    def changes(self, envelope: Envelope) -> bool:
        """
        Whether a command of its kind may change a session.
        """
        route = self._routes.get(envelope.kind)
        return route is not None and route.writes

    def bury(self, delivery: Delivery, batch: Batch, cause: str) -> None:
        """
        Give *delivery* up: a dead letter, and a reply if its sender waits.
        """
        attempts = delivery.attempts
        died = attempts[-1] if attempts else "no attempt was recorded"
        message = f"given up after {len(attempts)} attempts; the last: {died}"
        batch.bury(delivery, cause, message)
        self._refuse(delivery, EverbusError(message), batch)
        self._settle(delivery, batch, cause)

    def bury_undecodable(self, received: Undecodable, batch: Batch) -> None:
        """
        Make a dead letter of no command, and reply to its sender if that can be.
        """
        batch.bury_undecodable(received)
        delivery = received.answerable
        if delivery is not None:
            self._refuse(delivery, received.trouble, batch)
        decoded = received.delivery
        envelope = None if decoded is None else decoded.envelope
        self._note(received, envelope, batch, received.cause)
        batch.release(received)

    def repeated(self, delivery: Delivery, batch: Batch) -> None:
        """
        Give the sender of a settled write its first reply again.
        """
        envelope, command = delivery.envelope, delivery.command
        # Empty: it is known to be applied, and nobody knows its reply.
        first = batch.kept.get(command) or self._cache.first_replies.get(command)
        first = first or None
        refused = _misused(delivery, first)
        if envelope.reply and first is not None and refused is None:
            durability = envelope.durability
            self._reply(delivery, first, batch, 0, durability)
            self._replied(delivery, batch, "repeated", durability)
            return
        if envelope.reply and refused is not None:
            batch.reply(delivery, _refusal(envelope, refused), TO_STREAM)
        self._settle(delivery, batch, "repeated")

    def answer(self, delivery: Delivery, packed: bytes, batch: Batch) -> None:
        """
        Reply ok, as soon as the command is as durable as it asks for.
        """
        envelope = delivery.envelope
        changes = self.changes(envelope)
        keep = TO_LEDGER if changes else 0
        durability = envelope.durability if changes else "hot"
        if envelope.reply:
            self._reply(delivery, packed, batch, keep, durability)
        elif keep and delivery.ordinal is None:
            # No number tells a free id from a repeated one: the ledger must.
            batch.reply(delivery, packed_reply(delivery, None), TO_LEDGER)
        self._replied(delivery, batch, "ok", durability)

    def hold(self, delivery: Delivery, packed: bytes, batch: Batch) -> None:
        """
        Reply ok when MongoDB holds all that is committed so far.
        """
        batch.hold(delivery, packed, delivery.session)
        self._settle(delivery, batch, "ok")

    def rejected(self, delivery: Delivery, error: EverbusError, batch: Batch) -> None:
        """
        Refuse the command; it is a dead letter if its sender does not wait.
        """
        self._refuse(delivery, error, batch)
        if not delivery.envelope.reply and not isinstance(error, Cancelled):
            cause = error.cause if isinstance(error, Unreadable) else error.code
            batch.bury(delivery, cause, error.message)
        self._settle(delivery, batch, error.code)

    def refused_unstored(
        self, delivery: Delivery, error: EverbusError, batch: Batch
    ) -> None:
        """
        Refuse the command by a wake-up alone: its sender leaves its replies unread.
        """
        batch.wake(delivery, _refusal(delivery.envelope, error))
        self._settle(delivery, batch, error.code)

    def _reply(
        self, delivery: Delivery, packed: bytes, batch: Batch, keep: int, level: str
    ) -> None:
        """
        Stage the reply for the time when the command has its durability *level*.
        """
        if level == "hot":
            batch.reply(delivery, packed, TO_STREAM | keep)
            return
        if keep:
            batch.reply(delivery, packed, keep)
        if level == "warm":
            batch.hold(delivery, packed)
        else:
            batch.replicate(delivery, packed)

    def _replied(self, delivery: Delivery, batch: Batch, code: str, level: str) -> None:
        self._note(delivery, delivery.envelope, batch, code)
        # Until its reply, the entry of a replicated command stays pending.
        if not delivery.envelope.reply or level != "replicated":
            batch.release(delivery)

    def _refuse(self, delivery: Delivery, error: EverbusError, batch: Batch) -> None:
        envelope = delivery.envelope
        # Kept although nobody waits: `request.outcome` needs it. An unknown kind may
        # be one that changes something.
        keep = self.changes(envelope) or envelope.kind not in self._kinds
        if delivery.ordinal is None and isinstance(error, PASSING):
            # The maker of a free id repeats the command under it.
            keep = False
        if isinstance(error, UndecodableRecord):
            # The ledger may have the command's first reply.
            keep = False
        flags = (TO_STREAM if envelope.reply else 0) | (TO_LEDGER if keep else 0)
        if flags:
            refusal = _refusal(envelope, error, fingerprint_of(delivery))
            batch.reply(delivery, refusal, flags)
        if not envelope.reply and delivery.instance:
            self._announce(delivery, error, batch)

    def _announce(self, delivery: Delivery, error: EverbusError, batch: Batch) -> None:
        """
        Tell the instance of a command that waits for no reply: at once by its channel,
        which may lose it, and again with the answer to `request.settled`.
        """
        envelope = delivery.envelope
        refused = RefusedCommand(
            *(envelope.id, error.code, error.message[:MAX_ANNOUNCED_CHARS]),
            *(envelope.kind, envelope.session, error.details),
        )
        batch.announce(delivery, refused)
        if delivery.publisher is not None:
            self._cache.note_refusal(delivery.publisher, refused)

    def _settle(self, delivery: Delivery, batch: Batch, code: str) -> None:
        self._note(delivery, delivery.envelope, batch, code)
        batch.release(delivery)

    def _note(
        self, received: Received, envelope: Envelope | None, batch: Batch, code: str
    ) -> None:
        kind = envelope.kind if envelope is not None else ""
        batch.outcomes[kind if kind in self._routes else "other", code] += 1
        if envelope is not None and envelope.trace and is_recorded(envelope.trace):
            batch.traced.append((envelope, code))
        batch.note(received, self._cache.observe(received))


def _misused(delivery: Delivery, first: bytes | None) -> Rejection | None:
    """
    The reason against giving the sender of a repeated command its *first* reply.
    """
    if first is None:
        return AlreadyExists(
            f"command {delivery.envelope.id} was settled before; its first reply is no "
            "longer kept. Read the session to see its state",
            settled_before=True,
        )
    fingerprint = fingerprint_of(delivery)
    if fingerprint and unpack_reply(first).fingerprint != fingerprint:
        return Invalid(
            f"the id {delivery.envelope.id} was used for another command; choose a "
            "fresh one for each",
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
