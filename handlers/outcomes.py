"""
What commands lead to: the session afterwards, the reply, and what is to be kept of it.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from bus.messages import Session
from handlers.wanted import Wanted


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    What a command did, in the past tense: the audit record and the live feed.

    Attributes:
        version: the session's version after it.
        seq: the timeline's last after it: of an append, the appended entry's.
        at: when; None for an append, whose entry tells.
        patch: the merge patch (RFC 7396) from the state before to the one after,
            for every kind that moves the version: together they are the history.
        notices: the session's notices after it; see `bus.events`.
        message: what was said, of a broadcast.
        trace: W3C traceparent of the command, if its spans are recorded; told to the
            archiver, kept nowhere.
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


class NewCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    A checkpoint on its way to the warm tier.

    Attributes:
        id: the id of the command that made it.
        state: what `handlers.history.state_of` says of the session.
        sha256: what `handlers.history.digest` says of *state*, hexadecimal.
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
    Where the cold tier holds a session that is about to become a stub.
    """

    pointer: str
    through: int
    bytes: int
    moves: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    What applying a command leads to, without having done it.

    Attributes:
        session: the session afterwards; None if it is deleted.
        reply: what the caller is told; None if there is nothing to tell.
        events: what happened, in order; empty for a read or a change that changed
            nothing.
        entry: the appended timeline entry, encoded; None for other kinds.
        wants: what has to be read from the tiers below before the command can be
            applied; then it is handled again, with that as `command.given`.
        checkpoint: a checkpoint to keep.
        archived: the session is in the cold tier.
        when_durable: reply only when MongoDB holds all that was committed so far.
    """

    session: Session | None
    reply: Any = None  # a value of bus.messages
    events: tuple[Event, ...] = ()
    entry: bytes | None = None
    wants: Wanted | None = None
    checkpoint: NewCheckpoint | None = None
    archived: Archived | None = None
    when_durable: bool = False
