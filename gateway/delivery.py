"""
What a lane was given: stream entries, and the commands in them.
"""

import msgspec

from bus.codec import COMMAND_FIELD, Ordinal, ordinal_of, unpack_envelope
from bus.errors import EverbusError, Malformed
from bus.keys import partition_of
from bus.messages import (
    MAX_COMMAND_BYTES,
    Envelope,
    TimelinePage,
    check_command_id,
    check_session_id,
)
from handlers.commands import WarmPage
from handlers.routes import HANDLERS

# Asks what became of a command; has no session, hence no handler.
OUTCOME_KIND = "request.outcome"
# Twice what our publisher packs into one entry.
MAX_ENTRY_COMMANDS = 64
MAX_ENTRY_BYTES = 2 * MAX_COMMAND_BYTES
KINDS = frozenset({*HANDLERS, OUTCOME_KIND})


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
        trouble: why it cannot be a command, then it becomes a dead letter.
        suspect: whether an earlier owner may have died of it.
        attempts: what every failed attempt died of, oldest first.
        page: which older part of the timeline it asked for, then that page,
            or why it cannot be had.
    """

    __slots__ = (
        "attempts",
        "entry",
        "envelope",
        "index",
        "ordinal",
        "packed",
        "page",
        "suspect",
        "trouble",
    )

    def __init__(self, entry: Entry, index: int, packed: bytes) -> None:
        self.entry = entry
        self.index = index
        self.packed = packed
        self.envelope: Envelope | None = None
        self.ordinal: Ordinal | None = None
        self.trouble: Malformed | None = None
        self.suspect = False
        self.attempts: list[str] = []
        self.page: WarmPage | TimelinePage | EverbusError | None = None

    @property
    def name(self) -> str:
        """
        What identifies it among the commands of its partition, for ever.
        """
        return f"{self.entry.mad}/{self.entry.id}/{self.index}"

    @property
    def command(self) -> str:
        """
        `<mad>:<command id>`: a command id counts only for the MAD that used it.
        """
        return f"{self.entry.mad}:{self.envelope.id if self.envelope else ''}"

    @property
    def publisher(self) -> str | None:
        """
        The publisher instance that counts it; None for a free id.
        """
        if self.ordinal is None:
            return None
        return f"{self.entry.mad}:{self.ordinal.instance}"


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
        work.ordinal = ordinal_of(envelope.id)
        _check(work, envelope, lane, partitions)
    except Malformed as error:
        work.trouble = error


def _check(work: Work, envelope: Envelope, lane: int, partitions: int) -> None:
    if envelope.kind not in KINDS:
        raise Malformed(f"unknown kind {envelope.kind[:64]!r}", cause="unknown_kind")
    _check_id(envelope)
    if work.ordinal is not None and (
        work.ordinal.partition != lane or work.ordinal.n < 1
    ):
        raise Malformed(f"id {envelope.id} belongs elsewhere", cause="wrong_partition")
    if envelope.kind == OUTCOME_KIND:
        return
    try:
        check_session_id(envelope.session)
    except Exception as error:
        raise Malformed(str(error), cause="invalid_session") from error
    if partition_of(envelope.session, partitions) != lane:
        raise Malformed(
            f"session {envelope.session} is not of partition {lane}",
            cause="wrong_partition",
        )


def _check_id(envelope: Envelope) -> None:
    try:
        check_command_id(envelope.id)
    except Exception as error:
        raise Malformed(str(error), cause="invalid_id") from error


def without_token(envelope: Envelope) -> Envelope:
    """
    The envelope as it may be kept: a bearer token must not lie in dead letters.
    """
    return msgspec.structs.replace(envelope, token="")
