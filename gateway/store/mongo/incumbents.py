"""
Documents in the place of a new one.

The place of an entry is its seq, that of a change its version, that of a notice its
number. A repeat finds its own command there. Another command there is either a remnant
of a dead branch, which nobody reads, or the reason to refuse the newcomer.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import structlog

from everbus.gateway.store.claims import UNKNOWN, Length, other_command
from everbus.gateway.store.mongo.deletions import Head
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Document, LostRace, Remove, up_to
from everbus.gateway.store.mongo.plan import Piece

log = structlog.get_logger()

_FIELDS = dict.fromkeys(
    ("version", "seq", "notices", "command", "lineage", "patch", "life"), 1
)
_Generation = tuple[str, datetime]


class Place(NamedTuple):
    """
    The places of a collection.

    Attributes:
        key: the collection's unique key.
        number: the field that numbers them.
    """

    collection: str
    key: tuple[str, ...]
    number: str


class Incumbents:
    """
    Compares and removes documents by their places.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def compared(
        self, place: Place, taken: Iterable[Piece], heads: dict[str, Head]
    ) -> dict[int, str]:
        """
        The pieces that another command keeps out: place of the record → reason.

        Raises:
            LostRace: remnants of a dead branch were removed; insert again.
        """
        refused: dict[int, str] = {}
        removed = False
        for (session, generation), pieces in _by_generation(taken).items():
            counts = [piece.what[place.number] for piece in pieces]
            found = await self._at(place, session, generation, counts)
            head = _same(heads.get(session), generation)
            for piece in pieces:
                there = found.get(piece.what[place.number])
                if there is None or _is_same(there, piece.what):
                    continue
                if head is not None and _is_remnant(place, there, head):
                    removed = await self._remove(place, session, there)
                    continue
                names = (there["command"], piece.what.get("command", ""))
                what = f"{place.number} {piece.what[place.number]}"
                refused[piece.place] = other_command(what, session, *names)
        if removed:
            raise LostRace
        return refused

    async def withdraw(
        self, place: Place, pieces: Iterable[Piece], heads: dict[str, Head]
    ) -> None:
        """
        Remove what was inserted of refused records, beyond their documents.
        """
        removals = []
        for piece in pieces:
            document: Document = piece.what
            head = _same(heads.get(document["session"]), document["life"])
            if document[place.number] <= _counted(head, place.number):
                continue
            where = {name: document[name] for name in place.key}
            if "command" in document:
                removals.append(Remove({**where, "command": document["command"]}))
        await self._mongo.bulk(place.collection, removals)

    async def _at(
        self, place: Place, session: str, generation: datetime, counts: list[int]
    ) -> dict[int, Document]:
        bounds = {"$gt": min(counts) - 1, **up_to(max(counts))}
        where = {"session": session, "life": generation, place.number: bounds}
        found = await self._mongo.look(place.collection, where, _FIELDS)

        # Moves between tiers have the version that they found.
        return {
            one[place.number]: one
            for one in found
            if place.number != "version" or one["patch"] is not None
        }

    async def _remove(self, place: Place, session: str, there: Document) -> bool:
        log.warning(
            "remnant.removed",
            session=session,
            place=f"{place.number} {there[place.number]}",
            command=there["command"],
            lineage=there.get("lineage", UNKNOWN),
        )
        where = {"_id": there["_id"], "command": there["command"]}
        await self._mongo.bulk(place.collection, [Remove(where)])
        return True


def _by_generation(pieces: Iterable[Piece]) -> dict[_Generation, list[Piece]]:
    found: dict[_Generation, list[Piece]] = {}
    for piece in pieces:
        of = piece.what["session"], piece.what["life"]
        found.setdefault(of, []).append(piece)
    return found


def _same(head: Head | None, generation: datetime) -> Head | None:
    if head is None or head.generation != generation:
        return None
    return head


def _counted(head: Head | None, count: str) -> int:
    if head is None:
        return 0
    return int(getattr(head, "last_seq" if count == "seq" else count))


def _is_same(there: Document, offered: Any) -> bool:
    """
    Whether both are of one command; entries that were put back do not tell theirs.
    """
    if "patch" in offered and offered["patch"] is None:
        return True  # a move between tiers, whose key names the command
    commands = there.get("command"), offered.get("command")

    return None in commands or commands[0] == commands[1]


def _is_remnant(place: Place, there: Document, head: Head) -> bool:
    """
    Whether a dead branch left it, beyond what the session's document tells.
    """
    if there[place.number] <= _counted(head, place.number):
        return False
    counts = (there.get("version", 0), there["seq"], there.get("notices", 0))
    lineage = there.get("lineage", UNKNOWN)
    if lineage == UNKNOWN:
        # Older than lineages: nobody's, if the session was claimed since.
        return bool(head.branch.claims)
    return head.branch.is_dead(lineage, Length(head.generation, *counts))
