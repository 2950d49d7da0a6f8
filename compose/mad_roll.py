"""
The roll of all MADs and their instances, with the sessions that each is in.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from redis.exceptions import ResponseError

from bus.wire import refusal
from compose.bus_access import BusAccess, when
from gateway.store.attached import attachment_in, of_instance
from gateway.store.leases import InstanceRecord

# Of the sessions of one instance in one partition, so many are told.
MOST_SESSIONS = 1000
# Questions in one write.
ASKED = 500

Standing = Literal["alive", "lost", "left", ""]


class MadRow(msgspec.Struct, frozen=True, kw_only=True):
    """
    One instance of a MAD; or a MAD without any, then only *mad* is set.

    Attributes:
        registered: whether the managers listen to this MAD.
        lease_left_s: until it counts as lost without another heartbeat; None if it
            has no lease.
        since: the first heartbeat of this epoch.
        ended: when it was declared lost, or left.
        noticed: what a loss was noticed by, `event` or `sweep`.
        sessions: ids of those it is in; MOST_SESSIONS a partition at most.
        more_sessions: whether there are more.
    """

    mad: str
    registered: bool
    instance: str = ""
    state: Standing = ""
    epoch: int = 0
    lease_left_s: float | None = None
    last_heartbeat: datetime | None = None
    since: datetime | None = None
    ended: datetime | None = None
    noticed: str = ""
    sessions: tuple[str, ...] = ()
    more_sessions: bool = False


async def roll(
    bus: BusAccess, registered: Sequence[str], records: Sequence[InstanceRecord]
) -> list[MadRow]:
    """
    All of them, by MAD and instance.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    seen = {record.mad for record in records}
    rows = [MadRow(mad=mad, registered=True) for mad in registered if mad not in seen]
    for first in range(0, len(records), ASKED):
        some = records[first : first + ASKED]
        found: list[set[str]] = [set() for _ in some]
        more = [False for _ in some]
        for partition in range(bus.partitions):
            replies = await bus.wire.exchange(
                [
                    of_instance(partition, one.mad, one.instance, "", MOST_SESSIONS)
                    for one in some
                ]
            )
            for place, reply in enumerate(replies):
                if isinstance(reply, ResponseError):
                    raise refusal(reply)
                found[place] |= {attachment_in(member).session for member in reply}
                more[place] |= len(reply) == MOST_SESSIONS
        rows += (
            _row(*told, registered=told[0].mad in registered)
            for told in zip(some, found, more, strict=True)
        )
    return sorted(rows, key=lambda row: (row.mad, row.instance))


def _row(
    record: InstanceRecord, sessions: set[str], more: bool, *, registered: bool
) -> MadRow:
    alive = record.state == "living"

    return MadRow(
        mad=record.mad,
        registered=registered,
        instance=record.instance,
        state="alive" if record.state == "living" else record.state,
        epoch=record.epoch,
        lease_left_s=record.left_ms / 1000 if alive else None,
        last_heartbeat=when(record.heard_ms),
        since=when(record.since_ms),
        ended=when(record.ended_ms) if record.ended_ms else None,
        noticed=record.noticed,
        sessions=tuple(sorted(sessions)),
        more_sessions=more,
    )
