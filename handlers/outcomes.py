"""
Outcomes of commands: the session afterwards, the reply, and the records to store.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from everbus.bus.messages import Session
from everbus.handlers.fetch_requests import FetchRequest


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    Effect of a command, in the past tense: audit record and live feed.

    Attributes:
        version: the session's version after it.
        seq: the timeline's last seq after it: of an append, the appended entry's.
        at: time of the commit; None for an append, whose entry contains it.
        patch: merge patch (RFC 7396) from the state before to the state after, for
            every kind that moves the version: together they are the history.
        notices: the session's notices after it; see `bus.events`.
        turn: id of the turn, of `session.turned`.
        message: the message of a broadcast.
        trace: W3C traceparent of the command, if its spans are recorded; sent to the
            archiver, not stored.
    """

    kind: str
    command_id: str
    mad: str
    principal: str
    version: int
    seq: int = 0
    at: datetime | None = None
    patch: dict[str, Any] | None = None  # JSON values
    notices: int = 0
    message: Any = None  # JSON value
    trace: str = ""
    turn: str = ""


class NewCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    A checkpoint on its way to the warm tier.

    Attributes:
        id: id of the command that created it, or derived from it if it was chosen
            freely.
        state: result of `handlers.history.state_of`.
        sha256: `handlers.history.digest` of *state*, hexadecimal.
    """

    id: str
    name: str
    version: int
    last_seq: int
    kind: Literal["full", "incremental"]
    at: datetime
    author: str
    state: dict[str, Any]  # JSON values
    sha256: str


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """
    Place of a session in the cold tier; the other tiers keep a stub.
    """

    pointer: str
    through: int
    bytes: int
    moves: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    Result of a command before its commit.

    Attributes:
        session: the session afterwards; None if it is deleted.
        reply: value for the caller; None without a reply value.
        events: the events in order; empty for a read or a change without effect.
        entries: the appended timeline entries, encoded, in ascending seq.
        fetch: data of the lower tiers that the handler needs; the handler is called
            again with it as `command.fetched`.
        checkpoint: a checkpoint to store.
        archived: the session is in the cold tier.
        when_durable: reply only when MongoDB holds all commits so far.
    """

    session: Session | None
    reply: Any = None  # a value of bus.messages
    events: tuple[Event, ...] = ()
    entries: tuple[bytes, ...] = ()
    fetch: FetchRequest | None = None
    checkpoint: NewCheckpoint | None = None
    archived: Archived | None = None
    when_durable: bool = False
