"""
The tiers behind small protocols: what everbus asks of hot, warm and cold stores.

Each has an implementation in memory and a real one, and `gateway.store.contracts`
has the suite that any implementation has to pass. A class of the user's own is
named by a dotted path in `EVERBUS_WARM_STORE` or `EVERBUS_COLD_STORE`. All methods
raise Unavailable when the store cannot answer now; whatever is repeated is the
same as done once.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from bus.errors import Unavailable
from bus.messages import (
    ArchivalStatus,
    Checkpoint,
    CheckpointPage,
    Session,
    SessionChange,
    SessionPage,
)
from gateway.store.outbox import Record
from handlers.commands import ListSessions
from handlers.outcomes import Event

SNAPSHOT_EVERY = 256


class Corrupted(Unavailable):
    """
    An object of the cold tier is not what was put there; never served. The details
    name its key, and the session stays as it is until an operator mends it.
    """


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the warm tier holds of one session.

    Attributes:
        session: without recent timeline and full context. Of a stub, only what
            listing needs is true; its state is `archived`.
        full_context: empty in a stub.
        pointer: the key of its newest archive's manifest; empty: never archived. It
            stays when the session returns: what is archived is never changed.
        through: timeline entries 1 to this seq are in that archive.
        bytes: what that archive takes in the cold tier.
        moves: how often the session was archived or returned; what stale movers
            are known by.
        unpurged: a stub whose archived entries are still in the warm tier, too.
        unrestored: a returned session whose entries are not all back yet.
    """

    session: Session
    full_context: dict[str, Any] = {}  # JSON values
    archival_status: ArchivalStatus = "ACTIVE"
    pointer: str = ""
    through: int = 0
    bytes: int = 0
    moves: int = 0
    unpurged: bool = False
    unrestored: bool = False


class Refused(msgspec.Struct, frozen=True):
    """
    A record that the store will never take, and why; the others were written.
    """

    record: Record
    reason: str


class WarmCounts(msgspec.Struct, frozen=True, kw_only=True):
    """
    How many sessions are in which state, and what the tiers take in bytes.

    Attributes:
        states: state → sessions; stubs count as `archived`.
        bytes: what the warm tier's data takes.
        cold_bytes: what the archives that it points to take.
        returned: sessions that are active and have an archive, too.
    """

    states: dict[str, int]
    bytes: int
    cold_bytes: int
    returned: int = 0


class HotTier(Protocol):
    """
    The hot copies of sessions of which the tiers below hold everything.

    Changing a session is not among this: that is the commit, one Redis script
    with reply, acknowledgement and outbox, or it would not be atomic.
    """

    async def get(self, session_id: str) -> Session | None:
        """
        The session with its recent timeline (encoded), None if it is not hot.
        """
        ...

    async def admit(self, session: Session, ttl_s: float) -> bool:
        """
        Make it hot for *ttl_s* if it is not; whether that was done.
        """
        ...

    async def forget(self, session_id: str) -> bool:
        """
        Remove the hot copy if the tiers below hold all of it; whether it is gone.
        """
        ...

    async def exists(self, session_id: str) -> bool:
        """
        Whether it is hot.
        """
        ...

    async def active(self, limit: int) -> Sequence[str]:
        """
        Ids of at most *limit* hot sessions.
        """
        ...

    async def count(self) -> int:
        """
        How many sessions are hot.
        """
        ...


