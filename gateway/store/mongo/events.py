"""
What happened in sessions, in MongoDB: changes in one collection, notices in another.

Each question is an equality and one range of its collection's unique index: with any
other condition beside them SecantusDB 0.7 reads the whole collection.
"""

from datetime import datetime

from bus.messages import SessionChange
from gateway.store.mongo.documents import EVENTS, NOTICES
from gateway.store.mongo.driver import Mongo
from gateway.store.mongo.operations import Document, up_to
from gateway.store.outbox import Record
from gateway.store.recorded import in_order
from handlers.outcomes import Event


class Events:
    """
    The changes and notices of all sessions.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def changes(
        self, session: str, life: datetime, after: int, through: int
    ) -> list[SessionChange]:
        """
        The steps to versions *after* + 1 to *through*, ascending.
        """
        steps = await self._steps(session, life, after, through)

        return [change_of(document) for document in steps]

    async def behind(
        self, session: str, life: datetime, after: tuple[int, int], limit: int
    ) -> list[Event]:
        """
        The first *limit* changes and notices behind a version and so many notices.
        """
        version, notices = after
        # Each event moves one of the two: the next ones are within these bounds.
        steps = await self._steps(session, life, version, version + limit)
        where = {"session": session, "life": life}
        bounds = {"$gt": notices, **up_to(notices + limit)}
        found = await self._mongo.find(
            NOTICES, {**where, "notices": bounds}, sort=[("notices", 1)]
        )
        return in_order(map(event_of, steps), map(event_of, found), notices)[:limit]

    async def _steps(
        self, session: str, life: datetime, after: int, through: int
    ) -> list[Document]:
        where = {"session": session, "life": life}
        bounds = {"$gt": after, **up_to(through)}
        found = await self._mongo.find(
            EVENTS, {**where, "version": bounds}, sort=[("version", 1)]
        )
        return [document for document in found if document["patch"] is not None]


def event_document(record: Record, event: Event) -> Document:
    """
    The document of one change of state: who, what, when, from where to where.
    """
    return {
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
