"""
The plan of a write, from the records and MongoDB's present heads.

Pure: records and heads in, operations out. Each operation that changes a session's
document says what it expects to find, so that a plan made from heads that are no
longer true changes nothing, and is made anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from everbus.bus.messages import Session
from everbus.gateway.store.claims import Branch, dead_reason, other_generation
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.mongo.deletions import Deletion, Head, is_past
from everbus.gateway.store.mongo.documents import (
    entry_documents,
    new_document,
    snapshot_document,
    state_document,
    stubbed,
)
from everbus.gateway.store.mongo.events import event_document, notice_document
from everbus.gateway.store.mongo.operations import Operation, Replace, Update, counted
from everbus.gateway.store.record_effects import (
    after_archive,
    context_patches,
    ends_another,
    is_due,
    is_kept,
    is_notice,
    own_events,
    without_session,
)
from everbus.handlers.outcomes import Archived, NewCheckpoint


class Piece(NamedTuple):
    """
    One document or operation, and the place of the record that it comes from.
    """

    place: int
    what: Any


class Live(NamedTuple):
    """
    The records of one write for one session's present generation.

    Attributes:
        records: with their places, in order.
        head: what MongoDB holds of that generation; None: nothing.
        branch: the lineages that claimed the session.
    """

    session: str
    generation: datetime
    records: list[tuple[int, Record]]
    head: Head | None
    branch: Branch

    @property
    def version(self) -> int:
        """
        The version that MongoDB holds.
        """
        return self.head.version if self.head else 0

    @property
    def patches(self) -> list[Any]:
        """
        What is to be done to the full context.
        """
        return context_patches((record for _, record in self.records), self.version)


class WritePlan(msgspec.Struct, frozen=True):
    """
    The steps of a write, in this order.

    Attributes:
        generations: whose documents are to be brought forward, see `state_piece`.
        touched: sessions and generations that this write or an earlier attempt may
            have written to.
        diverged: the places of refused records that diverge, see `store.claims`.
    """

    deletions: list[Deletion] = msgspec.field(default_factory=list)
    entries: list[Piece] = msgspec.field(default_factory=list)
    events: list[Piece] = msgspec.field(default_factory=list)
    notices: list[Piece] = msgspec.field(default_factory=list)
    snapshots: list[Piece] = msgspec.field(default_factory=list)
    checkpoints: list[tuple[int, Record, NewCheckpoint]] = msgspec.field(
        default_factory=list
    )
    generations: list[Live] = msgspec.field(default_factory=list)
    stubs: list[Piece] = msgspec.field(default_factory=list)
    touched: list[tuple[str, datetime]] = msgspec.field(default_factory=list)
    refused: dict[int, str] = msgspec.field(default_factory=dict)
    diverged: set[int] = msgspec.field(default_factory=set)

    def diverge(self, place: int, reason: str) -> None:
        """
        Refuse the record at *place*, which diverges.
        """
        self.refused[place] = reason
        self.diverged.add(place)


def passes(records: Sequence[Record]) -> Iterable[list[Record]]:
    """
    *records* in parts: what follows a session's archiving is in a later part, since
    within one part a session's archiving comes last.
    """
    part: list[Record] = []
    archived: set[str] = set()
    for record in records:
        if record.session in archived:
            yield part
            part, archived = [], set()
        part.append(record)
        if record.archived is not None:
            archived.add(record.session)
    if part:
        yield part


def planned(records: Sequence[Record], heads: Mapping[str, Head]) -> WritePlan:
    """
    The plan for *records*, one part of `passes`.
    """
    plan = WritePlan()
    by_session: dict[str, list[tuple[int, Record]]] = {}
    for place, record in enumerate(records):
        by_session.setdefault(record.session, []).append((place, record))
    for session, found in by_session.items():
        _plan_session(plan, session, found, heads.get(session))

    return plan


def state_piece(live: Live, context: dict[str, Any] | None) -> Piece | None:
    """
    What brings the session's document forward to its records; None: nothing does.

    *context* is the full context afterwards, None if it stays.
    """
    forward = _forward(live)
    place, state = _newest_state(live)
    if live.head is None:
        if state is None:
            return None
        session = msgspec.structs.replace(state, **forward)
        older = {"_id": live.session, "created_at": {"$lt": live.generation}}
        older |= _unclaimed_since(live)
        branch = _branch_of_new(live)
        document = new_document(session, context or {}, branch)
        return Piece(place, Replace(older, document))
    seen = _unclaimed_since(live) | {
        "_id": live.session,
        "created_at": live.generation,
        "version": live.version,
        "archival_status": "ACTIVE",
    }
    if state is None:
        if not _is_ahead(forward, live.head):
            return None
        return Piece(live.records[-1][0], Update(seen, {"$max": forward}))
    fields = state_document(state)
    fields = {name: value for name, value in fields.items() if name not in forward}
    if context is not None:
        fields["full_context"] = context

    return Piece(place, Update(seen, {"$set": fields, "$max": forward}))


def _unclaimed_since(live: Live) -> dict[str, Any]:
    """
    The condition that nobody has claimed the session since the plan was made.
    """
    return {"lineage": counted(live.branch.lineage)}


def _branch_of_new(live: Live) -> Branch:
    """
    The branch of a new session: its creation counts as a claim, as it had nothing.
    """
    lineage = max(record.lineage for _, record in live.records)
    branch = live.branch
    if lineage <= branch.lineage:
        return branch
    return Branch(lineage, branch.lineage, branch.claims)


def _forward(live: Live) -> dict[str, Any]:
    """
    What of the document only grows, as the records tell it.
    """
    forward: dict[str, Any] = {
        "last_seq": max(record.last_seq for _, record in live.records),
        "last_active": max(record.last_active for _, record in live.records),
    }
    # Absent unless there are some, see `counted`.
    if notices := max(record.notices for _, record in live.records):
        forward["notices"] = notices

    return forward


def _is_ahead(forward: dict[str, Any], head: Head) -> bool:
    return bool(
        forward["last_seq"] > head.last_seq
        or forward.get("notices", 0) > head.notices
        or forward["last_active"] > (head.last_active or head.generation)
    )


def _newest_state(live: Live) -> tuple[int, Session | None]:
    found: tuple[int, Session | None] = (-1, None)
    version = live.version
    for place, record in live.records:
        if record.state is not None and record.version > version:
            found, version = (place, record.state), record.version
    return found


def _plan_session(
    plan: WritePlan, session: str, found: list[tuple[int, Record]], head: Head | None
) -> None:
    plan.touched.extend({(session, record.created_at) for _, record in found})
    found = _of_this_branch(plan, session, found, head)
    if not found:
        return
    records = [record for _, record in found]
    generation = max(record.created_at for record in records)
    over = [r.created_at for r in records if r.deleted or r.created_at < generation]
    if head is not None and head.generation < generation and not head.ended:
        over.append(head.generation)
    if over:
        plan.deletions.append(
            Deletion(
                session=session,
                generation=max(over),
                last_seq=max(record.last_seq for record in records),
                version=max(record.version for record in records),
                notices=max(record.notices for record in records),
            )
        )
    if generation in over or (head is not None and is_past(head, generation)):
        return
    same = head if head is not None and head.generation == generation else None
    kept = [
        (place, record) for place, record in found if record.created_at == generation
    ]
    branch = head.branch if head is not None else Branch()
    _plan_generation(plan, Live(session, generation, kept, same, branch))


def _of_this_branch(
    plan: WritePlan, session: str, found: list[tuple[int, Record]], head: Head | None
) -> list[tuple[int, Record]]:
    """
    The records without those of a dead branch, and without a creation over a session
    that none of them deletes.
    """
    if head is None:
        return found
    kept: list[tuple[int, Record]] = []
    is_held = not head.ended
    for place, record in found:
        if reason := dead_reason(record, head.branch):
            plan.diverge(place, reason)
            continue
        if is_held and record.created_at > head.generation:
            if not ends_another(record):
                at = (head.generation, record.created_at)
                plan.diverge(place, other_generation(session, *at))
                continue
            is_held = False
        elif record.deleted and record.created_at == head.generation:
            is_held = False
        kept.append((place, record))

    return kept


def _plan_generation(plan: WritePlan, live: Live) -> None:
    live = _without_refused(plan, live)
    if not live.records:
        return
    # What is archived is in the cold tier; it may have left MongoDB on purpose.
    after = live.head.through if live.head else 0
    for place, record in live.records:
        plan.entries.extend(Piece(place, d) for d in entry_documents(record, after))
        _plan_events(plan, place, record)
        if is_due(record) and record.state is not None:
            plan.snapshots.append(Piece(place, snapshot_document(record.state)))
        plan.checkpoints.extend((place, record, new) for new in record.checkpoints)
        if record.archived is not None:
            branch = live.branch if live.head else _branch_of_new(live)
            stub = _stub_operation(record, record.archived, branch.lineage)
            plan.stubs.append(Piece(place, stub))
    if live.head is None or not live.head.stub:
        plan.generations.append(live)


def _plan_events(plan: WritePlan, place: int, record: Record) -> None:
    for event in own_events(record):
        if is_notice(event):
            plan.notices.append(Piece(place, notice_document(record, event)))
        elif is_kept(event):
            plan.events.append(Piece(place, event_document(record, event)))


def _without_refused(plan: WritePlan, live: Live) -> Live:
    kept: list[tuple[int, Record]] = []
    for place, record in live.records:
        if reason := _refusal(record, live.head, begun=bool(kept)):
            plan.refused[place] = reason
        else:
            kept.append((place, record))
    return live._replace(records=kept)


def _refusal(record: Record, head: Head | None, *, begun: bool) -> str:
    """
    Why what MongoDB holds of the session refuses *record*; empty: it does not.

    *begun*: a record of the same write that comes before it is not refused.
    """
    if head is None:
        return "" if begun else without_session(record)
    if head.stub:
        return after_archive(record, head.version, head.last_seq, head.notices)
    return ""


def _stub_operation(record: Record, archived: Archived, lineage: int) -> Operation:
    seen = {
        "_id": record.session,
        "created_at": record.created_at,
        "lineage": counted(lineage),
        "version": record.version,
        "last_seq": record.last_seq,
        "notices": counted(record.notices),
        "moves": archived.moves,
        "archival_status": "ACTIVE",
    }
    return Update(seen, stubbed(archived))
