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
| `restores` | backup that was restored, see `refill.py` | `_id` |
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from everbus.bus.messages import Checkpoint, Session, TimelineEntry, pack
from everbus.gateway.store.claims import Branch, Length, PastClaim
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.mongo.operations import Document
from everbus.gateway.store.record_effects import APPENDED, COLD_FIELDS, own_events
from everbus.gateway.store.search_words import WORDS_VERSION, words_of
from everbus.gateway.store.tiers import WarmSession
from everbus.handlers.access_list import readers_of
from everbus.handlers.outcomes import Archived

SESSIONS = "sessions"
TIMELINE = "timeline"
EVENTS = "events"
NOTICES = "notices"
SNAPSHOTS = "snapshots"
CHECKPOINTS = "checkpoints"
REMOVALS = "removals"

# How long the id of a deleted session stays, alone: a late write of a paused archiver
# must not bring it back.
TOMBSTONE_DAYS = 30
# The claim of a session that nobody has leaves a placeholder: anybody can ask for any
# id. So long it goes before records of an older lineage that come late.
PLACEHOLDER_S = 120

ENTRY_KEY = ("session", "life", "seq")
EVENT_KEY = ("session", "life", "version", "kind", "command")
# Apart from the events: one version may have any number of notices, and readers of
# versions should not read them all.
NOTICE_KEY = ("session", "life", "notices")
SNAPSHOT_KEY = ("session", "life", "version")
CHECKPOINT_KEY = ("session", "life", "id")
CHECKPOINT_PLACE = ("session", "life", "n")

_LISTS = frozenset({"acl", "tags"})
_COUNTS = ("version", "last_seq", "notices")
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
    document["readers"] = readers_of(session.owner_id, session.acl)
    document["words"] = words_of(session)
    document["words_version"] = WORDS_VERSION
    # Absent unless there is one, as in documents that are older than tenants.
    if not session.tenant:
        del document["tenant"]
    if not session.notices:
        del document["notices"]

    return document


def new_document(session: Session, context: dict[str, Any], branch: Branch) -> Document:
    """
    The document of a session that was never archived.
    """
    return {
        "_id": session.id,
        **state_document(session),
        "full_context": context,
        **archive_fields(WarmSession(session=session)),
        **branch_fields(branch),
    }


def branch_fields(branch: Branch) -> Document:
    """
    The fields that tell which lineages claimed a session; none before the first.
    """
    if not branch.lineage:
        return {}
    claims = [
        {"lineage": one.lineage, "life": one.length.generation}
        | dict(zip(_COUNTS, one.length[1:], strict=True))
        for one in branch.claims
    ]
    return {"lineage": branch.lineage, "ancestor": branch.ancestor, "claims": claims}


def branch_of(document: Document) -> Branch:
    """
    The branch that a session's document tells of.
    """
    claims = tuple(
        PastClaim(one["lineage"], Length(one["life"], *(one[c] for c in _COUNTS)))
        for one in document.get("claims", ())
    )
    return Branch(document.get("lineage", 0), document.get("ancestor", 0), claims)


def archive_fields(warm_session: WarmSession) -> Document:
    """
    The fields that tell of a session's archive, but for its marks.
    """
    # Absent until there is one, so that its index holds nothing else.
    pointer = {"s3_pointer": warm_session.pointer} if warm_session.pointer else {}

    return {
        "archival_status": warm_session.archival_status,
        **pointer,
        "through": warm_session.through,
        "cold_bytes": warm_session.bytes,
        "moves": warm_session.moves,
    }


def swapped(before: WarmSession, after: WarmSession) -> Document:
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


def tombstone(
    session_id: str, generation: datetime, now: datetime, branch: Branch
) -> Document:
    """
    The document of a deleted session: its generations up to this one are over.

    A claim of an unknown session is one of no generation.
    """
    ended = {"_id": session_id, "created_at": generation, "deleted_at": now}

    return ended | branch_fields(branch)


def warm_session_of(document: Document) -> WarmSession:
    """
    The warm session in a document.
    """
    session = session_of({**document, "id": document["_id"]})
    status = document["archival_status"]

    return WarmSession(
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
        yield document | of_lineage(record)


def of_lineage(record: Record) -> Document:
    """
    The lineage of what *record* brings, and the tenant whose key seals it; absent in
    documents older than lineages, and without encryption.
    """
    fields = {"lineage": record.lineage, "tenant": record.tenant}

    return {name: value for name, value in fields.items() if value}


def entry_document(session_id: str, generation: datetime, packed: bytes) -> Document:
    """
    The document of one packed TimelineEntry.
    """
    entry = msgspec.msgpack.decode(packed, type=TimelineEntry)
    document = {
        "session": session_id,
        "life": generation,
        "seq": entry.seq,
        "at": entry.at,
        "author": entry.author,
        "entry": entry.entry,
    }
    # Absent without one, as in documents that are older than turns.
    if entry.turn:
        document["turn"] = entry.turn

    return document


def packed_entry(document: Document) -> bytes:
    """
    The packed TimelineEntry of a document.
    """
    return pack(
        TimelineEntry(
            *(document["seq"], document["at"], document["author"], document["entry"]),
            turn=document.get("turn", ""),
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
