"""
The handler of `session.turn`: entries and a patch of one session, all or nothing.
"""

from datetime import datetime
from typing import Any

import msgspec

from everbus.bus.errors import Invalid, TooLarge
from everbus.bus.messages import CommittedTurn, Session, check_turn
from everbus.handlers import commands as body
from everbus.handlers.commands import Command
from everbus.handlers.fetch_requests import FullContext
from everbus.handlers.outcomes import Event, Outcome
from everbus.handlers.patches import appended, in_state
from everbus.handlers.sessions import (
    changed_by_patch,
    effective_patch,
    event_of,
    require_version,
)
from everbus.handlers.timeline import checked_entry, require_last_seq

MAX_ENTRIES = 256


def take_turn(
    session: Session | None,
    command: Command,
    now: datetime,
    *,
    fields_type: type[Any] | None = None,
    max_entries: int = MAX_ENTRIES,
) -> Outcome:
    """
    Append all entries and merge the patch; the version rises by one, also without a
    patch: so it numbers the turns, and two of them never expect the same version.

    The event of the turn comes behind those of its entries, as its end.

    Raises:
        VersionConflict: the session has another version or last seq than expected.
        Invalid: there is nothing to append or patch; or an entry, the patch or the id
            of the turn is none.
        Forbidden: the principal may not change the ACL.
        TooLarge: too many entries; or as `update_session`.
    """
    request: body.TakeTurn = command.body
    current = require_last_seq(
        require_version(session, command), request.expected_last_seq
    )
    turn = check_turn(request.turn) if request.turn else command.id
    entries = _checked_entries(request, max_entries)
    after = changed_by_patch(current, request.patch, command, now, fields_type)
    if after is None:
        return Outcome(session=current, fetch=FullContext(version=current.version))
    patch: dict[str, Any] = {}  # JSON values
    if after is current:
        after = in_state(current, "active", now)
    else:
        patch = effective_patch(current, after, request.patch)
    if current.state != after.state:
        patch = {**patch, "state": after.state}
    after, packed = appended(after, command.mad, entries, now, turn)
    end = msgspec.structs.replace(
        event_of("session.turned", command, after, patch), turn=turn
    )
    seqs = tuple(range(current.last_seq + 1, after.last_seq + 1))

    return Outcome(
        session=after,
        reply=CommittedTurn(turn=turn, version=after.version, seqs=seqs),
        events=(*(_appended(current, command, seq) for seq in seqs), end),
        entries=packed,
    )


def _checked_entries(request: body.TakeTurn, most: int) -> list[bytes]:
    count = len(request.entries)
    if count > most:
        raise TooLarge(
            f"a turn of {count} entries; the limit is {most} "
            "(EVERBUS_TURN_MAX_ENTRIES). Take several turns",
            field="entries",
            size=count,
            limit=most,
        )
    if not count and not request.patch:
        raise Invalid("a turn without entries and patch; give it one", field="entries")
    return [
        checked_entry(raw, f"entries[{n}]") for n, raw in enumerate(request.entries)
    ]


def _appended(before: Session, command: Command, seq: int) -> Event:
    """
    Event of one entry: it moves the seq alone, the end of the turn the version.
    """
    return Event(
        kind="timeline.appended",
        command_id=command.id,
        mad=command.mad,
        principal=command.principal,
        version=before.version,
        seq=seq,
        notices=before.notices,
    )
