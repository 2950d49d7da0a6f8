"""
What a lane is given: stream entries, the commands in them, and the time.

A command that decodes is a `Delivery`; anything else is `Undecodable` and becomes a
dead letter. So a `Delivery` always has an envelope.
"""

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, Self

import msgspec

from everbus.bus.errors import Malformed, Rejection
from everbus.bus.keys import EDGE, GATEWAY, partition_of
from everbus.bus.messages import (
    COMMAND_FIELD,
    MAX_COMMAND_BYTES,
    MAX_COMMAND_ID,
    MAX_DIGITS,
    SCHEMA,
    Envelope,
    Ordinal,
    Session,
    check_command_id,
    check_session_id,
    ordinal_of,
    pack,
    unpack,
    unpack_envelope,
)
from everbus.bus.settled_numbers import SETTLED_KIND
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.fencing import LOST_KIND
from everbus.handlers.commands import Attachment
from everbus.handlers.fetch_requests import FetchRequest
from everbus.handlers.routes import HANDLERS

# About commands and instances, not about a session: they have no handler.
OUTCOME_KIND = "request.outcome"
CANCEL_KIND = "request.cancel"
WATCH_KIND = "session.watch"
LANES_OWN = frozenset({OUTCOME_KIND, CANCEL_KIND, SETTLED_KIND, LOST_KIND})
# Twice the size of the entries that our publisher writes.
MAX_ENTRY_COMMANDS = 64
MAX_ENTRY_BYTES = 2 * MAX_COMMAND_BYTES
KINDS = frozenset(HANDLERS) | LANES_OWN
# These belong to no session, so any lane can serve them.
SESSIONLESS = frozenset(
    {kind for kind, route in HANDLERS.items() if route.sessionless} | LANES_OWN
)
# The sender reads its replies in another partition, or has no valid id.
_UNANSWERABLE = frozenset({"invalid_id", "wrong_partition"})
# An id that a publisher counts, without its number; see `ordinal_of`.
_ID_HEAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[0-9]+")
# `{"` in base64, with which every JWT begins.
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_.-]*")


class Now(NamedTuple):
    """
    The bus server's clock at the read of a batch, in two forms.
    """

    ms: int
    datetime: datetime

    @classmethod
    def at(cls, ms: int) -> Self:
        """
        The time *ms* milliseconds after 1970, in UTC.
        """
        return cls(ms, datetime.fromtimestamp(ms / 1000, UTC))


class Entry:
    """
    One delivered stream entry; acknowledged with its last settled command.

    Attributes:
        mad: the MAD whose ingress holds the entry.
        id: the stream id, `<ms>-<n>`.
        arrived_ms: time of arrival, on the bus server's clock.
        unsettled: number of its commands that are not settled.
    """

    __slots__ = ("arrived_ms", "id", "mad", "unsettled")

    def __init__(self, mad: str, identifier: str) -> None:
        self.mad = mad
        self.id = identifier
        self.arrived_ms = int(identifier.partition("-")[0])
        self.unsettled = 0


class Received:
    """
    One field of a stream entry, decodable or not.

    Attributes:
        ordinal: its number in its publisher's count; None for a free id.
        publisher: the publisher instance that counts it; None for a free id.
        suspect: whether an earlier owner may have died of it.
        attempts: the cause of each failed attempt, oldest first.
    """

    __slots__ = (
        "attempts",
        "entry",
        "index",
        "ordinal",
        "packed",
        "publisher",
        "suspect",
    )

    def __init__(self, entry: Entry, index: int, packed: bytes) -> None:
        self.entry = entry
        self.index = index
        self.packed = packed
        self.ordinal: Ordinal | None = None
        self.publisher: str | None = None
        self.suspect = False
        self.attempts: list[str] = []

    @property
    def name(self) -> str:
        """
        Its permanent name among the commands of its partition.
        """
        return f"{self.entry.mad}/{self.entry.id}/{self.index}"


