"""
What a warm tier in memory holds, and what records do to it.
"""

from datetime import datetime
from typing import Any

import msgspec

from bus.messages import Checkpoint, Session, SessionChange, TimelineEntry
from gateway.store.outbox import Record
from gateway.store.recorded import (
    APPENDED,
    context_patches,
    entombed,
    is_due,
    is_notice,
    linked,
    own_events,
    stub_of,
    unborn,
    with_context,
)
from gateway.store.tiers import Held
from gateway.store.words import words_of
from handlers.outcomes import Archived, Event, NewCheckpoint
from handlers.session import merge

State = dict[str, Any]  # JSON values


class Life(msgspec.Struct):
    """
    All that is held of one life of one session but its document.

    Attributes:
        entries: seq → packed TimelineEntry.
        audits: seq → by which command and principal it was appended.
        steps: version → the event that led to it.
        notices: how many there were after it → the event.
        snapshots: version → state.
        checkpoints: in order, with how many links lead to a full one.
    """

    entries: dict[int, bytes] = msgspec.field(default_factory=dict)
    audits: dict[int, tuple[str, str]] = msgspec.field(default_factory=dict)
    steps: dict[int, Event] = msgspec.field(default_factory=dict)
    notices: dict[int, Event] = msgspec.field(default_factory=dict)
    snapshots: dict[int, Session] = msgspec.field(default_factory=dict)
    checkpoints: list[tuple[Checkpoint, State, int]] = msgspec.field(
        default_factory=list
    )


class Kept:
    """
    All sessions, as plain values.

    Attributes:
        held: session → its document.
        words: session → what it is found by; of a stub, as it was before.
        lives: session, life → the rest of it.
        over: session → up to which life it is over; nothing that is late brings it
            back.
        removals: pointers of archives whose sessions are gone.
    """

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.words: dict[str, frozenset[str]] = {}
        self.lives: dict[tuple[str, datetime], Life] = {}
        self.over: dict[str, datetime] = {}
        self.removals: set[str] = set()

    def take(self, record: Record) -> str:
        """
        Do what one record says; why it is refused, else empty.
        """
        name, life = record.session, record.created_at
        if self.is_past(name, life):
            return ""
        held = self.held.get(name)
        if held is not None and held.session.created_at < life:
            self.remove(name, held.session.created_at)
            held = None
        if record.deleted:
            self.remove(name, life)
            return ""
        if held is not None and held.archival_status == "S3":
            session = held.session
            counts = (session.version, session.last_seq, session.notices)
            if reason := entombed(record, *counts):
                return reason
        if held is None and (reason := unborn(record)):
            return reason
        self._insert(record, held.through if held else 0)
        self._forward(record, held)
        if record.archived is not None:
            self._archive(record, record.archived)
        return ""

    def remove(self, session_id: str, life: datetime) -> None:
        """
        Remove everything of the session's lives up to this one.
        """
        held = self.held.get(session_id)
        if held is not None and held.session.created_at <= life:
            if held.pointer:
                self.removals.add(held.pointer)
            del self.held[session_id], self.words[session_id]
        for name, begun in list(self.lives):
            if name == session_id and begun <= life:
                del self.lives[name, begun]
        self.over[session_id] = max(life, self.over.get(session_id, life))

    def life(self, session_id: str, life: datetime) -> Life:
        """
        What is held of that life; if nothing, an empty one of no consequence.
        """
        return self.lives.get((session_id, life)) or Life()

    def living(self, session_id: str, life: datetime) -> Life:
        """
        What is held of that life, to be added to.
        """
        return self.lives.setdefault((session_id, life), Life())

    def is_past(self, session_id: str, life: datetime) -> bool:
        """
        Whether that life is over, or a later one began.
        """
        held = self.held.get(session_id)
        if held is not None and held.session.created_at > life:
            return True
        return session_id in self.over and life <= self.over[session_id]

    def _insert(self, record: Record, through: int) -> None:
        """
        Insert what is not there; entries up to *through* are in the cold tier.
        """
        life = self.living(record.session, record.created_at)
        audits = {e.seq: e for e in own_events(record) if e.kind == APPENDED}
        for packed in record.entries:
            entry = msgspec.msgpack.decode(packed, type=TimelineEntry)
            if entry.seq > through and entry.seq not in life.entries:
                life.entries[entry.seq] = bytes(packed)
                if event := audits.get(entry.seq):
                    life.audits[entry.seq] = (event.command_id, event.principal)
        _tell(life, record)
        if record.state is not None and is_due(record):
            life.snapshots.setdefault(record.version, plain(record.state))
        for new in record.checkpoints:
            _keep(life, new)

    def _forward(self, record: Record, held: Held | None) -> None:
        """
        Bring the session's document forward to the record, never back.
        """
        version = held.session.version if held is not None else 0
        session = held.session if held is not None else None
        context = held.full_context if held is not None else {}
        if record.state is not None and record.version > version:
            session = plain(record.state)
            context = with_context(context, context_patches([record], version))
            self.words[record.session] = frozenset(words_of(session))
        if session is None:
            return
        known = (held or Held(session=session)).session
        session = msgspec.structs.replace(
            session,
            last_seq=max(known.last_seq, record.last_seq),
            last_active=max(known.last_active, record.last_active),
            notices=max(known.notices, record.notices),
        )
        self.held[record.session] = msgspec.structs.replace(
            held or Held(session=session), session=session, full_context=context
        )

    def _archive(self, record: Record, archived: Archived) -> None:
        """
        Make the session a stub, if it still is as it was archived.
        """
        held = self.held.get(record.session)
        if held is None or held.archival_status != "ACTIVE":
            return
        session = held.session
        seen = (session.version, session.last_seq, session.notices, held.moves)
        told = (record.version, record.last_seq, record.notices, archived.moves)
        if seen != told:
            return
        self.held[record.session] = Held(
            session=stub_of(session),
            archival_status="S3",
            pointer=archived.pointer,
            through=archived.through,
            bytes=archived.bytes,
            moves=held.moves + 1,
            unpurged=True,
        )


