"""
Operations on MongoDB as plain values, and their results.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

Document = dict[str, Any]  # BSON values
Sort = Sequence[tuple[str, int]]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK = timedelta(milliseconds=1)

DUPLICATE_KEY = 11000
# What MongoDB can never take, by its error codes. Whatever is not in this list is
# taken to pass: not the primary, a write concern, a full disk, a missing right.
# Source: mongo/src/mongo/base/error_codes.yml.
PERMANENT = {
    2: "a value that it cannot hold",
    9: "a document that it cannot read",
    14: "a value of a type that does not fit",
    15: "nested too deep",
    22: "not BSON",
    28: "a path through a value that is no document",
    40: "two changes of one field",
    52: "a field name with a leading $",
    53: "an _id that it cannot hold",
    55: "a reference that it cannot hold",
    56: "an empty field name",
    57: "a field name with a dot",
    66: "a change of a field that never changes",
    121: "not valid for the collection's validator",
    171: "two lists in one index",
    10334: "larger than a document may be",
    DUPLICATE_KEY: "already there under another unique index",
    16755: "not valid for a geographic index",
    17280: "too large for an index",
    17419: "larger than a document may be",
    17420: "larger than a document may be",
}
# Of these, what may be said of several operations at once and mean one of them. The
# others then mean the whole: code 2 is also a server without a journal.
WHOLE = frozenset({22, 10334})


class Insert(msgspec.Struct, frozen=True):
    """
    Put *document*.
    """

    document: Document


class Update(msgspec.Struct, frozen=True):
    """
    Change the document that matches *where*, by MongoDB's operators.
    """

    where: Document
    change: Document


class Replace(msgspec.Struct, frozen=True):
    """
    Replace the document that matches *where* by *document*; insert it if its id is
    unknown.
    """

    where: Document
    document: Document


class Remove(msgspec.Struct, frozen=True):
    """
    Delete all documents that match *where*.
    """

    where: Document


class LostRace(Exception):
    """
    Another writer changed the data that this change relied on; the caller retries.
    """


Operation = Insert | Update | Replace | Remove


class Done(msgspec.Struct, frozen=True):
    """
    The results of operations, keyed by their place in the sequence.

    Attributes:
        matched: how many updates and replacements found or made their document.
        taken: place → the fields of the caller's own unique key which has the
            values already.
        refused: place → why MongoDB never takes it.
    """

    matched: int
    taken: dict[int, tuple[str, ...]]
    refused: dict[int, str]


def up_to(last: int) -> Document:
    """
    Up to *last*, for a field with others behind it in its index. There SecantusDB
    0.7 misses the value itself with `$lte`; `$lt` is the same everywhere.
    """
    return {"$lt": last + 1}


def counted(count: int) -> int | None:
    """
    A count, for a field that documents lack while it is 0; older documents lack it,
    too, and null matches a missing field.
    """
    return count or None


def not_later(at: datetime) -> Document:
    """
    Up to *at*, likewise; MongoDB keeps times in milliseconds.
    """
    return {"$lt": at + TICK}


def not_earlier(at: datetime) -> Document:
    """
    From *at* on, likewise; in a descending index it is `$gte` that misses.
    """
    return {"$gt": max(at, EPOCH) - TICK}


def passing(details: Document) -> int | None:
    """
    The code of a failure that passes, in what a server says of a bulk that failed in
    part; None if there is none, 0 if it has no code.
    """
    for failure in details.get("writeErrors", ()):
        if failure["code"] not in PERMANENT:
            return int(failure["code"])
    for failure in details.get("writeConcernErrors", ()):
        return int(failure.get("code", 0))
    return None


def judged(details: Document, own: Sequence[tuple[str, ...]]) -> Done:
    """
    What a bulk has done of which some operations failed for good.
    """
    taken: dict[int, tuple[str, ...]] = {}
    refused: dict[int, str] = {}
    for failure in details.get("writeErrors", ()):
        code, index = failure["code"], failure["index"]
        key = tuple(failure.get("keyPattern", own[0]))
        if code == DUPLICATE_KEY and key in own:
            taken[index] = key
        else:
            refused[index] = f"MongoDB: {PERMANENT[code]} (code {code})"
    return Done(
        details.get("nMatched", 0) + details.get("nUpserted", 0), taken, refused
    )


def both(one: Done, other: Done, behind: int) -> Done:
    """
    What became of two sequences; the other one begins at place *behind*.
    """
    return Done(
        one.matched + other.matched,
        one.taken | _moved(other.taken, behind),
        one.refused | _moved(other.refused, behind),
    )


def _moved(found: dict[int, Any], behind: int) -> dict[int, Any]:
    return {place + behind: what for place, what in found.items()}