class Delivery(Received):
    """
    One decoded command on its way through a lane.

    Attributes:
        envelope: the command.
        session: the session of the command; empty if it has none.
        wants: the data that it needs from the lower tiers, if any.
        given: the data that they gave, or the EverbusError that says why not; None
            until they answer.
        given_bytes: size of the data that counts in the replica's FetchBudget.
        generation: creation time of the session that the data was read for; a new
            session under the same id asks anew.
        attached: the attachments that a lookup read for it.
        principal: the sender, set by the decision.
    """

    __slots__ = (
        "attached",
        "envelope",
        "generation",
        "given",
        "given_bytes",
        "principal",
        "session",
        "wants",
    )

    def __init__(
        self, entry: Entry, index: int, packed: bytes, envelope: Envelope
    ) -> None:
        # Not by super(): the constructor runs once a command.
        self.entry = entry
        self.index = index
        self.packed = packed
        self.envelope = envelope
        self.session = envelope.session
        self.ordinal: Ordinal | None = None
        self.publisher: str | None = None
        self.suspect = False
        self.attempts: list[str] = []
        self.wants: FetchRequest | None = None
        self.given: Any = None  # the data that `wants` names, or an EverbusError
        self.given_bytes = 0
        self.generation: datetime | None = None
        self.attached: tuple[Attachment, ...] = ()
        self.principal: Principal | None = None

    @property
    def instance(self) -> str:
        """
        The instance that waits for the reply; empty if it is unknown.
        """
        return self.envelope.wake if self.ordinal is None else self.ordinal.instance

    @property
    def mad(self) -> str:
        """
        The MAD that the command counts for; at the edge, the name of the caller.
        """
        mad = self.entry.mad
        if mad == EDGE and self.principal is not None:
            return self.principal.name
        if mad == GATEWAY and self.envelope.on_behalf:
            return self.envelope.on_behalf.mad
        return mad

    @property
    def command(self) -> str:
        """
        `<mad>:<command id>`: a command id counts only for the MAD that used it.
        """
        return f"{self.entry.mad}:{self.envelope.id}"

    def want(self, wanted: FetchRequest, session: Session | None) -> None:
        """
        Note the data that it needs, and the session that it is for.
        """
        self.wants = wanted
        self.generation = session.created_at if session is not None else None

    def given_of(self, session: Session | None) -> Any:
        """
        The data from the lower tiers, unless it is of another generation.
        """
        if self.wants is None:
            return self.given
        generation = session.created_at if session is not None else None

        return self.given if generation == self.generation else None


class Undecodable(Received):
    """
    A field that is no valid command; it becomes a dead letter.

    Attributes:
        trouble: the reason.
        delivery: the command, if it decodes and is refused for its content.
        addressed: id and sender of a command that does not decode, for the reply; None
            if they do not decode either.
    """

    __slots__ = ("addressed", "delivery", "trouble")

    def __init__(
        self,
        entry: Entry,
        index: int,
        packed: bytes,
        trouble: Malformed,
        delivery: Delivery | None = None,
        addressed: Delivery | None = None,
    ) -> None:
        super().__init__(entry, index, packed)
        self.trouble = trouble
        self.delivery = delivery
        self.addressed = addressed
        known = delivery or addressed
        if known is not None:
            self.ordinal, self.publisher = known.ordinal, known.publisher

    @property
    def cause(self) -> str:
        """
        Stable word for the dead letter and the metrics.
        """
        return str(self.trouble.details["cause"])

    @property
    def answerable(self) -> Delivery | None:
        """
        The command to reply to; None if its sender cannot read a reply.
        """
        if self.ordinal is None and self.cause in _UNANSWERABLE:
            return None
        return self.delivery or self.addressed


Queued = Delivery | Undecodable


def cancels_in(received: Iterable[Queued]) -> list[Delivery]:
    """
    The cancellations among *received*.
    """
    return [
        one
        for one in received
        if isinstance(one, Delivery) and one.envelope.kind == CANCEL_KIND
    ]


def received_in(
    mad: str, identifier: str, fields: list[bytes], lane: int, partitions: int
) -> list[Queued]:
    """
    The commands of one stream entry, in order; raises nothing for their content.
    """
    entry = Entry(mad, identifier)
    packed = [
        value
        for name, value in zip(fields[::2], fields[1::2], strict=False)
        if name == COMMAND_FIELD
    ]
    trouble = _entry_trouble(packed)
    if trouble is not None:
        entry.unsettled = 1
        return [Undecodable(entry, 0, b"".join(packed[:1]), trouble)]
    entry.unsettled = len(packed)

    return [
        _decoded(entry, index, value, lane, partitions)
        for index, value in enumerate(packed)
    ]


def _entry_trouble(packed: list[bytes]) -> Malformed | None:
    """
    The reason against a whole entry, which our publishers never write.
    """
    if not packed:
        return Malformed("entry without a field c", cause="no_command")
    size = sum(map(len, packed))
    if len(packed) > MAX_ENTRY_COMMANDS or size > MAX_ENTRY_BYTES:
        return Malformed(
            f"entry of {len(packed)} commands, {size} bytes; at most "
            f"{MAX_ENTRY_COMMANDS} and {MAX_ENTRY_BYTES}",
            cause="too_large",
        )
    return None


def _decoded(
    entry: Entry, index: int, packed: bytes, lane: int, partitions: int
) -> Queued:
    delivery = None
    try:
        envelope = unpack_envelope(packed)
        delivery = Delivery(entry, index, packed, envelope)
        _check_id(delivery, lane)
        _check(envelope, lane, partitions)
    except Malformed as error:
        addressed = None if delivery else _addressed(entry, index, packed, lane)
        return Undecodable(entry, index, packed, error, delivery, addressed)
    return delivery


