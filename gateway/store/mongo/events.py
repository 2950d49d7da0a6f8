"""
What happened in sessions, in MongoDB: changes in one collection, notices in another.

Each question is an equality and one range of its collection's unique index: with any
other condition beside them SecantusDB 0.7 reads the whole collection.
"""

from collections.abc import Callable
from datetime import datetime

from everbus.bus.messages import SessionChange, pack
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.mongo.documents import EVENTS, NOTICES, of_lineage
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Document, up_to
from everbus.gateway.store.read_bound import Meter, ReadBound
from everbus.gateway.store.record_effects import in_order
from everbus.handlers.outcomes import Event


class Events:
    """
    The changes and notices of all sessions.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def changes(
        self,
        session: str,
        generation: datetime,
        span: tuple[int, int],
        bound: ReadBound | None,
    ) -> list[SessionChange]:
        """
        The steps behind the first version of *span* up to its last, ascending.
        """
        steps = await self._steps(session, generation, span, bound)

        return [change_of(document) for document in steps]

    async def behind(
        self,
        session: str,
        generation: datetime,
        after: tuple[int, int],
        limit: int,
        bound: ReadBound | None,
    ) -> list[Event]:
        """
        The first *limit* changes and notices behind a version and so many notices.
        """
        version, notices = after
        # Each event moves one of the two: the next ones are within these bounds.
        span = (version, version + limit)
        steps = await self._steps(session, generation, span, bound)
        where = {"session": session, "life": generation}
        bounds = {"$gt": notices, **up_to(notices + limit)}
        found = await self._mongo.find(
            NOTICES,
            {**where, "notices": bounds},
            sort=[("notices", 1)],
            goes_on=_goes_on(bound, "message"),
        )
        if bound is not None:
            steps, found = _both_there(steps, found, bound)
        return in_order(map(event_of, steps), map(event_of, found), notices)[:limit]

    async def _steps(
        self,
        session: str,
        generation: datetime,
        span: tuple[int, int],
        bound: ReadBound | None,
    ) -> list[Document]:
        after, through = span
        where = {"session": session, "life": generation}
        bounds = {"$gt": after, **up_to(through)}
        step = -1 if bound is not None and bound.newest_first else 1
        found = await self._mongo.find(
            EVENTS,
            {**where, "version": bounds},
            sort=[("version", step)],
            goes_on=_goes_on(bound, "patch"),
        )
        return [document for document in found if document["patch"] is not None][::step]


def _both_there(
    steps: list[Document], found: list[Document], bound: ReadBound
) -> tuple[list[Document], list[Document]]:
    """
    Changes and notices up to where both are read; a bound may have ended either.
    """
    if steps and _is_cut(steps, "patch", bound):
        last = steps[-1]["version"]
        found = [notice for notice in found if notice["version"] <= last]
    if found and _is_cut(found, "message", bound):
        last = found[-1]["notices"]
        steps = [step for step in steps if step.get("notices", 0) <= last]
    return steps, found


def _is_cut(documents: list[Document], field: str, bound: ReadBound) -> bool:
    meter = Meter(bound.most_bytes)

    return not all(meter.add(len(pack(one.get(field)))) for one in documents)


def _goes_on(bound: ReadBound | None, field: str) -> Callable[[Document], bool] | None:
    """
    Whether there is room behind a document; its *field* alone can be large.
    """
    if bound is None:
        return None
    meter = Meter(bound.most_bytes)

    return lambda document: meter.add(len(pack(document.get(field))))


def event_document(record: Record, event: Event) -> Document:
    """
    The document of one change of state: who, what, when, from where to where.

    One version has one change; by its _id, since older documents have others.
    """
    life_ms = round(record.created_at.timestamp() * 1000)
    place = f"{record.session}/{life_ms}/{event.version}"
    own = {"_id": place} if event.patch is not None else {}
    return {
        **own,
        "session": record.session,
        "life": record.created_at,
        "version": event.version,
        "version_from": event.version - (event.patch is not None),
        "seq": event.seq,
        "notices": event.notices,
        "kind": event.kind,
        "mad": event.mad,
        "principal": event.principal,
        "command": event.command_id,
        "at": event.at or record.last_active,
        "patch": event.patch,
        **({"turn": event.turn} if event.turn else {}),
        **of_lineage(record),
    }


def notice_document(record: Record, event: Event) -> Document:
    """
    The document of one notice: who, what, when, and what was said.
    """
    return {
        "session": record.session,
        "life": record.created_at,
        "notices": event.notices,
        "version": event.version,
        "seq": event.seq,
        "kind": event.kind,
        "mad": event.mad,
        "principal": event.principal,
        "command": event.command_id,
        "at": event.at or record.last_active,
        "message": event.message,
        **of_lineage(record),
    }


def event_of(document: Document) -> Event:
    """
    What the document of a change or of a notice tells of.
    """
    return Event(
        kind=document["kind"],
        command_id=document["command"],
        mad=document["mad"],
        principal=document["principal"],
        version=document["version"],
        seq=document["seq"],
        # Absent in documents that are older than notices.
        notices=document.get("notices", 0),
        at=document["at"],
        patch=document.get("patch"),
        message=document.get("message"),
        turn=document.get("turn", ""),
    )


def change_of(document: Document) -> SessionChange:
    """
    The step of a session's version that an event's document tells of.
    """
    return SessionChange(
        version=document["version"],
        seq=document["seq"],
        kind=document["kind"],
        at=document["at"],
        mad=document["mad"],
        principal=document["principal"],
        command_id=document["command"],
        patch=document["patch"],
    )
