"""
What the kinds `participant.*` mean: who takes part in a session.
"""

from datetime import datetime
from typing import Any

from bus.errors import Invalid
from bus.messages import Session, check_json, check_mad
from handlers import commands as body
from handlers.commands import Command
from handlers.outcomes import Outcome
from handlers.patches import MAX_ACL
from handlers.session import changed, deprived, later, merge
from handlers.steps import expected, stepped, unchanged


def add_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Note a MAD as taking part and let it in; twice is the same as once.
    """
    there = expected(session, command)
    wanted: body.AddParticipant = command.body
    mad = check_mad(wanted.mad)
    part = there.participants.get(mad, {})
    if part and part["role"] == wanted.role:
        return unchanged(there)
    check_json(wanted.role, "role")
    joined = {"joined_at": later(there, now).isoformat(), "role": wanted.role}
    after = changed(
        there,
        now,
        participants={**there.participants, mad: joined},
        acl=_with(there.acl, mad),
    )
    # Nulls for what was known before, since the new part replaces all of it.
    patch = {
        "participants": {mad: {**dict.fromkeys(part), **joined}},
        "acl": list(after.acl),
    }
    return stepped(there, after, command, "participant.added", patch)


def remove_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    End a MAD's part; nothing changes if it had none.
    """
    there = expected(session, command)
    wanted: body.RemoveParticipant = command.body
    if wanted.mad not in there.participants:
        return unchanged(there)
    rest = {m: part for m, part in there.participants.items() if m != wanted.mad}
    after = changed(there, now, participants=rest)
    patch = {"participants": {wanted.mad: None}}

    return stepped(there, after, command, "participant.removed", patch)


def lost_participant(
    session: Session | None, command: Command, now: datetime
) -> Outcome:
    """
    Let a MAD leave with the last of its instances, and free the work it had.

    An item of `work_in_progress` is an instance's own if its `owner` is the MAD's
    name or `<mad>/<instance>`. What is left without one becomes `orphaned`, by the
    name that it had. Nothing changes if the instance is not in the session, or has
    joined it again since: so it may be told more than once.
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
    after = deprived(session, now, participants=rest, work_in_progress=work)

    return stepped(session, after, command, "participant.lost", patch)


def is_over(one: body.Attachment, lost: body.LostParticipant) -> bool:
    """
    Whether an attachment ends with the loss.
    """
    same = one.mad == lost.mad and one.instance == lost.instance

    return same and one.epoch <= lost.epoch


def _owned(work: dict[str, Any], owners: set[str]) -> dict[str, dict[str, Any]]:
    return {
        name: item
        for name, item in work.items()
        if isinstance(item, dict) and str(item.get("owner")) in owners
    }


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    if name in names:
        return names
    if len(names) >= MAX_ACL:
        raise Invalid(f"acl has {len(names)} names; at most {MAX_ACL}", field="acl")
    return (*names, name)
