"""
What a warm tier in memory holds, and what records do to it.
"""

from datetime import datetime
from typing import Any

import msgspec

from everbus.bus.messages import Checkpoint, Session, SessionChange, TimelineEntry
from everbus.gateway.store.claims import (
    NO_LENGTH,
    Branch,
    Claim,
    dead_reason,
    ended,
    length_of,
    other_command,
    other_generation,
    settled,
)
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.record_effects import (
    APPENDED,
    after_archive,
    context_patches,
    ends_another,
    is_due,
    is_notice,
    linked,
    own_events,
    stub_of,
    with_context,
    without_session,
)
from everbus.gateway.store.search_words import words_of
from everbus.gateway.store.tiers import Claimed, WarmSession, WriteRefused
from everbus.handlers.outcomes import Archived, Event, NewCheckpoint
from everbus.handlers.patches import merge

State = dict[str, Any]  # JSON values


class Generation(msgspec.Struct):
    """
    Timeline, events and history of one generation of one session.

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


class WarmState:
    """
    All sessions, as plain values.

    Attributes:
        held: session → its document.
        words: session → what it is found by; of a stub, as it was before.
        generations: session, created_at → the rest of it.
        over: session → its last deleted generation; no late record brings that back.
        removals: pointers of archives whose sessions are gone.
        branches: session → which of its branches counts.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, WarmSession] = {}
        self.words: dict[str, frozenset[str]] = {}
        self.generations: dict[tuple[str, datetime], Generation] = {}
        self.over: dict[str, datetime] = {}
        self.removals: set[str] = set()
        self.branches: dict[str, Branch] = {}

    def take(self, record: Record) -> WriteRefused | None:
        """
        Apply one record; returns the reason if it is refused.
        """
        name, generation = record.session, record.created_at
        branch = self.branches.get(name, Branch())
        if reason := dead_reason(record, branch):
            return WriteRefused(record, reason, diverged=True)
        if self.is_past(name, generation):
            return None
        warm_session = self.sessions.get(name)
        if warm_session and warm_session.session.created_at < generation:
            held = warm_session.session.created_at
            if not ends_another(record):
                reason = other_generation(name, held, generation)
                return WriteRefused(record, reason, diverged=True)
            self.remove(name, held)
            warm_session = None
        if record.deleted:
            self.remove(name, generation)
            return None
        return self._follow(record, warm_session, branch)

    def _follow(
        self, record: Record, warm_session: WarmSession | None, branch: Branch
    ) -> WriteRefused | None:
        """
        Apply a record to its generation, if it fits the state there.
        """
        if reason := _unfit(record, warm_session):
            return WriteRefused(record, reason)
        if reason := self._taken(record):
            return WriteRefused(record, reason, diverged=True)
        if warm_session is None and record.lineage > branch.lineage:
            new = Branch(record.lineage, branch.lineage, branch.claims)
            self.branches[record.session] = new
        self._insert(record, warm_session.through if warm_session else 0)
        self._forward(record, warm_session)
        if record.archived is not None:
            self._archive(record, record.archived)
        return None

    def claim(self, claim: Claim) -> Claimed:
        """
        Claim a session for a lineage.
        """
        name = claim.session
        branch = self.branches.get(name, Branch())
        if branch.lineage > claim.lineage:
            return Claimed(lineage=branch.lineage)
        held = self.sessions.get(name)
        length = NO_LENGTH
        if held is not None:
            length = length_of(held.session)
        elif name in self.over:
            length = ended(self.over[name])
        end = settled(claim, branch, length)
        if end.branch is not None:
            self.branches[name] = end.branch

        return Claimed(
            lineage=claim.lineage,
            held=held,
            keeps_hot=end.keeps_hot,
            descends=end.descends,
            known=end.known,
        )

    def _taken(self, record: Record) -> str:
        """
        Why another command has a place of *record*; empty: none has.
        """
        generation = self.generation(record.session, record.created_at)
        for event in own_events(record):
            held = ""
            if event.kind == APPENDED:
                held = generation.audits.get(event.seq, ("",))[0]
                what = f"seq {event.seq}"
            elif event.patch is not None and event.version in generation.steps:
                held = generation.steps[event.version].command_id
                what = f"version {event.version}"
            elif is_notice(event) and event.notices in generation.notices:
                held = generation.notices[event.notices].command_id
                what = f"notice {event.notices}"
            if held and held != event.command_id:
                return other_command(what, record.session, held, event.command_id)
        return ""

    def remove(self, session_id: str, generation: datetime) -> None:
        """
        Remove everything of the session's generations up to this one.
        """
        warm_session = self.sessions.get(session_id)
        if warm_session is not None and warm_session.session.created_at <= generation:
            if warm_session.pointer:
                self.removals.add(warm_session.pointer)
            del self.sessions[session_id], self.words[session_id]
        for name, begun in list(self.generations):
            if name == session_id and begun <= generation:
                del self.generations[name, begun]
        self.over[session_id] = max(generation, self.over.get(session_id, generation))

    def generation(self, session_id: str, generation: datetime) -> Generation:
        """
        What is held of that generation; if nothing, an empty one of no consequence.
        """
        return self.generations.get((session_id, generation)) or Generation()

    def generation_to_write(self, session_id: str, generation: datetime) -> Generation:
        """
        What is held of that generation, to be added to.
        """
        return self.generations.setdefault((session_id, generation), Generation())

    def is_past(self, session_id: str, generation: datetime) -> bool:
        """
        Whether that generation is over, or a later one began.
        """
        warm_session = self.sessions.get(session_id)
        if warm_session is not None and warm_session.session.created_at > generation:
            return True
        return session_id in self.over and generation <= self.over[session_id]

    def _insert(self, record: Record, through: int) -> None:
        """
        Insert what is not there; entries up to *through* are in the cold tier.
        """
        generation = self.generation_to_write(record.session, record.created_at)
        audits = {e.seq: e for e in own_events(record) if e.kind == APPENDED}
        for packed in record.entries:
            entry = msgspec.msgpack.decode(packed, type=TimelineEntry)
            if entry.seq > through and entry.seq not in generation.entries:
                generation.entries[entry.seq] = bytes(packed)
                if event := audits.get(entry.seq):
                    generation.audits[entry.seq] = (event.command_id, event.principal)
        _apply(generation, record)
        if record.state is not None and is_due(record):
            generation.snapshots.setdefault(record.version, plain(record.state))
        for new in record.checkpoints:
            _keep(generation, new)

    def _forward(self, record: Record, warm_session: WarmSession | None) -> None:
        """
        Bring the session's document forward to the record, never back.
        """
        version = warm_session.session.version if warm_session is not None else 0
        session = warm_session.session if warm_session is not None else None
        context = warm_session.full_context if warm_session is not None else {}
        if record.state is not None and record.version > version:
            session = plain(record.state)
            context = with_context(context, context_patches([record], version))
            self.words[record.session] = frozenset(words_of(session))
        if session is None:
            return
        known = (warm_session or WarmSession(session=session)).session
        session = msgspec.structs.replace(
            session,
            last_seq=max(known.last_seq, record.last_seq),
            last_active=max(known.last_active, record.last_active),
            notices=max(known.notices, record.notices),
        )
        self.sessions[record.session] = msgspec.structs.replace(
            warm_session or WarmSession(session=session),
            session=session,
            full_context=context,
        )

    def _archive(self, record: Record, archived: Archived) -> None:
        """
        Make the session a stub, if it still is as it was archived.
        """
        warm_session = self.sessions.get(record.session)
        if warm_session is None or warm_session.archival_status != "ACTIVE":
            return
        session = warm_session.session
        seen = (session.version, session.last_seq, session.notices, warm_session.moves)
        offered = (record.version, record.last_seq, record.notices, archived.moves)
        if seen != offered:
            return
        self.sessions[record.session] = WarmSession(
            session=stub_of(session),
            archival_status="S3",
            pointer=archived.pointer,
            through=archived.through,
            bytes=archived.bytes,
            moves=warm_session.moves + 1,
            unpurged=True,
        )


