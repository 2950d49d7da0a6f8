"""
How the warm tier's values look as documents of MongoDB, and back.

| collection | one document per | unique by |
|---|---|---|
| `sessions` | session, also a deleted one for TOMBSTONE_DAYS | `_id` |
| `timeline` | timeline entry | session, life, seq |
| `events` | change of a session's state | session, life, version, kind, command |
| `notices` | broadcast or checkpoint made, for who watches | session, life, notices |
| `snapshots` | state that is kept for rebuilding versions | session, life, version |
| `checkpoints` | checkpoint | session, life, id |
| `removals` | archive of a deleted session | `_id` |
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from bus.codec import pack
from bus.messages import Checkpoint, Session, TimelineEntry
from gateway.store.mongo.operations import Document
from gateway.store.outbox import Record
from gateway.store.recorded import APPENDED, COLD_FIELDS, own_events
from gateway.store.tiers import Held
from gateway.store.words import words_of
from handlers.outcomes import Archived

SESSIONS = "sessions"
TIMELINE = "timeline"
EVENTS = "events"
NOTICES = "notices"
SNAPSHOTS = "snapshots"
CHECKPOINTS = "checkpoints"
REMOVALS = "removals"

# So long a deleted session's id is kept, with nothing else of it: what a paused
# archiver writes late must not bring it back.
TOMBSTONE_DAYS = 30

ENTRY_KEY = ("session", "life", "seq")
EVENT_KEY = ("session", "life", "version", "kind", "command")
# Apart from the events: any number of notices may come at one version, and nobody
# who reads versions is to read them all.
NOTICE_KEY = ("session", "life", "notices")
SNAPSHOT_KEY = ("session", "life", "version")
CHECKPOINT_KEY = ("session", "life", "id")
CHECKPOINT_PLACE = ("session", "life", "n")

_LISTS = frozenset({"acl", "tags"})
# A session's own fields in its document, beside its id.
_FIELDS = tuple(
    name
    for name in Session.__struct_fields__
    if name not in {"id", "recent_timeline", "full_context", "archival_status"}
)
# Absent unless true, so that their indexes hold nothing else.
_MARKS = ("unpurged", "unrestored")
# What reading a session leaves out.
SUMMARY = {"full_context": 0, "readers": 0, "words": 0, "participant_names": 0}
WITH_CONTEXT = {name: 0 for name in SUMMARY if name != "full_context"}


def state_document(session: Session) -> Document:
    """
    The fields that a session's state gives its document.
    """
    document = {name: _listed(name, getattr(session, name)) for name in _FIELDS}
    document["participant_names"] = list(session.participants)
    document["readers"] = list(dict.fromkeys((session.owner_id, *session.acl)))
    document["words"] = words_of(session)
    # Absent unless there is one, as in documents that are older than tenants.
    if not session.tenant:
        del document["tenant"]
    if not session.notices:
        del document["notices"]

    return document


def new_document(session: Session, context: dict[str, Any]) -> Document:
    """
    The document of a session that was never archived.
    """
    return {
        "_id": session.id,
        **state_document(session),
        "full_context": context,
        **archive_fields(Held(session=session)),
    }


def archive_fields(held: Held) -> Document:
    """
    The fields that tell of a session's archive, but for its marks.
    """
    # Absent until there is one, so that its index holds nothing else.
    pointer = {"s3_pointer": held.pointer} if held.pointer else {}

    return {
        "archival_status": held.archival_status,
        **pointer,
        "through": held.through,
        "cold_bytes": held.bytes,
        "moves": held.moves,
    }


def swapped(before: Held, after: Held) -> Document:
    """
    The change (MongoDB's operators) from *before* to *after*: of what is the same in
    both nothing is written, since *before* may have been read without its context.
    """
    fields = archive_fields(after)
    if after.session != before.session:
        fields |= state_document(after.session)
    if after.full_context != before.full_context:
        fields["full_context"] = after.full_context
    fields |= {mark: True for mark in _MARKS if getattr(after, mark)}
    cleared = {mark: "" for mark in _MARKS if not getattr(after, mark)}

    return {"$set": fields} | ({"$unset": cleared} if cleared else {})


def stubbed(archived: Archived) -> Document:
    """
    The change that makes a session's document a stub.
    """
    return {
        "$set": {
            "state": "archived",
            "archival_status": "S3",
            "s3_pointer": archived.pointer,
            "through": archived.through,
            "cold_bytes": archived.bytes,
            "moves": archived.moves + 1,
            "unpurged": True,
        },
        "$unset": dict.fromkeys((*COLD_FIELDS, "full_context", "unrestored"), ""),
    }


def tombstone(session_id: str, life: datetime, now: datetime) -> Document:
    """
    What stays of a deleted session: that its lives up to this one are over.
    """
    return {"_id": session_id, "created_at": life, "deleted_at": now}


def held_of(document: Document) -> Held:
    """
    What a session's document holds.
    """
    session = session_of({**document, "id": document["_id"]})
    status = document["archival_status"]

    return Held(
        session=msgspec.structs.replace(session, archival_status=status),
        full_context=document.get("full_context", {}),
        archival_status=status,
        pointer=document.get("s3_pointer", ""),
        through=document["through"],
        bytes=document["cold_bytes"],
        moves=document["moves"],
        unpurged=document.get("unpurged", False),
        unrestored=document.get("unrestored", False),
    )


def session_of(document: Document) -> Session:
    """
    The session in a document that has its id; fields it lacks have their defaults.
    """
    known = {name: document[name] for name in _FIELDS if name in document}
    known |= {name: tuple(known[name]) for name in _LISTS if name in known}

    return Session(id=document["id"], **known)


def entry_documents(record: Record, after: int) -> Iterator[Document]:
    """
    The documents of the record's entries behind seq *after*, with their audit.
    """
    audit = {e.seq: e for e in own_events(record) if e.kind == APPENDED}
    for packed in record.entries:
        document = entry_document(record.session, record.created_at, packed)
        if document["seq"] <= after:
            continue
        if event := audit.get(document["seq"]):
            document |= {"command": event.command_id, "principal": event.principal}
        yield document


def entry_document(session_id: str, life: datetime, packed: bytes) -> Document:
    """
    The document of one packed TimelineEntry.
    """
    entry = msgspec.msgpack.decode(packed, type=TimelineEntry)

    return {
        "session": session_id,
        "life": life,
        "seq": entry.seq,
        "at": entry.at,
        "author": entry.author,
        "entry": entry.entry,
    }


def packed_entry(document: Document) -> bytes:
    """
    The packed TimelineEntry of a document.
    """
    return pack(
        TimelineEntry(
            document["seq"], document["at"], document["author"], document["entry"]
        )
    )


def snapshot_document(session: Session) -> Document:
    """
    The document of a kept state.
    """
    state = {name: _listed(name, getattr(session, name)) for name in _FIELDS}

    return {"session": session.id, "life": session.created_at, **state}


def checkpoint_of(document: Document) -> Checkpoint:
    """
    The checkpoint that a document holds.
    """
    return Checkpoint(**{n: document[n] for n in Checkpoint.__struct_fields__})


def _listed(name: str, value: Any) -> Any:
    return list(value) if name in _LISTS else value