def _addressed(entry: Entry, index: int, packed: bytes, lane: int) -> Delivery | None:
    """
    What names the command and its sender in an envelope that does not decode.

    Enough for the reply, the ledger and the publisher's window; None without a valid
    id: nobody waits under it.
    """
    try:
        fields = unpack(packed, dict)
        envelope = Envelope(
            v=SCHEMA,
            id=_text_of(fields, "id"),
            kind=_text_of(fields, "kind"),
            session=_text_of(fields, "session"),
            reply=bool(fields.get("reply")),
            wake=_text_of(fields, "wake"),
        )
        delivery = Delivery(entry, index, packed, envelope)
        _check_id(delivery, lane)
    except (msgspec.ValidationError, Malformed):
        return None
    return delivery


def _text_of(fields: dict[Any, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _check(envelope: Envelope, lane: int, partitions: int) -> None:
    if envelope.kind not in KINDS:
        raise Malformed(f"unknown kind {envelope.kind[:64]!r}", cause="unknown_kind")
    if envelope.kind in SESSIONLESS:
        return
    if _lane_of(envelope.session, partitions) != lane:
        raise Malformed(
            f"session {envelope.session} is not of partition {lane}",
            cause="wrong_partition",
        )


# The same sessions come again and again; lru_cache does not remember exceptions.
@lru_cache(maxsize=16_384)
def _lane_of(session_id: str, partitions: int) -> int:
    try:
        return partition_of(check_session_id(session_id), partitions)
    except Rejection as error:
        raise Malformed(str(error), cause="invalid_session") from error


class _Count(NamedTuple):
    """
    What the numbered ids of one publisher instance in one partition begin with.
    """

    instance: str
    partition: int
    publisher: str


# Regular expressions take longer than the rest of an id's check together.
@lru_cache(maxsize=16_384)
def _count_of(mad: str, head: str) -> _Count | None:
    """
    The count of the ids `<head>.<n>` on the ingress of *mad*; None if they are free.
    """
    ordinal = ordinal_of(f"{head}.1")
    if ordinal is None or _ID_HEAD.fullmatch(head) is None:
        return None
    return _Count(ordinal.instance, ordinal.partition, f"{mad}:{ordinal.instance}")


def _number(delivery: Delivery, lane: int) -> bool:
    """
    Note the ordinal of a valid numbered id of this lane; False for any other id.
    """
    identifier = delivery.envelope.id
    if len(identifier) > MAX_COMMAND_ID or not identifier.isascii():
        return False
    head, _, n = identifier.rpartition(".")
    if not n.isdigit() or len(n) > MAX_DIGITS or n[0] == "0":
        return False
    count = _count_of(delivery.entry.mad, head)
    if count is None or count.partition != lane:
        return False
    delivery.ordinal = Ordinal(count.instance, lane, int(n))
    delivery.publisher = count.publisher
    return True


def _check_id(delivery: Delivery, lane: int) -> None:
    envelope = delivery.envelope
    if not envelope.wake and _number(delivery, lane):
        return
    try:
        check_command_id(envelope.id)
        if envelope.wake:
            check_command_id(envelope.wake)
    except Rejection as error:
        raise Malformed(str(error), cause="invalid_id") from error
    ordinal = ordinal_of(envelope.id)
    if ordinal is None:
        return
    if ordinal.partition != lane:
        raise Malformed(f"id {envelope.id} belongs elsewhere", cause="wrong_partition")
    # Only now: this lane must not count a number of another lane.
    delivery.ordinal = ordinal
    delivery.publisher = f"{delivery.entry.mad}:{ordinal.instance}"


def fingerprint_of(delivery: Delivery) -> bytes:
    """
    Hash of a free-id command, which tells it from other commands under the same id.

    Empty where the id is a number, which its publisher never gives twice.
    """
    if delivery.ordinal is not None:
        return b""
    envelope, asker = delivery.envelope, delivery.principal
    who = (asker.tenant, asker.name) if asker else None
    head = pack((who, envelope.kind, envelope.session, envelope.expected_version))

    return hashlib.blake2b(head + envelope.body, digest_size=8).digest()


def without_grant(envelope: Envelope) -> Envelope:
    """
    The envelope for storage; the sender stands beside it.
    """
    return msgspec.structs.replace(envelope, grant=b"")


def without_tokens(packed: bytes) -> bytes:
    """
    Undecodable bytes for storage: each JWT-like part becomes `*`.
    """
    return _TOKEN.sub(lambda found: b"*" * len(found[0]), packed)
