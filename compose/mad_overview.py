"""
The overview of all MADs and their instances, with the sessions of each.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from redis.exceptions import ResponseError

from everbus.bus.server_errors import refusal
from everbus.compose.bus_access import BusAccess, bus_time
from everbus.gateway.store.attachments import attachment_in, of_instance
from everbus.gateway.store.lease_records import InstanceRecord

# Sessions that a row names of one instance in one partition, at most.
MAX_SESSIONS = 1000
REQUESTS_PER_WRITE = 500

InstanceState = Literal["alive", "lost", "left", ""]


class MadRow(msgspec.Struct, frozen=True, kw_only=True):
    """
    One instance of a MAD. For a MAD without an instance only *mad* is set.

    Attributes:
        registered: whether the managers read commands of this MAD.
        lease_left_s: time until the instance counts as lost without another
            heartbeat; None without a lease.
        since: the first heartbeat of this epoch.
        ended: the time of its loss or its leave.
        noticed: `event`, `sweep` or `disconnect`, by which a manager noticed the loss.
        sessions: ids of its sessions; MAX_SESSIONS per partition at most.
        more_sessions: whether there are more.
    """

    mad: str
    registered: bool
    instance: str = ""
    state: InstanceState = ""
    epoch: int = 0
    lease_left_s: float | None = None
    last_heartbeat: datetime | None = None
    since: datetime | None = None
    ended: datetime | None = None
    noticed: str = ""
    sessions: tuple[str, ...] = ()
    more_sessions: bool = False


async def mad_rows(
    bus: BusAccess, registered: Sequence[str], records: Sequence[InstanceRecord]
) -> list[MadRow]:
    """
    One row per instance, by MAD and instance.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    seen = {record.mad for record in records}
    rows = [MadRow(mad=mad, registered=True) for mad in registered if mad not in seen]
    for first in range(0, len(records), REQUESTS_PER_WRITE):
        some = records[first : first + REQUESTS_PER_WRITE]
        found: list[set[str]] = [set() for _ in some]
        more = [False for _ in some]
        for partition in range(bus.partitions):
            replies = await bus.wire.exchange(
                [
                    of_instance(partition, one.mad, one.instance, "", MAX_SESSIONS)
                    for one in some
                ]
            )
            for place, reply in enumerate(replies):
                if isinstance(reply, ResponseError):
                    raise refusal(reply)
                found[place] |= {attachment_in(member).session for member in reply}
                more[place] |= len(reply) == MAX_SESSIONS
        rows += (
            _row(*one, registered=one[0].mad in registered)
            for one in zip(some, found, more, strict=True)
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
        last_heartbeat=bus_time(record.heard_ms),
        since=bus_time(record.since_ms),
        ended=bus_time(record.ended_ms) if record.ended_ms else None,
        noticed=record.noticed,
        sessions=tuple(sorted(sessions)),
        more_sessions=more,
    )
