"""
The warm tier by what it is used for: five roles, one store.

`WarmRecords` takes what the drain writes, `WarmSessions` gives it back, `WarmClaims`
tells which branch of a session counts after the bus lost writes,
`WarmCatalogue` finds and counts sessions, `WarmMovement` moves them to the cold tier
and back. Each user names the role that it needs; a store implements all of them,
which is `WarmTier`. Every method raises Unavailable when the store cannot answer now;
a repeated call has the same effect as one call.

*generation* is the session's created_at. An id that was deleted and created again has
another one, and no call on one generation returns or changes data of another.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    Session,
    SessionChange,
    SessionPage,
)
from everbus.gateway.store.claims import Claim, Length
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.read_bound import ReadBound
from everbus.gateway.store.tiers import (
    Claimed,
    WarmCounts,
    WarmSession,
    WriteRefused,
)
from everbus.handlers.commands import ListSessions
from everbus.handlers.outcomes import Event

# Effects whose commands a session brings along from the warm tier.
MOST_COMMANDS = 10_000


class WarmRecords(Protocol):
    """
    Writes committed records; used by the archiver's drain.
    """

    async def prepare(self) -> None:
        """
        Create tables and indexes; may be repeated.
        """
        ...

    async def write(self, records: Sequence[Record]) -> Sequence[WriteRefused]:
        """
        Write *records*, on disk when this returns; returns the records that it refuses
        for good, with the reason.

        Only ever forward: a session gives way to a later generation or a higher version
        (its last_seq, notices and last_active each to a higher one), entries and
        events are inserted once. A record with `archived` makes the session a stub
        if its version, last_seq, notices and moves are the record's, else it is a
        repeat.

        Refused as diverged: a record of a dead branch (`store.claims`), one whose
        place another command has, a creation over a session that nobody deleted. A
        record that is not refused has its own effect in the store.
        """
        ...


class WarmSessions(Protocol):
    """
    Reads sessions, timelines, events and history.
    """

    async def sessions(
        self, session_ids: Sequence[str], *, context: bool = False
    ) -> dict[str, WarmSession]:
        """
        The documents of these sessions; unknown ids are left out.

        *context*: with their full context, else that is empty.
        """
        ...

    async def entries(
        self,
        session_id: str,
        generation: datetime,
        first: int,
        last: int,
        bound: ReadBound | None = None,
    ) -> Sequence[bytes]:
        """
        The timeline entries *first* to *last* that it holds, as packed
        TimelineEntry, in ascending seq. Callers ask for 1,000 at most.

        *bound*: it may end behind the entry that reaches so many bytes.
        """
        ...

    async def first_since(
        self, session_id: str, generation: datetime, at: datetime
    ) -> int | None:
        """
        The lowest seq of an entry held here that is at *at* or later.
        """
        ...

    async def changes(
        self,
        session_id: str,
        generation: datetime,
        after: int,
        through: int,
        bound: ReadBound | None = None,
    ) -> Sequence[SessionChange]:
        """
        The steps to versions *after* + 1 to *through*, ascending.

        Callers ask for 1,000 at most. *bound*: as in `entries`.
        """
        ...

    async def events(
        self,
        session_id: str,
        generation: datetime,
        after: tuple[int, int],
        limit: int,
        bound: ReadBound | None = None,
    ) -> Sequence[Event]:
        """
        The first *limit* events behind a version and a number of notices (*after*), in
        order, without appends and moves between tiers.

        Callers ask for 1,000 at most. *bound*: as in `entries`, for each kind.
        """
        ...

    async def appended_by(
        self, session_id: str, generation: datetime, first: int, last: int
    ) -> dict[int, tuple[str, str]]:
        """
        Seq → command id and principal of the entries *first* to *last*, as far as it
        knows them: entries that were put back lack them.
        """
        ...

    async def snapshot(
        self, session_id: str, generation: datetime, version: int
    ) -> Session | None:
        """
        The newest kept state at *version* or below; None if there is none.

        A store keeps one at least each SNAPSHOT_EVERY versions.
        """
        ...

    async def checkpoints(
        self, session_id: str, generation: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.
        """
        ...

    async def checkpoint(
        self, session_id: str, generation: datetime, checkpoint_id: str
    ) -> "tuple[Checkpoint, dict[str, Any]] | None":
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        ...


