"""
Which fields of MongoDB's documents are sealed, and the place of each.

| collection | sealed |
|---|---|
| `sessions`, `snapshots` | the session's sensitive fields |
| `events` | those fields inside `patch` |
| `checkpoints` | those fields inside `kept`; `sha256`, which confirms a guess |
| `notices` | `message` |
| `timeline` | `entry`: it comes sealed, and leaves sealed |
"""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from everbus.gateway.sealing.cipher import ValuePlace
from everbus.gateway.sealing.sealing import Sealing, milliseconds
from everbus.gateway.store.mongo.documents import (
    CHECKPOINTS,
    EVENTS,
    NOTICES,
    SNAPSHOTS,
    TIMELINE,
)
from everbus.gateway.store.mongo.operations import Document

# The fields that hold sealed ones, of collections with such.
HOLDERS = {EVENTS: "patch", CHECKPOINTS: "kept"}
# Fields that a place is made of.
PLACED_BY = ("created_at", "session", "life", "seq", "version", "notices", "id")
_NUMBERED_BY = {
    SNAPSHOTS: "version",
    EVENTS: "version",
    CHECKPOINTS: "id",
    NOTICES: "notices",
}


class SealedField(NamedTuple):
    """
    One field of a document that is sealed, if it is there.

    Attributes:
        holder: the dictionary that has it: the document, or a part of it.
        path: its path in MongoDB's notation.
    """

    holder: Document
    name: str
    path: str
    place: ValuePlace


def sealed_fields(
    collection: str, document: Document, sealing: Sealing
) -> Iterator[SealedField]:
    """
    The sensitive fields that *document* has.
    """
    session, generation = session_and_generation(document)
    if generation is None:
        return
    of_session = (session, milliseconds(generation))
    if collection == TIMELINE:
        if sealing.timeline and "entry" in document:
            place = ValuePlace(*of_session, f"entry:{document['seq']}")
            yield SealedField(document, "entry", "entry", place)
        return
    within = HOLDERS.get(collection, "")
    holder = document.get(within) if within else document
    number = _number(collection, document)
    for name in sealing.fields:
        if isinstance(holder, dict) and name in holder:
            path = f"{within}.{name}" if within else name
            yield SealedField(
                holder, name, path, ValuePlace(*of_session, path + number)
            )
    for name in _whole(collection, sealing):
        if document.get(name) is not None:
            place = ValuePlace(*of_session, name + number)
            yield SealedField(document, name, name, place)


def session_and_generation(document: Document) -> tuple[str, datetime | None]:
    """
    The session of a document of any collection, and its generation, if it tells.
    """
    if "life" in document:
        return document["session"], document["life"]
    return document.get("_id", ""), document.get("created_at")


def _number(collection: str, document: Document) -> str:
    """
    What tells the documents of one session apart; sessions' own have nothing.
    """
    field = _NUMBERED_BY.get(collection)

    return "" if field is None else f"@{document.get(field)}"


def _whole(collection: str, sealing: Sealing) -> tuple[str, ...]:
    if collection == CHECKPOINTS:
        return ("sha256",)
    return ("message",) if collection == NOTICES and sealing.timeline else ()