def plain(session: Session) -> Session:
    """
    *session* as a warm tier keeps it: neither recent timeline nor full context.
    """
    return msgspec.structs.replace(
        session, recent_timeline=(), full_context=None, archival_status="ACTIVE"
    )


def change_of(step: Event) -> SessionChange:
    """
    The step of a session's version that *step* tells of.
    """
    if step.at is None or step.patch is None:
        raise AssertionError(f"{step.kind} is no step of a version")
    return SessionChange(
        version=step.version,
        seq=step.seq,
        kind=step.kind,
        at=step.at,
        mad=step.mad,
        principal=step.principal,
        command_id=step.command_id,
        patch=step.patch,
    )


def _tell(life: Life, record: Record) -> None:
    """
    Keep the record's steps and notices, unless they are there.
    """
    for event in own_events(record):
        if event.patch is not None:
            at = event.at or record.last_active
            step = msgspec.structs.replace(event, at=at)
            life.steps.setdefault(event.version, step)
        elif is_notice(event):
            life.notices.setdefault(event.notices, event)


def _keep(life: Life, new: NewCheckpoint) -> None:
    """
    Add a checkpoint, unless it is there.
    """
    if any(checkpoint.id == new.id for checkpoint, _, _ in life.checkpoints):
        return
    parent, _, links = life.checkpoints[-1] if life.checkpoints else (None, {}, 0)
    state: State = {}
    for _, kept, _ in life.checkpoints[len(life.checkpoints) - 1 - links :]:
        state = merge(state, kept)
    checkpoint, kept = linked(new, parent, links, state)
    behind = links + 1 if checkpoint.kind == "incremental" else 0
    life.checkpoints.append((checkpoint, kept, behind))
