"""
Handlers of `checkpoint.*`: create, list and restore checkpoints.
"""

import hashlib
from datetime import datetime
from typing import Any

from everbus.bus.messages import (
    Checkpoint,
    Session,
    check_command_id,
    ordinal_of,
    pack,
)
from everbus.handlers import commands as body
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import CheckpointsOf, CheckpointState
from everbus.handlers.history import difference, digest, state_of
from everbus.handlers.outcomes import NewCheckpoint, Outcome
from everbus.handlers.patches import changed, check_fields, check_label, not_before
from everbus.handlers.sessions import (
    changed_outcome,
    check_range,
    event_of,
    require_session,
    require_version,
    unchanged_outcome,
    with_notice,
)

MAX_PAGE = 1000
# ACL and participants are not restored: an old ACL would admit principals that the
# owner has removed since.
RESTORED = frozenset({"context_summary", "fields", "tags", "work_in_progress"})


def create_checkpoint(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Store the current state under a name; version and state stay, subscribers see it.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: the name is longer than 64 characters.
    """
    current = require_version(session, command)
    request: body.CreateCheckpoint = command.body
    state = state_of(current)
    new = NewCheckpoint(
        id=_checkpoint_id(current, command),
        name=check_label(request.name, "name") if request.name else "",
        version=current.version,
        last_seq=current.last_seq,
        kind=request.kind,
        at=not_before(current, now),
        author=command.mad,
        state=state,
        sha256=digest(state),
    )
    after = with_notice(current, now)

    return Outcome(
        session=after,
        reply=_checkpoint(new),
        events=(event_of("checkpoint.created", command, after),),
        checkpoint=new,
    )


def list_checkpoints(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Reply with a page of checkpoints, newest first.
    """
    current = require_session(session, command)
    request: body.ListCheckpoints = command.body
    limit = check_range("limit", request.limit, 1, MAX_PAGE)
    if request.before is not None:
        check_command_id(request.before)
    if command.fetched is not None:
        return Outcome(session=current, reply=command.fetched)

    return Outcome(
        session=current, fetch=CheckpointsOf(before=request.before, limit=limit)
    )


def restore_checkpoint(
    session: Session | None,
    command: Command,
    now: datetime,
    fields_type: type[Any] | None = None,
) -> Outcome:
    """
    Restore the RESTORED fields from a checkpoint, as a new version if they differ.

    Raises:
        VersionConflict: the session has another version than expected.
        Invalid: the old fields do not convert to *fields_type*.
    """
    current = require_version(session, command)
    request: body.RestoreCheckpoint = command.body
    check_command_id(request.checkpoint_id)
    if command.fetched is None:
        fetch = CheckpointState(checkpoint_id=request.checkpoint_id)
        return Outcome(session=current, fetch=fetch)
    state = {name: command.fetched[name] for name in RESTORED & command.fetched.keys()}
    if "fields" in state:
        check_fields(state["fields"], fields_type)
    before = state_of(current)
    patch = difference(before, before | state)
    if not patch:
        return unchanged_outcome(current)
    if "tags" in state:
        state["tags"] = tuple(state["tags"])
    after = changed(current, now, **state)

    return changed_outcome(current, after, command, "checkpoint.restored", patch)


def _checkpoint_id(current: Session, command: Command) -> str:
    """
    The id of the checkpoint that *command* makes: the command's number; for a freely
    chosen id, a digest of it and its MAD behind the session's notices.

    Two MADs may choose the same id, and one MAD may use it again when the ledger has
    forgotten it: each is a checkpoint of its own.
    """
    if ordinal_of(command.id) is not None:
        return command.id
    named = pack((command.mad, command.principal, command.id))
    digest_ = hashlib.sha256(named).hexdigest()[:32]

    return f"c{current.notices + 1}-{digest_}"


def _checkpoint(new: NewCheckpoint) -> Checkpoint:
    return Checkpoint(
        id=new.id,
        name=new.name,
        version=new.version,
        last_seq=new.last_seq,
        kind=new.kind,
        at=new.at,
        author=new.author,
        sha256=new.sha256,
    )
