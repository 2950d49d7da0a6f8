"""
Bodies of commands, and the authorised command.

Decoding is strict: a wrong type is refused with the field's path. Unknown fields are
ignored, so that newer callers can talk to older replicas.
"""

from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from everbus.bus.messages import State


class CreateSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Create a session; the reply is the session.

    Attributes:
        user_id: the future owner.
        or_get: reply with an existing session instead of refusing.
    """

    user_id: str
    or_get: bool = False


class GetSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read a session with its recent timeline; changes nothing.

    Attributes:
        full: include the full context, which only the warm tier holds.
    """

    full: bool = False


class UpdateSession(msgspec.Struct, frozen=True):
    """
    Change a session by a JSON merge patch (RFC 7396); the reply is the session.

    Attributes:
        patch: over acl, context_summary, fields, full_context, tags and
            work_in_progress.
    """

    patch: dict[str, Any]  # JSON values


class DeleteSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Delete a session for good; the reply is empty.

    Attributes:
        idle_since: refuse if it was active after this time (clean-up by age).
    """

    idle_since: datetime | None = None


class SuspendSession(msgspec.Struct, frozen=True):
    """
    Suspend a session: dormant, and out of Redis as soon as MongoDB holds it.
    """


class ResumeSession(msgspec.Struct, frozen=True):
    """
    Resume a dormant session; the next write does so as well.
    """


class ArchiveSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Hand the session over to the cold tier, which holds a verified copy.

    Only the archiver sends it; refused if anything changed since it looked.

    Attributes:
        version: the archived version; with last_seq, notices and moves it shows whether
            the session is unchanged.
        pointer: key of the archive's manifest, which contains its SHA-256.
        bytes: size of the archive in the cold tier.
    """

    version: int
    last_seq: int
    idle_since: datetime
    pointer: str
    bytes: int
    moves: int
    notices: int = 0


class DurableSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Ask how much of the session MongoDB holds.

    Attributes:
        wait: reply when MongoDB holds all commits before this command.
    """

    wait: bool = False


class BroadcastSession(msgspec.Struct, frozen=True):
    """
    Send a message to all subscribers; moves neither version nor timeline.

    Attributes:
        message: any JSON value of at most 64 KiB.
    """

    message: Any  # JSON value


class WatchSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read the events of a session behind an event.

    Attributes:
        after: id of that event; "0": all events; None: only the current position.
        limit: 1 to 1,000 events.
        push: push new events to the sender's instance, for 15 s.
    """

    after: str | None = None
    limit: int = 100
    push: bool = False


class AddParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """
    Make a MAD a participant and put it on the ACL.
    """

    mad: str
    role: str = ""


class RemoveParticipant(msgspec.Struct, frozen=True):
    """
    Remove a MAD from the participants; the ACL keeps it, so that it may come back.
    """

    mad: str


class LostParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """
    Detach a lost instance of a MAD from the session.

    Attributes:
        epoch: the newest lost epoch of the instance; all before are lost, too.
    """

    mad: str
    instance: str
    epoch: int


class AppendTimeline(msgspec.Struct, frozen=True):
    """
    Add one entry at the end of the timeline; neither needs nor moves a version.

    Attributes:
        expected_last_seq: refuse unless this is the seq of the newest entry; 0: there
            is none.
    """

    entry: msgspec.Raw
    expected_last_seq: int | None = None


class TakeTurn(msgspec.Struct, frozen=True, kw_only=True):
    """
    Append entries and merge a patch, all or nothing; the version rises by one.

    Attributes:
        entries: at most `EVERBUS_TURN_MAX_ENTRIES`, in order; none only with a patch.
        patch: as in UpdateSession.
        expected_last_seq: as in AppendTimeline.
        turn: id of the turn, on each of its entries; empty: the command's id.
    """

    entries: list[msgspec.Raw] = []
    patch: dict[str, Any] = {}  # JSON values
    expected_last_seq: int | None = None
    turn: str = ""


class ReadTimeline(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read entries, oldest first or newest first.

    Attributes:
        after: only entries behind this seq; None: from the beginning, but without any
            other bound the newest *limit* entries.
        before: only entries before this seq.
        since: only entries at this time or later.
        until: only entries earlier than this time.
        limit: 1 to 1,000 entries.
    """

    after: int | None = None
    before: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = False
    limit: int = 100


class SessionAt(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read the session's state at *version*.
    """

    version: int


class DiffSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read the changes between two versions, with their authors.
    """

    from_version: int
    to_version: int


class CreateCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    Store the session's current state under a name; moves no version.

    Attributes:
        kind: full, or incremental: only the difference to the previous checkpoint.
    """

    name: str = ""
    kind: Literal["full", "incremental"] = "full"


class ListCheckpoints(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read the session's checkpoints, newest first.

    Attributes:
        before: the `next` of the previous page; None: the newest.
    """

    before: str | None = None
    limit: int = 100


class RestoreCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    Restore the state of a checkpoint, as a new version.
    """

    checkpoint_id: str


class ListSessions(msgspec.Struct, frozen=True, kw_only=True):
    """
    Find sessions that match all filters, latest activity first.

    Attributes:
        text: words that must occur in owner, tags, summary or fields.
        active_since: last active at this time or later.
        active_before: last active earlier than this time.
        cursor: the `next` of the previous page.
        limit: 1 to 1,000 sessions.
    """

    owner: str | None = None
    participant: str | None = None
    state: State | None = None
    tag: str | None = None
    text: str | None = None
    active_since: datetime | None = None
    active_before: datetime | None = None
    cursor: str | None = None
    limit: int = 100


class ReadStats(msgspec.Struct, frozen=True):
    """
    Count the sessions and the content of each tier.
    """


Body = (
    CreateSession
    | GetSession
    | UpdateSession
    | DeleteSession
    | SuspendSession
    | ResumeSession
    | ArchiveSession
    | DurableSession
    | BroadcastSession
    | WatchSession
    | AddParticipant
    | RemoveParticipant
    | LostParticipant
    | AppendTimeline
    | TakeTurn
    | ReadTimeline
    | SessionAt
    | DiffSession
    | CreateCheckpoint
    | ListCheckpoints
    | RestoreCheckpoint
    | ListSessions
    | ReadStats
)


class Attachment(NamedTuple):
    """
    One instance of a MAD in one session, under its epoch at the join.
    """

    mad: str
    instance: str
    session: str
    epoch: int

    @property
    def members(self) -> tuple[str, str]:
        """
        Its member in the index by instance, and in the index by session.
        """
        return (
            f"i:{self.mad}:{self.instance}:{self.session}:{self.epoch}",
            f"s:{self.session}:{self.mad}:{self.instance}:{self.epoch}",
        )


class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    One authorised command, ready to be applied.

    Attributes:
        mad: the MAD of its ingress.
        principal: the principal in the verified token.
        tenant: tenant of the principal; empty without tenants.
        is_mad: whether the principal is a MAD; access lists tell MADs from others.
        may_share: whether the principal may change the session's ACL.
        sees_all: whether the principal may find all sessions.
        fetched: answer of the lower tiers to `Outcome.fetch` of this command; None the
            first time.
        attached: the instances in the session, for kinds that detach them.
    """

    id: str
    kind: str
    session_id: str
    mad: str
    principal: str
    body: Any  # the kind's Body; narrowed by the handler it is routed to
    tenant: str = ""
    expected_version: int | None = None
    is_mad: bool = False
    may_share: bool = False
    sees_all: bool = False
    fetched: Any = None  # type by the FetchRequest
    attached: tuple[Attachment, ...] = ()