def _unfit(record: Record, warm_session: WarmSession | None) -> str:
    """
    Why *record* cannot follow what is held of its generation; empty: it can.
    """
    if warm_session is None:
        return without_session(record)
    if warm_session.archival_status != "S3":
        return ""
    session = warm_session.session

    return after_archive(record, session.version, session.last_seq, session.notices)


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


def _apply(generation: Generation, record: Record) -> None:
    """
    Keep the record's steps and notices, unless they are there.
    """
    for event in own_events(record):
        if event.patch is not None:
            at = event.at or record.last_active
            step = msgspec.structs.replace(event, at=at)
            generation.steps.setdefault(event.version, step)
        elif is_notice(event):
            generation.notices.setdefault(event.notices, event)


def _keep(generation: Generation, new: NewCheckpoint) -> None:
    """
    Add a checkpoint, unless it is there.
    """
    if any(checkpoint.id == new.id for checkpoint, _, _ in generation.checkpoints):
        return
    parent, _, links = (
        generation.checkpoints[-1] if generation.checkpoints else (None, {}, 0)
    )
    state: State = {}
    for _, kept, _ in generation.checkpoints[len(generation.checkpoints) - 1 - links :]:
        state = merge(state, kept)
    checkpoint, kept = linked(new, parent, links, state)
    behind = links + 1 if checkpoint.kind == "incremental" else 0
    generation.checkpoints.append((checkpoint, kept, behind))
