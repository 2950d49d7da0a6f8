"""
What a lane was given: stream entries, and the commands in them.
"""

import hashlib
import re
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from bus.codec import COMMAND_FIELD, Ordinal, ordinal_of, pack, unpack_envelope
from bus.errors import Malformed, Rejection
from bus.keys import EDGE, GATEWAY, partition_of
from bus.messages import (
    MAX_COMMAND_BYTES,
    Envelope,
    Session,
    check_command_id,
    check_session_id,
)
from gateway.fencing import LOST_KIND
from gateway.identity.principal import Principal
from handlers.commands import Attachment
from handlers.routes import HANDLERS
from handlers.wanted import Wanted

# About commands and instances, not about a session: they have no handler.
OUTCOME_KIND = "request.outcome"
CANCEL_KIND = "request.cancel"
WATCH_KIND = "session.watch"
LANES_OWN = frozenset({OUTCOME_KIND, CANCEL_KIND, LOST_KIND})
# Twice what our publisher packs into one entry.
MAX_ENTRY_COMMANDS = 64
MAX_ENTRY_BYTES = 2 * MAX_COMMAND_BYTES
KINDS = frozenset(HANDLERS) | LANES_OWN
# These are of no session, so any lane can serve them.
SESSIONLESS = frozenset(
    {kind for kind, route in HANDLERS.items() if route.sessionless} | LANES_OWN
)
# `{"` in base64, with which every JWT begins.
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_.-]*")


class Entry:
    """
    One delivered stream entry; acknowledged when its last command is settled.

    Attributes:
        mad: the MAD whose ingress it lies on.
        id: the stream id, `<ms>-<n>`.
        arrived_ms: when it came, on the bus server's clock.
        unsettled: how many of its commands are not settled.
    """

    __slots__ = ("arrived_ms", "id", "mad", "unsettled")

    def __init__(self, mad: str, identifier: str) -> None:
        self.mad = mad
        self.id = identifier
        self.arrived_ms = int(identifier.partition("-")[0])
        self.unsettled = 0


class Work:
    """
    One command on its way through a lane.

    Attributes:
        envelope: the command; None if it is no command of ours.
        ordinal: its number in its publisher's count; None for a free id.
        publisher: the publisher instance that counts it; None for a free id.
        trouble: why it cannot be a command, then it becomes a dead letter.
        suspect: whether an earlier owner may have died of it.
        attempts: what every failed attempt died of, oldest first.
        wants: what it needs from the tiers below, if anything.
        given: what they gave, or why they cannot; None as long as nothing is known.
        life: of the session that it was asked for; another one asks anew.
        attached: what was read of `store.attached` for it.
        principal: who asks, once that is known.
        session: the session it is for; empty if it is for none.
    """

    __slots__ = (
        "attached",
        "attempts",
        "entry",
        "envelope",
        "given",
        "index",
        "life",
        "ordinal",
        "packed",
        "principal",
        "publisher",
        "session",
        "suspect",
        "trouble",
        "wants",
    )

    def __init__(self, entry: Entry, index: int, packed: bytes) -> None:
        self.entry = entry
        self.index = index
        self.packed = packed
        self.envelope: Envelope | None = None
        self.session = ""
        self.ordinal: Ordinal | None = None
        self.publisher: str | None = None
        self.trouble: Malformed | None = None
        self.suspect = False
        self.attempts: list[str] = []
        self.wants: Wanted | None = None
        self.given: Any = None  # what `wants` names, or an EverbusError
        self.life: datetime | None = None
        self.attached: tuple[Attachment, ...] = ()
        self.principal: Principal | None = None

    @property
    def name(self) -> str:
        """
        What identifies it among the commands of its partition, for ever.
        """
        return f"{self.entry.mad}/{self.entry.id}/{self.index}"

    @property
    def instance(self) -> str:
        """
        The instance that waits for its reply; empty if nothing tells.
        """
        if self.ordinal is not None:
            return self.ordinal.instance
        return self.envelope.wake if self.envelope is not None else ""

    @property
    def mad(self) -> str:
        """
        The MAD whose command it is; of the edge's, whoever asked there.
        """
        envelope = self.envelope
        if self.entry.mad == EDGE and self.principal is not None:
            return self.principal.name
        if self.entry.mad == GATEWAY and envelope and envelope.on_behalf:
            return envelope.on_behalf.mad
        return self.entry.mad

    @property
    def command(self) -> str:
        """
        `<mad>:<command id>`: a command id counts only for the MAD that used it.
        """
        return f"{self.entry.mad}:{self.envelope.id if self.envelope else ''}"

    def want(self, wanted: Wanted, session: Session | None) -> None:
        """
        Note what it needs, and for which life of its session.
        """
        self.wants = wanted
        self.life = session.created_at if session is not None else None

    def given_of(self, session: Session | None) -> Any:
        """
        What it was given, unless that is of another life of the session.
        """
        life = session.created_at if session is not None else None

        return self.given if self.wants is None or life == self.life else None


