"""
What a commit hands to the archiver: one outbox entry with a record a session.
"""

from datetime import datetime

import msgspec

from bus.codec import pack
from bus.messages import Session
from handlers.commands import Event

VALUE_FIELD = b"b"
COUNT_FIELD = b"n"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What one commit did to one session.

    Attributes:
        created_at: tells two lives of one id apart (deleted, made again).
        state: the whole session, if its version moved; else None.
        entries: appended timeline entries, in ascending seq.
        events: what happened, in order.
        deleted: the session was deleted; version is one above its last.
    """

    session: str
    created_at: datetime
    version: int
    last_seq: int
    last_active: datetime
    state: Session | None = None
    entries: tuple[msgspec.Raw, ...] = ()
    events: tuple[Event, ...] = ()
    deleted: bool = False


_records = msgspec.msgpack.Decoder(tuple[Record, ...])


def pack_records(records: list[Record]) -> bytes:
    """
    The outbox value of one commit.
    """
    return pack(records)


def unpack_records(packed: bytes) -> tuple[Record, ...]:
    """
    The records of one commit, in the order of their sessions' first change.
    """
    return _records.decode(packed)
