"""
What the kinds `participant.*` mean: who takes part in a session.
"""

from datetime import datetime

from bus.errors import Invalid
from bus.messages import Session, check_json, check_mad
from handlers import commands as body
from handlers.commands import Command, Outcome
from handlers.patches import MAX_ACL
from handlers.session import changed, later
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


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    if name in names:
        return names
    if len(names) >= MAX_ACL:
        raise Invalid(f"acl has {len(names)} names; at most {MAX_ACL}", field="acl")
    return (*names, name)
