"""
Indicators of MADs: their instances, their leases and their records.
"""

from everbus.gateway.health.lane_indicators import failures, recent
from everbus.gateway.health.readings import Readings
from everbus.gateway.health.verdicts import Indicator, Measurement


def _publishers(readings: Readings) -> Measurement:
    return Measurement(max((lane.publishers for lane in readings.lanes), default=0))


def _overdue(readings: Readings) -> Measurement:
    known = f"{readings.overdue_s:,.1f} s, {readings.leases} leases"

    return Measurement(readings.overdue_s, known)


MADS: tuple[Indicator, ...] = (
    Indicator(
        "lost_mads",
        "",
        "MAD instances declared lost, the last 5 minutes",
        "see everbus mads list, and why they ended or could not publish",
        recent("lost_mads"),
        warn=1,
        fail=50,
    ),
    Indicator(
        "lease_overdue",
        "s",
        "how long a MAD's lease has been over that nobody declared lost",
        "the lane of heartbeats is not served: see lanes_without_owner",
        _overdue,
        warn=3,
        fail=15,
    ),
    Indicator(
        "undecodable",
        "",
        "records of producers that do not decode: these instances cannot write",
        "everbus verify names them; restart those MADs, as each instance has a record "
        "of its own; let them flush, then HDEL the records, never before",
        failures("undecodable_records"),
        fail=1,
    ),
    Indicator(
        "publishers",
        "",
        "publisher instances that the fullest lane remembers, 24 hours each",
        "MADs that reconnect all the time: keep one `connect()` per process",
        _publishers,
        warn=10_000,
    ),
)
