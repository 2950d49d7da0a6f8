"""
The effects of records, the same for every warm tier.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from everbus.bus.events import DELETED, TIER_MOVES
from everbus.bus.messages import Checkpoint, Session
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.tiers import SNAPSHOT_EVERY
from everbus.handlers.history import difference, digest
from everbus.handlers.outcomes import Event, NewCheckpoint
from everbus.handlers.patches import merge

APPENDED = "timeline.appended"
CREATED = "session.created"

# Incremental checkpoints in a row; the next one is kept as a full one.
CHAIN = 20
# The fields that a stub lacks; it keeps the ones for listing.
COLD_FIELDS = ("context_summary", "work_in_progress", "fields")


def own_events(record: Record) -> tuple[Event, ...]:
    """
    The events of the record's own generation: one commit may delete a session and
    create another one under its id.
    """
    begun = [n for n, event in enumerate(record.events) if event.kind == CREATED]

    return record.events[begun[-1] :] if begun else record.events


def ends_another(record: Record) -> bool:
    """
    Whether the commit deleted a session before it made this one under the same id.
    """
    kinds = [event.kind for event in record.events]

    return DELETED in kinds and CREATED in kinds[kinds.index(DELETED) :]


def is_notice(event: Event) -> bool:
    """
    Whether *event* moved the session's notices, and nothing else. Checkpoints that
    are older than notices have moved nothing.
    """
    if event.patch is not None or event.at is None or event.notices == 0:
        return False
    return event.kind not in TIER_MOVES and event.kind != DELETED


def in_order(
    steps: Iterable[Event], notices: Iterable[Event], before: int
) -> list[Event]:
    """
    Steps of the version and *notices*, in their order of commit.

    Args:
        before: how many notices there were before all of them. A step that tells of
            fewer is older than notices, or was made by a manager that is.
    """
    # A notice stands behind the step that led to its version.
    events = sorted(
        (*steps, *notices), key=lambda e: (e.version, e.patch is None, e.notices)
    )
    for n, event in enumerate(events):
        if event.notices < before:
            events[n] = msgspec.structs.replace(event, notices=before)
        before = events[n].notices

    return events


def is_kept(event: Event) -> bool:
    """
    Whether *event* is among the events that are kept by themselves. An append is
    not: its timeline entry tells the same.
    """
    return event.patch is not None or event.at is not None


def is_due(record: Record) -> bool:
    """
    Whether the record's state is to be kept as a snapshot: of every SNAPSHOT_EVERY
    versions, the state that the first commit at or behind them left.
    """
    if record.state is None:
        return False
    steps = [e.version for e in own_events(record) if e.patch is not None]
    before = min(steps, default=record.version) - 1

    return before // SNAPSHOT_EVERY != record.version // SNAPSHOT_EVERY


def context_patches(records: Iterable[Record], after: int) -> list[Any]:
    """
    The patches of the full context behind version *after*, in order.
    """
    return [
        event.patch["full_context"]
        for record in records
        for event in own_events(record)
        if event.version > after and event.patch and "full_context" in event.patch
    ]


def with_context(context: dict[str, Any], patches: Iterable[Any]) -> dict[str, Any]:
    """
    The full context after *patches*; null clears it.
    """
    for patch in patches:
        merged = merge(context, patch)
        context = merged if isinstance(merged, dict) else {}
    return context


def stub_of(session: Session) -> Session:
    """
    The stub of an archived session in the warm tier.
    """
    cold: dict[str, Any] = {name: {} for name in COLD_FIELDS}

    return msgspec.structs.replace(
        session, state="archived", archival_status="S3", **cold
    )


def after_archive(record: Record, version: int, last_seq: int, notices: int) -> str:
    """
    The reason why a stub with these counts refuses *record*; empty: the record is a
    repeat.

    No change may follow an archived state before the session has returned: the stub
    lacks the state to change.
    """
    stored = (version, last_seq, notices)
    offered = (record.version, record.last_seq, record.notices)
    if all(new <= old for new, old in zip(offered, stored, strict=True)):
        return ""
    return (
        f"session {record.session} is in the cold tier at version, seq, notices "
        f"{stored}; {offered} cannot follow before it has returned"
    )


def without_session(record: Record) -> str:
    """
    The reason to refuse *record* of an unknown session; empty: the record brings the
    session.

    No reader would find the data of a missing session, and its hot copy would expire as
    if MongoDB held all of it.
    """
    if record.state is not None:
        return ""
    return (
        f"session {record.session} is not held, since its creation was refused or is "
        "lost; what it is does not come with this record"
    )


def linked(
    new: NewCheckpoint, parent: Checkpoint | None, links: int, state: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    """
    The checkpoint as it is kept, and its state (full) or patch (incremental).

    Args:
        parent: the newest one before it, which *links* others lead to from a full
            one; *state* is its state.
    """
    patch = None
    if new.kind == "incremental" and parent is not None and links < CHAIN:
        patch = difference(state, new.state)
        # A state that no patch leads to (it has nulls) is kept whole.
        if digest(merge(state, patch)) != new.sha256:
            patch = None
    kept = Checkpoint(
        id=new.id,
        name=new.name,
        version=new.version,
        last_seq=new.last_seq,
        kind="full" if patch is None else "incremental",
        at=new.at,
        author=new.author,
        sha256=new.sha256,
        parent=parent.id if patch is not None and parent is not None else "",
    )
    return kept, new.state if patch is None else patch