class WarmClaims(Protocol):
    """
    Claims sessions for a lineage; used by the lanes before they use a session.
    """

    async def claim(self, claims: Sequence[Claim]) -> dict[str, Claimed]:
        """
        Note each claim on its session's document, atomically, as
        `store.claims.settled` has it; of an unknown session on a placeholder that no
        reader sees.
        """
        ...

    async def commands(
        self, session_id: str, generation: datetime, beyond: Length, since: datetime
    ) -> Sequence[tuple[str, str]]:
        """
        MAD and command id of the effects that it holds behind the length *beyond*,
        not earlier than *since*, at most MOST_COMMANDS of the newest.
        """
        ...


class WarmCatalogue(Protocol):
    """
    Finds and counts sessions.
    """

    async def every(self, after: str, limit: int) -> Sequence[WarmSession]:
        """
        The first *limit* sessions of all tenants behind the id *after*, stubs too, in
        ascending order of their ids; fewer only at the end.
        """
        ...

    async def find(
        self,
        query: ListSessions,
        visible_to: str,
        tenant: str = "",
        bound: ReadBound | None = None,
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first; see `ListSessions`. *bound*: the page
        has the first one, and the following ones that fit.

        *visible_to*: only those of which this principal (`user:ada`, `mad:fiedler`, or
        a plain name) is owner or in the ACL; see `handlers.access_list`. Empty: all.
        *tenant*: only those of this tenant; empty: those of none.
        """
        ...

    async def renew_words(self, limit: int) -> int:
        """
        Make the search words anew of at most *limit* sessions whose words an earlier
        version of everbus made, stubs excepted; returns their number.
        """
        ...

    async def counts(self) -> WarmCounts:
        """
        Numbers and sizes, as of about now.
        """
        ...


class WarmMovement(WarmSessions, Protocol):
    """
    Moves sessions between the warm tier and the cold one; a mover reads, too.
    """

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[WarmSession]:
        """
        Sessions last active earlier than *before*, no stubs, in ascending order of
        (last_active, id), behind *after*.
        """
        ...

    async def unfinished(
        self, what: Literal["unpurged", "unrestored"], limit: int
    ) -> Sequence[WarmSession]:
        """
        Sessions with that mark.
        """
        ...

    async def swap(self, before: WarmSession, after: WarmSession) -> bool:
        """
        Replace *before* by *after*, if generation, version, last_seq, notices, moves
        and archival_status are still those of *before*; returns whether it did.
        """
        ...

    async def put_entries(
        self, session_id: str, generation: datetime, entries: Sequence[bytes]
    ) -> None:
        """
        Insert packed TimelineEntry values that are not there yet.
        """
        ...

    async def purge(
        self, session_id: str, generation: datetime, through: int, limit: int
    ) -> int:
        """
        Remove at most about *limit* of the entries up to seq *through*; returns their
        number.
        """
        ...

    async def removals(self, limit: int) -> Sequence[str]:
        """
        Pointers of archives whose sessions are deleted; `WarmRecords.write` notes
        them before it deletes a session that has one.
        """
        ...

    async def removed(self, pointer: str) -> None:
        """
        Forget a pointer of `removals`: the cold tier has nothing left of it.
        """
        ...


class WarmTier(WarmRecords, WarmClaims, WarmCatalogue, WarmMovement, Protocol):
    """
    All roles in one store: session documents, timelines, events, checkpoints.
    """

    def close(self) -> None:
        """
        Give connections back.
        """
        ...
