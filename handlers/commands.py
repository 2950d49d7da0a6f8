"""
The bodies of commands: what each kind carries besides its envelope.

A body is decoded strictly: a wrong type is refused with the field's path, an
unknown field is ignored so that newer callers can talk to older replicas.
"""

from typing import Any

import msgspec

from bus.messages import Session


class CreateSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Begin a session; replied to with it.

    Attributes:
        user_id: who will own it.
        or_get: if it exists already, reply with it instead of refusing.
    """

    user_id: str
    or_get: bool = False


class GetSession(msgspec.Struct, frozen=True):
    """
    Read a session with its recent timeline; changes nothing.
    """


class UpdateSession(msgspec.Struct, frozen=True):
    """
    Change a session by a JSON merge patch (RFC 7396); replied to with it.

    Attributes:
        patch: over acl, context_summary and work_in_progress.
    """

    patch: dict[str, Any]  # JSON values


class DeleteSession(msgspec.Struct, frozen=True):
    """
    End a session for good; replied to with nothing.
    """


class AddParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """
    Let a MAD take part: it becomes a participant and enters the ACL.
    """

    mad: str
    role: str = ""


class RemoveParticipant(msgspec.Struct, frozen=True):
    """
    End a MAD's part; the ACL keeps it, so that it may come back.
    """

    mad: str


class AppendTimeline(msgspec.Struct, frozen=True):
    """
    Add one entry at the end of the timeline; neither needs nor moves a version.
    """

    entry: msgspec.Raw


class ReadTimeline(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read entries in ascending seq.

    Attributes:
        after: the page begins behind this seq; None: the newest *limit* ones.
        limit: 1 to 1,000 entries.
    """

    after: int | None = None
    limit: int = 100


Body = (
    CreateSession
    | GetSession
    | UpdateSession
    | DeleteSession
    | AddParticipant
    | RemoveParticipant
    | AppendTimeline
    | ReadTimeline
)


class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    One authorised command, ready to be applied.

    Attributes:
        mad: the MAD on whose ingress it came.
        principal: who asked, from the verified token.
        may_share: whether that principal may change the session's ACL.
    """

    id: str
    kind: str
    session_id: str
    mad: str
    principal: str
    body: Any  # the kind's Body; narrowed by the handler it is routed to
    expected_version: int | None = None
    may_share: bool = False


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What a command did, in the past tense: the audit record and the live feed.

    Attributes:
        version: the session's version after it.
        seq: of the appended entry; 0 if none was.
        patch: what was asked to change, if it was a patch.
    """

    kind: str
    command_id: str
    mad: str
    principal: str
    version: int
    seq: int = 0
    patch: dict[str, Any] | None = None  # JSON values


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    What applying a command leads to, without having done it.

    Attributes:
        session: the session afterwards; None if it is deleted.
        reply: what the caller is told; None if there is nothing to tell.
        event: what happened; None for a read or a change that changed nothing.
        entry: the appended timeline entry, encoded; None for other kinds.
        warm: the page's older part, which only the warm tier holds.
    """

    session: Session | None
    reply: Any = None  # a value of bus.messages
    event: Event | None = None
    entry: bytes | None = None
    warm: "WarmPage | None" = None


class WarmPage(msgspec.Struct, frozen=True):
    """
    A timeline page that begins before the hot tail: seqs *first* to *last*.
    """

    first: int
    last: int
    end: int
