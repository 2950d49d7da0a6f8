"""
Handlers of `participant.*`: add, remove and lose participants.
"""

from datetime import datetime
from typing import Any

from everbus.bus.errors import Forbidden, Invalid
from everbus.bus.messages import Session, check_json, check_mad
from everbus.handlers import commands as body
from everbus.handlers.access_list import HOST, PARTICIPANT, admits
from everbus.handlers.commands import Command
from everbus.handlers.outcomes import Outcome
from everbus.handlers.patches import (
    MAX_ACL,
    changed,
    changed_by_loss,
    merge,
    not_before,
)
from everbus.handlers.sessions import (
    changed_outcome,
    require_version,
    unchanged_outcome,
)


def add_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Make a MAD a participant; idempotent. If the ACL does not admit it, it gets an entry
    there, which removing it takes back.

    Raises:
        Forbidden: that needs the right to share the session.
        Invalid: the name is no MAD's, or the ACL is full.
    """
    current = require_version(session, command)
    request: body.AddParticipant = command.body
    mad = check_mad(request.mad)
    part = current.participants.get(mad, {})
    admitted = mad == current.owner_id or admits(current.acl, mad, is_mad=True)
    is_host = command.is_mad and f"{HOST}{command.principal}" in current.acl
    shares = not admitted and (command.may_share or is_host)
    if part and part["role"] == request.role and not shares:
        return unchanged_outcome(current)
    # Who joins by itself works with its principal's rights, and gets none here.
    if not admitted and not shares and mad != command.mad:
        raise _may_not_share(mad)
    check_json(request.role, "role")
    joined = {"joined_at": not_before(current, now).isoformat(), "role": request.role}
    after = changed(
        current,
        now,
        participants={**current.participants, mad: joined},
        acl=_with(current.acl, f"{PARTICIPANT}{mad}") if shares else current.acl,
    )
    # Nulls for the old fields, since the new part replaces all of them.
    patch = {
        "participants": {mad: {**dict.fromkeys(part), **joined}},
        "acl": list(after.acl),
    }
    return changed_outcome(current, after, command, "participant.added", patch)


def remove_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Remove a MAD from the participants, and the ACL's entry that adding it made;
    idempotent. A MAD that leaves by itself may come back: its entry stays.
    """
    current = require_version(session, command)
    request: body.RemoveParticipant = command.body
    mad, patch = request.mad, dict[str, Any]()
    rest = {one: part for one, part in current.participants.items() if one != mad}
    if len(rest) < len(current.participants):
        patch["participants"] = {mad: None}
    leaves = command.is_mad and command.principal == mad
    acl = tuple(one for one in current.acl if leaves or one != f"{PARTICIPANT}{mad}")
    if len(acl) < len(current.acl):
        patch["acl"] = list(acl)
    if not patch:
        return unchanged_outcome(current)
    after = changed(current, now, participants=rest, acl=acl)

    return changed_outcome(current, after, command, "participant.removed", patch)


def lost_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Remove a MAD with its last instance, and orphan its work.

    An instance owns an item of `work_in_progress` if the item's `owner` is the MAD's
    name or `<mad>/<instance>`. An item that loses its owner keeps the name in
    `orphaned`. Nothing changes if the instance is not in the session, or has joined it
    again since: so the command is idempotent.
    """
    lost: body.LostParticipant = command.body
    ours = [one for one in command.attached if one.mad == lost.mad]
    others = [one for one in ours if not is_over(one, lost)]
    if session is None or len(others) == len(ours):
        return Outcome(session=session, reply=None)
    owners = {f"{lost.mad}/{lost.instance}"} | (set() if others else {lost.mad})
    orphans = _owned(session.work_in_progress, owners)
    leaves = not others and lost.mad in session.participants
    if not leaves and not orphans:
        return Outcome(session=session, reply=None)
    rest = dict(session.participants)
    patch: dict[str, Any] = {}
    if leaves:
        del rest[lost.mad]
        patch["participants"] = {lost.mad: None}
    if orphans:
        patch["work_in_progress"] = {
            name: {"owner": None, "orphaned": item["owner"]}
            for name, item in orphans.items()
        }
    work = merge(session.work_in_progress, patch.get("work_in_progress", {}))
    after = changed_by_loss(session, now, participants=rest, work_in_progress=work)

    return changed_outcome(session, after, command, "participant.lost", patch)


def is_over(one: body.Attachment, lost: body.LostParticipant) -> bool:
    """
    Whether the loss ends the attachment.
    """
    same = one.mad == lost.mad and one.instance == lost.instance

    return same and one.epoch <= lost.epoch


def _owned(work: dict[str, Any], owners: set[str]) -> dict[str, dict[str, Any]]:
    return {
        name: item
        for name, item in work.items()
        if isinstance(item, dict) and str(item.get("owner")) in owners
    }


def _may_not_share(mad: str) -> Forbidden:
    return Forbidden(
        f"{mad} is not in the acl: only the owner, a host or an operator may add it; "
        "ask them, or have them put it there"
    )


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    if name in names:
        return names
    if len(names) >= MAX_ACL:
        raise Invalid(f"acl has {len(names)} names; at most {MAX_ACL}", field="acl")
    return (*names, name)
