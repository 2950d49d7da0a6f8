"""
What the kinds `checkpoint.*` mean: name a state, find it again, bring it back.
"""

from datetime import datetime
from typing import Any

from bus.messages import Checkpoint, Session, check_command_id
from handlers import commands as body
from handlers.commands import Command
from handlers.history import difference, digest, state_of
from handlers.outcomes import NewCheckpoint, Outcome
from handlers.patches import check_fields, check_label
from handlers.session import changed, later
from handlers.steps import (
    check_range,
    event_of,
    existing,
    expected,
    noticed,
    stepped,
)
from handlers.wanted import CheckpointsOf, CheckpointState

MAX_PAGE = 1000
# Who may see the session and who is there now is not undone by history: a restored
# ACL would let in whom the owner has put out since.
RESTORED = frozenset({"context_summary", "fields", "tags", "work_in_progress"})


def create_checkpoint(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Keep the present state under a name; moves no version and wakes nobody, but is
    noticed by those who watch.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: the name is longer than 64 characters.
    """
    there = expected(session, command)
    wanted: body.CreateCheckpoint = command.body
    state = state_of(there)
    made = NewCheckpoint(
        id=command.id,
        name=check_label(wanted.name, "name") if wanted.name else "",
        version=there.version,
        last_seq=there.last_seq,
        kind=wanted.kind,
        at=later(there, now),
        author=command.mad,
        state=state,
        sha256=digest(state),
    )
    after = noticed(there, now)

    return Outcome(
        session=after,
        reply=_told(made),
        events=(event_of("checkpoint.created", command, after),),
        checkpoint=made,
    )


def list_checkpoints(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Reply with a page of checkpoints, newest first.
    """
    there = existing(session, command)
    wanted: body.ListCheckpoints = command.body
    limit = check_range("limit", wanted.limit, 1, MAX_PAGE)
    if wanted.before is not None:
        check_command_id(wanted.before)
    if command.given is not None:
        return Outcome(session=there, reply=command.given)

    return Outcome(
        session=there, wants=CheckpointsOf(before=wanted.before, limit=limit)
    )


def restore_checkpoint(
    session: Session | None,
    command: Command,
    now: datetime,
    fields_type: type[Any] | None = None,
) -> Outcome:
    """
    Bring what RESTORED names back to a checkpoint's state, as a new version.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: the fields of then are not what *fields_type* wants now.
    """
    there = expected(session, command)
    wanted: body.RestoreCheckpoint = command.body
    check_command_id(wanted.checkpoint_id)
    if command.given is None:
        wants = CheckpointState(checkpoint_id=wanted.checkpoint_id)
        return Outcome(session=there, wants=wants)
    state = {name: command.given[name] for name in RESTORED & command.given.keys()}
    if "fields" in state:
        check_fields(state["fields"], fields_type)
    before = state_of(there)
    patch = difference(before, before | state)
    if "tags" in state:
        state["tags"] = tuple(state["tags"])
    after = changed(there, now, **state)

    return stepped(there, after, command, "checkpoint.restored", patch)


def _told(made: NewCheckpoint) -> Checkpoint:
    return Checkpoint(
        id=made.id,
        name=made.name,
        version=made.version,
        last_seq=made.last_seq,
        kind=made.kind,
        at=made.at,
        author=made.author,
        sha256=made.sha256,
    )