class WarmTier(Protocol):
    """
    The eternal truth: session documents, timelines, events, checkpoints.

    *life* is the session's created_at: an id that was deleted and made again has
    another one, and nothing of an earlier life is ever seen in a later one.
    """

    async def prepare(self) -> None:
        """
        Make tables and indexes; may be repeated.
        """
        ...

    async def write(self, records: Sequence[Record]) -> Sequence[Refused]:
        """
        Hold what *records* say, on disk when this returns; the records it can
        never take are returned with the reason.

        Only ever forward: a session gives way to a later life or a higher version
        (its last_seq, notices and last_active each to a higher one), entries and
        events are inserted once. A record with `archived` makes the session a stub
        if its version, last_seq, notices and moves are the record's, else it is a
        repeat.
        """
        ...

    async def sessions(
        self, session_ids: Sequence[str], *, context: bool = False
    ) -> dict[str, Held]:
        """
        What is held of these sessions; those not held are not in it.

        *context*: with their full context, which else is empty.
        """
        ...

    async def entries(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> Sequence[bytes]:
        """
        The timeline entries *first* to *last* that it holds, as packed
        TimelineEntry, in ascending seq. Callers ask for 1,000 at most.
        """
        ...

    async def first_since(
        self, session_id: str, life: datetime, at: datetime
    ) -> int | None:
        """
        The lowest seq of an entry held here that is at *at* or later.
        """
        ...

    async def put_entries(
        self, session_id: str, life: datetime, entries: Sequence[bytes]
    ) -> None:
        """
        Insert packed TimelineEntry values that are not there yet.
        """
        ...

    async def purge(
        self, session_id: str, life: datetime, through: int, limit: int
    ) -> int:
        """
        Remove at most about *limit* of the entries up to seq *through*; how many.
        """
        ...

    async def remove(self, session_id: str, life: datetime) -> None:
        """
        Remove everything of the session's lives up to this one.
        """
        ...

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Held]:
        """
        Sessions last active earlier than *before*, no stubs, in ascending order of
        (last_active, id), behind *after*.
        """
        ...

    async def unfinished(
        self, what: Literal["unpurged", "unrestored"], limit: int
    ) -> Sequence[Held]:
        """
        Sessions with that mark.
        """
        ...

    async def swap(self, before: Held, after: Held) -> bool:
        """
        Put *after* in the place of *before*, if life, version, last_seq, notices,
        moves and archival_status still are those of *before*; whether that was done.
        """
        ...

    async def removals(self, limit: int) -> Sequence[str]:
        """
        Pointers of archives whose sessions are gone; `write` notes them before it
        deletes a session that has one.
        """
        ...

    async def removed(self, pointer: str) -> None:
        """
        Forget a pointer of `removals`: the cold tier has nothing left of it.
        """
        ...

    async def find(
        self, query: ListSessions, visible_to: str, tenant: str = ""
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first; see `ListSessions`.

        *visible_to*: only those of which this principal is owner or in the ACL;
        empty: all. *tenant*: only those of this tenant; empty: those of none.
        """
        ...

    async def counts(self) -> WarmCounts:
        """
        What there is, as of about now.
        """
        ...

    async def changes(
        self, session_id: str, life: datetime, after: int, through: int
    ) -> Sequence[SessionChange]:
        """
        The steps to versions *after* + 1 to *through*, ascending.

        Callers ask for 1,000 at most.
        """
        ...

    async def events(
        self, session_id: str, life: datetime, after: tuple[int, int], limit: int
    ) -> Sequence[Event]:
        """
        What happened behind a version and so many notices (*after*), in its order:
        the first *limit* of what is held. Neither appends nor moves between tiers
        are among it.

        Callers ask for 1,000 at most.
        """
        ...

    async def appended_by(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> dict[int, tuple[str, str]]:
        """
        Seq → command id and principal of the entries *first* to *last*, as far as it
        knows them: entries that were put back lack them.
        """
        ...

    async def snapshot(
        self, session_id: str, life: datetime, version: int
    ) -> Session | None:
        """
        The newest kept state at *version* or below; None if there is none.

        A store keeps one at least each SNAPSHOT_EVERY versions.
        """
        ...

    async def checkpoints(
        self, session_id: str, life: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.
        """
        ...

    async def checkpoint(
        self, session_id: str, life: datetime, checkpoint_id: str
    ) -> "tuple[Checkpoint, dict[str, Any]] | None":
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        ...

    def close(self) -> None:
        """
        Give connections back.
        """
        ...


class ColdTier(Protocol):
    """
    Immutable objects under keys of a fixed depth; never changed, only replaced by
    the same bytes. No listing: some S3 servers lose keys there (PITFALLS.md 3).
    """

    async def put(self, key: str, data: bytes) -> None:
        """
        Keep *data* under *key*, durable when this returns.
        """
        ...

    async def get(self, key: str, limit: int) -> bytes | None:
        """
        The object; None if there is none.

        Raises:
            TooLarge: it has more than *limit* bytes.
        """
        ...

    async def size(self, key: str) -> int | None:
        """
        Its length in bytes; None if there is no such object.
        """
        ...

    async def delete(self, key: str) -> None:
        """
        Remove it; nothing happens if there is none.
        """
        ...

    def close(self) -> None:
        """
        Give connections back.
        """
        ...
