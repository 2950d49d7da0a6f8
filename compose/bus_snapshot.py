"""
What a bus does at one moment: rates, latencies, what waits, lanes and MADs.

Rates come from the reports of managers and archivers, each of which counts since its
start: two reports of one process give its rate between them.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from everbus.bus.keys import MADS
from everbus.compose.bus_access import BusAccess, bus_time
from everbus.compose.lane_pings import served_reply_ms
from everbus.gateway.health.readings import LaneReading, Readings, read_bus
from everbus.gateway.health.status import Status, field_of
from everbus.gateway.store.key_names import holder_of
from everbus.gateway.store.lease_records import InstanceRecord, instances

COUNTS = ("commands", "drained", "heartbeats", "dead_letters")


class MadActivity(msgspec.Struct, frozen=True, kw_only=True):
    """
    One MAD: its instances, and how long ago the last of them was heard.
    """

    mad: str
    alive: int = 0
    lost: int = 0
    heard_s: float | None = None


class BusSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """
    A bus at one moment.

    Attributes:
        rates: counts a second, of all processes that report.
        reply_ms: of the slowest lane, to a question that needs nothing; None without
            the right to ask.
        commit_p99_ms: the worst process's, over the last 5 minutes.
        backlog: outbox records that MongoDB does not hold.
    """

    at: datetime
    managers: tuple[str, ...]
    archiver: str
    rates: dict[str, float]
    reply_ms: float | None
    commit_p99_ms: float | None
    pending_s: float
    unread_s: float
    backlog: int
    dead: int
    lanes: tuple[LaneReading, ...]
    mads: tuple[MadActivity, ...]


class Rates:
    """
    Counts a second, from the reports of one look and of those before.
    """

    def __init__(self) -> None:
        self._last: dict[str, Status] = {}
        self._rates: dict[str, dict[str, float]] = {}

    def of(self, statuses: Iterable[Status]) -> dict[str, float]:
        """
        The sum over the processes; a new one counts with its last minutes.
        """
        current = {field_of(one.role, one.name): one for one in statuses}
        self._rates = {
            field: self._rate(field, status) for field, status in current.items()
        }
        self._last = current

        return {
            name: round(sum(rates[name] for rates in self._rates.values()), 2)
            for name in COUNTS
        }

    def _rate(self, field: str, status: Status) -> dict[str, float]:
        before = self._last.get(field)
        if before is not None and before.at_ms == status.at_ms:
            return self._rates[field]
        counts, elapsed_s = status.recent, status.recent.get("seconds", 0.0)
        if before is not None and before.started_ms == status.started_ms:
            elapsed_s = (status.at_ms - before.at_ms) / 1000
            counts = {
                name: count - before.totals.get(name, 0.0)
                for name, count in status.totals.items()
            }
        if elapsed_s <= 0:
            return dict.fromkeys(COUNTS, 0.0)
        return {name: max(0.0, counts.get(name, 0.0)) / elapsed_s for name in COUNTS}


async def read_snapshot(access: BusAccess, rates: Rates) -> BusSnapshot:
    """
    The bus now.

    Raises:
        WireFailed: the bus is away.
        Forbidden, Unauthenticated: it does not let us in.
    """
    readings = await read_bus(access.wire)
    registered = [mad.decode() for mad in await access.wire.call("HKEYS", MADS)]
    records = await instances(access.wire, "")
    lanes = readings.lanes
    archiver, _ = holder_of(readings.archiver)

    return BusSnapshot(
        at=bus_time(readings.now_ms),
        managers=readings.replicas,
        archiver=archiver,
        rates=rates.of(readings.fresh()),
        reply_ms=await served_reply_ms(access.wire, lanes),
        commit_p99_ms=_commit_p99_ms(readings),
        pending_s=max((lane.pending_s for lane in lanes), default=0.0),
        unread_s=max((lane.unread_s for lane in lanes), default=0.0),
        backlog=sum(lane.backlog for lane in lanes),
        dead=sum(lane.dead for lane in lanes),
        lanes=lanes,
        mads=_mads(registered, records, readings.now_ms),
    )


def _commit_p99_ms(readings: Readings) -> float | None:
    measured = (one.recent.get("commit_p99_ms") for one in readings.fresh())

    return max((one for one in measured if one is not None), default=None)


def _mads(
    registered: Sequence[str], records: Sequence[InstanceRecord], now_ms: int
) -> tuple[MadActivity, ...]:
    of_mad: dict[str, list[InstanceRecord]] = {mad: [] for mad in registered}
    for record in records:
        of_mad.setdefault(record.mad, []).append(record)

    return tuple(
        MadActivity(
            mad=mad,
            alive=sum(one.state == "living" for one in some),
            lost=sum(one.state == "lost" for one in some),
            heard_s=min(
                (max(0.0, (now_ms - one.heard_ms) / 1000) for one in some),
                default=None,
            ),
        )
        for mad, some in sorted(of_mad.items())
    )
