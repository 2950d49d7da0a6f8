"""
The cold tier's protocol, and the values that warm and cold tiers exchange.

The warm tier's protocol is `gateway.store.warm_roles`. `EVERBUS_WARM_STORE` and
`EVERBUS_COLD_STORE` name a user's own class by a dotted path; the suites in
`compose.testing.contracts` check it. Every method raises Unavailable when the store
cannot answer now; a repeated call has the same effect as one call.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from everbus.bus.errors import Unavailable
from everbus.bus.messages import ArchivalStatus, Session
from everbus.gateway.store.hot_copy import Record

SNAPSHOT_EVERY = 256


class Corrupted(Unavailable):
    """
    An object of the cold tier differs from the bytes that were put; never served. The
    details name its key, and the session stays as it is until an operator repairs it.
    """


class WarmSession(msgspec.Struct, frozen=True, kw_only=True):
    """
    The warm tier's document of one session.

    Attributes:
        session: without recent timeline and full context. A stub has only the fields
            for listing; its state is `archived`.
        full_context: empty in a stub.
        pointer: the key of its newest archive's manifest; empty: never archived. It
            stays when the session returns: what is archived is never changed.
        through: timeline entries 1 to this seq are in that archive.
        bytes: size of that archive in the cold tier.
        moves: number of moves to the cold tier and back; it reveals a stale mover.
        unpurged: a stub; its archived entries are still in the warm tier, too.
        unrestored: a returned session; some entries are not back yet.
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


class WriteRefused(msgspec.Struct, frozen=True):
    """
    A record that the store refuses for good, and the reason; the others were written.

    Attributes:
        diverged: another lineage or command has its place, see `store.claims`.
    """

    record: Record
    reason: str
    diverged: bool = False


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of a claim.

    Attributes:
        lineage: the last that claimed the session; a higher one than the caller's:
            the caller's hot data is the stale side of a split, nothing was claimed.
        held: the session's document; None: there is none.
        keeps_hot: the hot copy counts, else *held*.
        descends: the hot copy is of the branch of *held*.
        known: the commands of *held* are settled in the hot tier already.
    """

    lineage: int
    held: WarmSession | None = None
    keeps_hot: bool = False
    descends: bool = False
    known: bool = False


class Admissible(msgspec.Struct, frozen=True):
    """
    A claimed session, ready for the hot tier.

    Attributes:
        session: with its recent timeline, packed; None if no tier below holds it, or
            if the hot copy counts.
        keeps_hot: the hot copy counts.
        commands: MAD and id of the commands that the warm tier holds and the hot tier
            may not know as settled.
    """

    session: Session | None
    keeps_hot: bool = False
    commands: Sequence[tuple[str, str]] = ()


class WarmCounts(msgspec.Struct, frozen=True, kw_only=True):
    """
    Numbers of sessions by state, and sizes of the tiers in bytes.

    Attributes:
        states: state → sessions; stubs count as `archived`.
        bytes: size of the warm tier's data.
        cold_bytes: size of the archives that it points to.
        returned: sessions that are active and have an archive, too.
    """

    states: dict[str, int]
    bytes: int
    cold_bytes: int
    returned: int = 0


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
