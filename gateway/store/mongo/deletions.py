"""
Deletion of sessions in MongoDB: heads, tombstones, bounded steps.

The document of a deleted session becomes a tombstone, which no record of its generation
can replace; then the rest is removed in bounded steps.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from everbus.gateway.store.claims import Branch, Length, ended
from everbus.gateway.store.mongo.documents import branch_of, tombstone
from everbus.gateway.store.mongo.operations import (
    Document,
    Operation,
    Remove,
    Replace,
    counted,
    not_later,
    up_to,
)

# Documents per bulk of deletions, about; so each stays within its deadline.
DELETED_AT_ONCE = 5000


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """
    The counts of a session's document, as read before a write.

    Attributes:
        generation: created_at of its session.
        ended: it is a tombstone; then all other fields but the branch are defaults.
        branch: the lineages that claimed the session.
    """

    generation: datetime
    ended: bool = False
    branch: Branch = Branch()
    version: int = 0
    last_seq: int = 0
    notices: int = 0
    last_active: datetime | None = None
    moves: int = 0
    pointer: str = ""
    through: int = 0
    stub: bool = False
    unpurged: bool = False

    @property
    def length(self) -> Length:
        """
        The length of the session as the document tells it.
        """
        if self.ended:
            return ended(self.generation)
        return Length(self.generation, self.version, self.last_seq, self.notices)


HEAD_FIELDS = dict.fromkeys(
    (
        *("created_at", "deleted_at", "version", "last_seq", "notices"),
        *("last_active", "moves", "s3_pointer", "through", "archival_status"),
        *("unpurged", "lineage", "ancestor", "claims"),
    ),
    1,
)


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """
    Deleted generations of a session.

    Attributes:
        generation: the last of them.
        last_seq: about how many timeline entries there are to delete.
        version: about how many changes of state.
        notices: about how many notices.
    """

    session: str
    generation: datetime
    last_seq: int = 0
    version: int = 0
    notices: int = 0


def head_of(document: Document) -> Head:
    """
    The head of a session's document.
    """
    if "deleted_at" in document:
        return Head(
            generation=document["created_at"], ended=True, branch=branch_of(document)
        )
    return Head(
        generation=document["created_at"],
        branch=branch_of(document),
        version=document["version"],
        last_seq=document["last_seq"],
        # Absent in documents that are older than notices.
        notices=document.get("notices", 0),
        last_active=document["last_active"],
        moves=document["moves"],
        pointer=document.get("s3_pointer", ""),
        through=document["through"],
        stub=document["archival_status"] == "S3",
        unpurged=document.get("unpurged", False),
    )


def is_past(head: Head, generation: datetime) -> bool:
    """
    Whether that generation is over, or a later one began.
    """
    return head.generation > generation or (
        head.ended and head.generation == generation
    )


def place_tombstone(
    deletion: Deletion, head: Head | None, now: datetime
) -> Operation | None:
    """
    The operation that puts a tombstone; None if there is one, or a later generation.
    """
    branch = head.branch if head else Branch()
    buried = tombstone(deletion.session, deletion.generation, now, branch)
    claimed = {"lineage": counted(branch.lineage)}
    if head is None:
        bound = {"created_at": {"$lte": deletion.generation}}
        return Replace({"_id": deletion.session, **bound, **claimed}, buried)
    if head.generation > deletion.generation or (
        head.ended and head.generation == deletion.generation
    ):
        return None
    seen: Document = {"_id": deletion.session, "created_at": head.generation}
    seen |= claimed
    if not head.ended:
        # A move may have brought another pointer.
        seen["moves"] = head.moves

    return Replace(seen, buried)


def in_bounded_steps(
    deletions: Iterable[Deletion], field: str
) -> Iterator[list[Operation]]:
    """
    Deletions in parts of about DELETED_AT_ONCE documents.
    """
    part: list[Operation] = []
    size = 0
    for where, count in (
        step for deletion in deletions for step in _steps(deletion, field)
    ):
        part.append(Remove(where))
        size += count
        if size >= DELETED_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _steps(deletion: Deletion, field: str) -> Iterator[tuple[Document, int]]:
    """
    Filters of bounded deletions, each with about its number of documents.
    """
    counts = {
        "seq": deletion.last_seq,
        "version": deletion.version,
        "notices": deletion.notices,
    }
    count = counts[field]
    for last in range(DELETED_AT_ONCE, count, DELETED_AT_ONCE):
        bound = {field: up_to(last)}
        yield (
            {"session": deletion.session, "life": deletion.generation, **bound},
            DELETED_AT_ONCE,
        )
    yield of_deleted(deletion), count % DELETED_AT_ONCE + 1


def of_deleted(deletion: Deletion) -> Document:
    """
    The filter for all documents of the deleted generations.
    """
    return {"session": deletion.session, "life": not_later(deletion.generation)}
