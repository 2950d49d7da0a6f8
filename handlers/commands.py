"""
The bodies of commands: what each kind carries besides its envelope.

A body is decoded strictly: a wrong type is refused with the field's path, an
unknown field is ignored so that newer callers can talk to older replicas.
"""

from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from bus.messages import State


class CreateSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Begin a session; replied to with it.

    Attributes:
        user_id: who will own it.
        or_get: if it exists already, reply with it instead of refusing.
    """

    user_id: str
    or_get: bool = False


class GetSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read a session with its recent timeline; changes nothing.

    Attributes:
        full: with its full context, too, which only the warm tier holds.
    """

    full: bool = False


class UpdateSession(msgspec.Struct, frozen=True):
    """
    Change a session by a JSON merge patch (RFC 7396); replied to with it.

    Attributes:
        patch: over acl, context_summary, fields, full_context, tags and
            work_in_progress.
    """

    patch: dict[str, Any]  # JSON values


class DeleteSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    End a session for good; replied to with nothing.

    Attributes:
        idle_since: refuse if it was active after this time (for clean-up by age).
    """

    idle_since: datetime | None = None


class SuspendSession(msgspec.Struct, frozen=True):
    """
    Let a session rest: dormant, and out of Redis as soon as MongoDB holds it.
    """


class ResumeSession(msgspec.Struct, frozen=True):
    """
    Wake a dormant session; the next write to one does so as well.
    """


class ArchiveSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Leave the session to the cold tier, which holds it already, verified.

    Only the archiver sends it; refused if anything changed since it looked.

    Attributes:
        version: the version that was archived; with last_seq, notices and moves it
            tells whether the session is still as it was.
        pointer: the key of the archive's manifest, which names its SHA-256.
        bytes: what the archive takes in the cold tier.
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
        wait: reply when it holds all that was committed before this question.
    """

    wait: bool = False


class BroadcastSession(msgspec.Struct, frozen=True):
    """
    Say something to all who watch the session; moves neither version nor timeline.

    Attributes:
        message: any JSON value of at most 64 KiB.
    """

    message: Any  # JSON value


class WatchSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read what has happened in a session behind an event.

    Attributes:
        after: the event's id; "0": everything; None: nothing but where it is now.
        limit: 1 to 1,000 events.
        push: tell the instance that asks of what happens from now on, for 15 s.
    """

    after: str | None = None
    limit: int = 100
    push: bool = False


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


class LostParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """
    End what a lost instance of a MAD had to do with the session.

    Attributes:
        epoch: the instance's epoch that is over, and all before it.
    """

    mad: str
    instance: str
    epoch: int


class AppendTimeline(msgspec.Struct, frozen=True):
    """
    Add one entry at the end of the timeline; neither needs nor moves a version.
    """

    entry: msgspec.Raw


class ReadTimeline(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read entries, oldest first or newest first.

    Attributes:
        after: only entries behind this seq; None: from the beginning, but without
            any other bound the newest *limit* ones.
        before: only entries ahead of this seq.
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
    Read the session's state as it was at *version*.
    """

    version: int


class DiffSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read what changed between two versions, and who changed it.
    """

    from_version: int
    to_version: int


class CreateCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    Keep the session's present state under a name; moves no version.

    Attributes:
        kind: full, or incremental: only what differs from the one before.
    """

    name: str = ""
    kind: Literal["full", "incremental"] = "full"


class ListCheckpoints(msgspec.Struct, frozen=True, kw_only=True):
    """
    Read the session's checkpoints, newest first.

    Attributes:
        before: the `next` of the page before; None: the newest.
    """

    before: str | None = None
    limit: int = 100


class RestoreCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    Bring the state back to a checkpoint's, as a new version.
    """

    checkpoint_id: str


class ListSessions(msgspec.Struct, frozen=True, kw_only=True):
    """
    Find sessions, latest activity first; all given filters have to hold.

    Attributes:
        text: words that have to be in its owner, tags, summary or fields.
        active_since: last active at this time or later.
        active_before: last active earlier than this time.
        cursor: the `next` of the page before.
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
    Count the sessions, and what each tier holds.
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
    One instance of a MAD in one session, since it joined in its epoch.
    """

    mad: str
    instance: str
    session: str
    epoch: int

    @property
    def members(self) -> tuple[str, str]:
        """
        What stands for it in an index by instance, and in one by session.
        """
        return (
            f"i:{self.mad}:{self.instance}:{self.session}:{self.epoch}",
            f"s:{self.session}:{self.mad}:{self.instance}:{self.epoch}",
        )


class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    One authorised command, ready to be applied.

    Attributes:
        mad: the MAD on whose ingress it came.
        principal: who asked, from the verified token.
        tenant: that principal's tenant; empty in a house without tenants.
        may_share: whether that principal may change the session's ACL.
        sees_all: whether that principal may find sessions that it has no part in.
        given: what an earlier outcome of the same command wanted, read from the
            tiers below; None the first time.
        attached: the instances that are in the session, for kinds that end that.
    """

    id: str
    kind: str
    session_id: str
    mad: str
    principal: str
    body: Any  # the kind's Body; narrowed by the handler it is routed to
    tenant: str = ""
    expected_version: int | None = None
    may_share: bool = False
    sees_all: bool = False
    given: Any = None  # what the Wanted names
    attached: tuple[Attachment, ...] = ()
