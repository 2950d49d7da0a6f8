"""
What a commit hands to the archiver: one outbox entry with a record a session.
"""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from bus.codec import pack
from bus.messages import Session
from handlers.outcomes import Archived, Event, NewCheckpoint

VALUE_FIELD = b"b"
COUNT_FIELD = b"n"
REPLIES_FIELD = b"r"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    What one commit did to one session.

    Attributes:
        created_at: tells two lives of one id apart (deleted, made again).
        version: the session's, after the last of *events*.
        state: the whole session, if its version moved; else None.
        entries: appended timeline entries, in ascending seq.
        events: what happened, in order.
        deleted: the session was deleted; version is one above its last.
        checkpoints: to be kept, in order.
        archived: the session as it is at version is in the cold tier, verified:
            what remains of it here is a stub.
    """

    session: str
    created_at: datetime
    version: int
    last_seq: int
    last_active: datetime
    notices: int = 0
    state: Session | None = None
    entries: tuple[msgspec.Raw, ...] = ()
    events: tuple[Event, ...] = ()
    deleted: bool = False
    checkpoints: tuple[NewCheckpoint, ...] = ()
    archived: Archived | None = None


class HeldReply(msgspec.Struct, frozen=True, array_like=True):
    """
    A reply that is given when MongoDB holds what it is a reply to.

    Attributes:
        stream: the key of the reply's stream.
        channel: where its reader is woken; empty: nowhere.
        command: the id of its command.
        packed: the reply.
    """

    stream: str
    channel: str
    command: str
    packed: bytes

    @property
    def carried(self) -> bytes | str:
        """
        What the wake-up carries.
        """
        return carried(self.command, self.packed)


# Up to this size the wake-up carries a copy of the reply, which saves its reader
# a round trip; the reply's stream stays the truth.
CARRIED_BYTES = 4096


def carried(command: str, packed: bytes) -> bytes | str:
    """
    What a wake-up carries: the reply if it is small, else its command's id (text).
    """
    return packed if len(packed) <= CARRIED_BYTES else command


_records = msgspec.msgpack.Decoder(tuple[Record, ...])
_replies = msgspec.msgpack.Decoder(tuple[HeldReply, ...])


def pack_records(records: list[Record]) -> bytes:
    """
    The outbox value of one commit.
    """
    return pack(records)


def unpack_records(packed: bytes) -> tuple[Record, ...]:
    """
    The records of one commit, in the order of their sessions' first change.
    """
    return _records.decode(packed) if packed else ()


def held_replies(fields: Mapping[bytes, bytes]) -> tuple[HeldReply, ...]:
    """
    The replies that wait for the confirmation of an outbox entry.
    """
    packed = fields.get(REPLIES_FIELD)

    return _replies.decode(packed) if packed else ()
