"""
Claims: which branch of a session's history counts, after a bus lost writes.

Hot data has a lineage; a new one begins whenever the bus may have lost writes. The
first lane that uses a session under a lineage claims it in the warm tier, with the
length that the session has then. Records of an older lineage beyond that length are of
a dead branch: nobody may write them. Pure; every warm tier decides by these functions,
which `tests/unit/models/lineage.py` checks exhaustively.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from everbus.bus.messages import Session
from everbus.gateway.store.hot_copy import Record

# Claims that a document keeps; each is one loss of memory that left a longer session.
MOST_CLAIMS = 32
# The lineage of what was written by managers that are older than lineages.
UNKNOWN = 0
# More than any count, in documents, too.
_BEYOND = 2**53
_NOTHING = datetime.fromtimestamp(0, UTC)


class Length(NamedTuple):
    """
    How far a session is: its generation, and three counts that only grow in it.
    """

    generation: datetime
    version: int
    last_seq: int
    notices: int

    def exceeds(self, other: "Length") -> bool:
        """
        Whether something is here that *other* lacks.
        """
        if self.generation != other.generation:
            return self.generation > other.generation
        return any(a > b for a, b in zip(self[1:], other[1:], strict=True))


# Of a session that a tier has never heard of.
NO_LENGTH = Length(_NOTHING, 0, 0, 0)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """
    A lane's wish to use a session.

    Attributes:
        lineage: of the lane's hot data.
        hot: the length of the hot copy; None: there is none.
        hot_lineage: the lineage under which the hot copy was trusted.
    """

    session: str
    lineage: int
    hot: Length | None = None
    hot_lineage: int = UNKNOWN


class PastClaim(NamedTuple):
    """
    A claim as the session's document keeps it.

    Attributes:
        length: the session had this length, wherever it was longer.
    """

    lineage: int
    length: Length


class Branch(msgspec.Struct, frozen=True):
    """
    The branch of a session's history that counts.

    Attributes:
        lineage: the last that claimed or created the session; UNKNOWN: none did.
        ancestor: the one before it.
        claims: in the order of their lineages.
    """

    lineage: int = UNKNOWN
    ancestor: int = UNKNOWN
    claims: tuple[PastClaim, ...] = ()

    def is_dead(self, lineage: int, length: Length) -> bool:
        """
        Whether a later lineage claimed the session without what has this *length*.

        Older than the oldest of MOST_CLAIMS claims, it counts as dead: nobody knows.
        """
        if lineage == UNKNOWN:
            return False
        if len(self.claims) == MOST_CLAIMS and lineage < self.claims[0].lineage:
            return True
        return any(
            claim.lineage > lineage and length.exceeds(claim.length)
            for claim in self.claims
        )

    def claimed(self, lineage: int, length: Length) -> "Branch":
        """
        The branch after a claim.

        A former claim of the same length or more tells nothing beside the new one.
        """
        kept = [c for c in self.claims if length.exceeds(c.length)]
        claims = (*kept, PastClaim(lineage, length))[-MOST_CLAIMS:]

        return Branch(lineage, self.lineage, claims)


class Settled(NamedTuple):
    """
    How a claim ends.

    Attributes:
        keeps_hot: the hot copy counts, else what the tier holds.
        descends: the hot copy is of the branch that counts.
        known: the commands of what the tier holds are settled in the hot tier: an
            admission under this lineage came before.
        branch: the branch after the claim; None: the document stays as it is.
    """

    keeps_hot: bool
    descends: bool
    known: bool
    branch: Branch | None


def settled(claim: Claim, branch: Branch, held: Length) -> Settled:
    """
    How *claim* ends over a document of this *branch* and length *held*.

    A claim that is repeated, since its lane ended before the admission, ends as the
    first time: both rest on the lineage before it.
    """
    again = branch.lineage == claim.lineage
    ancestor = branch.ancestor if again else branch.lineage
    descends = claim.hot_lineage in (UNKNOWN, claim.lineage) or (
        claim.hot_lineage >= ancestor
    )
    keeps = claim.hot is not None and descends and claim.hot >= held
    if again:
        last = branch.claims[-1] if branch.claims else None
        claimed = last is not None and last.lineage == claim.lineage
        known = not claimed or (last is not None and held.exceeds(last.length))
        return Settled(keeps, descends, known, None)
    length = claim.hot if keeps and claim.hot is not None else held

    return Settled(keeps, descends, False, branch.claimed(claim.lineage, length))


def length_of(session: Session) -> Length:
    """
    The length of *session*.
    """
    counts = (session.version, session.last_seq, session.notices)

    return Length(session.created_at, *counts)


def length_after(record: Record) -> Length:
    """
    The length of the session after *record*.
    """
    counts = (record.version, record.last_seq, record.notices)

    return Length(record.created_at, *counts)


def ended(generation: datetime) -> Length:
    """
    The length of a deleted session: nothing of its generations is beyond that.
    """
    return Length(generation, _BEYOND, _BEYOND, _BEYOND)


def dead_reason(record: Record, branch: Branch) -> str:
    """
    Why *record* is refused as one of a dead branch; empty: it is not.
    """
    if not branch.is_dead(record.lineage, length_after(record)):
        return ""
    return (
        f"version {record.version}, seq {record.last_seq}, notices {record.notices} "
        f"of session {record.session} were committed under lineage {record.lineage}; "
        f"lineage {branch.lineage} has claimed the session without them"
    )


def other_command(what: str, session: str, held: str, offered: str) -> str:
    """
    The reason to refuse a record whose place another command has.
    """
    return (
        f"{what} of session {session} is that of command {held}; command {offered} "
        "cannot have the same place"
    )


def other_generation(session: str, held: datetime, offered: datetime) -> str:
    """
    The reason to refuse a creation over a session that nobody has deleted.
    """
    return (
        f"session {session} is held since {held}, and was not deleted; the one of "
        f"{offered} never replaces it"
    )
