"""
What MongoDB holds of a session's lives, and how they end.

A deleted session's document becomes a tombstone, which nothing of its life can
replace; then everything else of it is removed, in bounded steps.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from gateway.store.mongo.documents import tombstone
from gateway.store.mongo.operations import (
    Document,
    Operation,
    Remove,
    Replace,
    not_later,
    up_to,
)

# Documents per bulk of deletions, about; so each stays within its deadline.
DELETED_AT_ONCE = 5000


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the document of a session says of itself, before anything is written.

    Attributes:
        life: created_at of its session.
        ended: it is a tombstone; then nothing else is told.
    """

    life: datetime
    ended: bool = False
    version: int = 0
    last_seq: int = 0
    notices: int = 0
    last_active: datetime | None = None
    moves: int = 0
    pointer: str = ""
    through: int = 0
    stub: bool = False
    unpurged: bool = False


HEAD_FIELDS = dict.fromkeys(
    (
        *("created_at", "deleted_at", "version", "last_seq", "notices"),
        *("last_active", "moves", "s3_pointer", "through", "archival_status"),
        "unpurged",
    ),
    1,
)


class End(msgspec.Struct, frozen=True, kw_only=True):
    """
    Lives of a session that are over.

    Attributes:
        life: the last of them.
        last_seq: about how many timeline entries there are to delete.
        version: about how many changes of state.
        notices: about how many notices.
    """

    session: str
    life: datetime
    last_seq: int = 0
    version: int = 0
    notices: int = 0


def head_of(document: Document) -> Head:
    """
    The head of a session's document.
    """
    if "deleted_at" in document:
        return Head(life=document["created_at"], ended=True)
    return Head(
        life=document["created_at"],
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


def is_past(head: Head, life: datetime) -> bool:
    """
    Whether that life is over, or a later one began.
    """
    return head.life > life or (head.ended and head.life == life)


def tomb(end: End, head: Head | None, now: datetime) -> Operation | None:
    """
    What puts a tombstone; None if there is one, or a later life.
    """
    buried = tombstone(end.session, end.life, now)
    if head is None:
        return Replace({"_id": end.session, "created_at": {"$lte": end.life}}, buried)
    if head.life > end.life or (head.ended and head.life == end.life):
        return None
    seen: Document = {"_id": end.session, "created_at": head.life}
    if not head.ended:
        # A move may have brought another pointer.
        seen["moves"] = head.moves

    return Replace(seen, buried)


def bounded(ends: Iterable[End], field: str) -> Iterator[list[Operation]]:
    """
    Deletions in parts of about DELETED_AT_ONCE documents.
    """
    part: list[Operation] = []
    size = 0
    for where, count in (step for end in ends for step in _steps(end, field)):
        part.append(Remove(where))
        size += count
        if size >= DELETED_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _steps(end: End, field: str) -> Iterator[tuple[Document, int]]:
    """
    What to delete, and about how many documents that are, each step a bounded part.
    """
    counts = {"seq": end.last_seq, "version": end.version, "notices": end.notices}
    count = counts[field]
    for last in range(DELETED_AT_ONCE, count, DELETED_AT_ONCE):
        bound = {field: up_to(last)}
        yield {"session": end.session, "life": end.life, **bound}, DELETED_AT_ONCE
    yield of_ended(end), count % DELETED_AT_ONCE + 1


def of_ended(end: End) -> Document:
    """
    What everything of the ended lives has in common.
    """
    return {"session": end.session, "life": not_later(end.life)}