def works_of(
    mad: str, identifier: str, fields: list[bytes], lane: int, partitions: int
) -> list[Work]:
    """
    The commands of one stream entry, in order; never raises for what is in them.
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
        whole = Work(entry, 0, b"".join(packed[:1]))
        whole.trouble = trouble
        return [whole]
    entry.unsettled = len(packed)
    works = [Work(entry, index, value) for index, value in enumerate(packed)]
    for work in works:
        _decode(work, lane, partitions)
    return works


def _entry_trouble(packed: list[bytes]) -> Malformed | None:
    """
    Why an entry as a whole is none of ours: our publishers never write such.
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


def _decode(work: Work, lane: int, partitions: int) -> None:
    try:
        envelope = unpack_envelope(work.packed)
        work.envelope = envelope
        work.session = envelope.session
        _check_id(work, envelope, lane)
        _check(envelope, lane, partitions)
    except Malformed as error:
        work.trouble = error


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


# The same sessions come again and again; raising is not remembered.
@lru_cache(maxsize=16_384)
def _lane_of(session_id: str, partitions: int) -> int:
    try:
        return partition_of(check_session_id(session_id), partitions)
    except Rejection as error:
        raise Malformed(str(error), cause="invalid_session") from error


def _check_id(work: Work, envelope: Envelope, lane: int) -> None:
    try:
        check_command_id(envelope.id)
        if envelope.wake:
            check_command_id(envelope.wake)
    except Rejection as error:
        raise Malformed(str(error), cause="invalid_id") from error
    ordinal = ordinal_of(envelope.id)
    if ordinal is not None and ordinal.partition != lane:
        raise Malformed(f"id {envelope.id} belongs elsewhere", cause="wrong_partition")
    # Only now: a number that is another lane's must not be counted in this one.
    work.ordinal = ordinal
    if ordinal is not None:
        work.publisher = f"{work.entry.mad}:{ordinal.instance}"


def fingerprint_of(work: Work) -> bytes:
    """
    What tells a command of a free id from another one under that id, by anybody;
    empty where the id is a number, which its publisher never gives twice.
    """
    envelope = work.envelope
    if envelope is None or work.ordinal is not None:
        return b""
    who = (work.principal.tenant, work.principal.name) if work.principal else None
    head = pack((who, envelope.kind, envelope.session, envelope.expected_version))

    return hashlib.blake2b(head + envelope.body, digest_size=8).digest()


def without_grant(envelope: Envelope) -> Envelope:
    """
    The envelope as it may be kept: who asked is told beside it.
    """
    return msgspec.structs.replace(envelope, grant=b"")


def without_tokens(packed: bytes) -> bytes:
    """
    Undecodable bytes as they may be kept: what begins like a JWT becomes `*`.
    """
    return _TOKEN.sub(lambda found: b"*" * len(found[0]), packed)
