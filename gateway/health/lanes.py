"""
Indicators of lanes, of the processes that serve them, and of MADs.
"""

from collections.abc import Callable

from gateway.health.readings import LaneReading, Readings
from gateway.health.verdicts import Indicator, Measured

# Letters that a lane keeps before the oldest go (see batch.py).
DEAD_CAP = 10_000
LANES_REMEDY = (
    "start a manager (everbus manager); if there are enough, look into their logs "
    "for lane.disturbed and lane.deaf"
)


def _worst(
    readings: Readings, of: Callable[[LaneReading], float], unit: str
) -> Measured:
    """
    The largest value among the lanes, and of which lane it is.
    """
    worst = max(readings.lanes, key=of, default=None)
    if worst is None or of(worst) == 0:
        return Measured(0.0)
    return Measured(of(worst), f"{of(worst):,.1f} {unit}, lane {worst.name}")


def _replicas(readings: Readings) -> Measured:
    names = ", ".join(readings.replicas[:5])
    count = len(readings.replicas)

    return Measured(count, f"{count}: {names}" if names else "none")


def _unowned(readings: Readings) -> Measured:
    lanes = [lane.name for lane in readings.lanes if not lane.owner]
    told = f"{len(lanes)}: {', '.join(lanes[:8])}" if lanes else "0"

    return Measured(len(lanes), told)


def ages_known(
    of: Callable[[LaneReading], float],
) -> Callable[[Readings], Measured]:
    """
    A measure of the oldest thing that waits, of all lanes.
    """

    def measure(readings: Readings) -> Measured:
        if readings.streams and not readings.looked_at:
            return Measured(None, "not known: scripts are forbidden")
        return _worst(readings, of, "s")

    return measure


def _silent(readings: Readings) -> Measured:
    stale = [one for one in readings.statuses if one.stale(readings.now_ms)]
    # What has been silent for long was noticed long ago, and is only remembered.
    lately = [o for o in stale if readings.now_ms - o.at_ms < 600_000]
    told = ", ".join(f"{one.role} {one.name}" for one in lately[:4])

    return Measured(len(lately), f"{len(lately)}: {told}" if told else "0")


def _recent(name: str) -> Callable[[Readings], Measured]:
    def measure(readings: Readings) -> Measured:
        return Measured(readings.recent(name))

    return measure


def _takeovers(readings: Readings) -> Measured:
    lanes = max(1, len(readings.lanes))
    taken = readings.recent("takeovers")

    return Measured(taken / lanes)


def _commit_p99(readings: Readings) -> Measured:
    slow = [one.recent.get("commit_p99_ms") for one in readings.fresh()]
    known = [ms for ms in slow if ms is not None]

    return Measured(max(known)) if known else Measured(None, "no commits")


def _ping(readings: Readings) -> Measured:
    ping_ms = readings.ping_ms

    return Measured(None, "not asked") if ping_ms is None else Measured(round(ping_ms))


def _parked(readings: Readings) -> Measured:
    return Measured(sum(one.gauges.get("parked", 0) for one in readings.fresh()))


def _publishers(readings: Readings) -> Measured:
    return Measured(max((lane.publishers for lane in readings.lanes), default=0))


def _overdue(readings: Readings) -> Measured:
    known = f"{readings.overdue_s:,.1f} s, {readings.leases} leases"

    return Measured(readings.overdue_s, known)


def _dead(readings: Readings) -> Measured:
    count = sum(lane.dead for lane in readings.lanes)
    newest = max((lane.newest_dead_ms for lane in readings.lanes), default=0)
    if not count:
        return Measured(0)
    age_s = max(0, readings.now_ms - newest) / 1000

    return Measured(count, f"{count:,}, the newest {age_s:,.0f} s ago")


def _dead_room(readings: Readings) -> Measured:
    fullest = max((lane.dead for lane in readings.lanes), default=0)

    return Measured(100 * fullest / DEAD_CAP)


def failures(*kinds: str) -> Callable[[Readings], Measured]:
    """
    How often since the processes started: what was lost does not come back.
    """

    def measure(readings: Readings) -> Measured:
        return Measured(
            sum(
                one.totals.get(f"failures.{kind}", 0)
                for one in readings.fresh()
                for kind in kinds
            )
        )

    return measure


def _streams(readings: Readings) -> Measured:
    left_out = readings.streams - readings.looked_at
    told = f"{readings.looked_at:,} of {readings.streams:,}"

    return Measured(left_out, told)


LANES: tuple[Indicator, ...] = (
    Indicator(
        "managers",
        "",
        "managers that live",
        "start another (everbus manager): alone, its end costs the lane TTL",
        _replicas,
        warn=1,
        fail=0,
        low=True,
    ),
    Indicator(
        "lanes_without_owner",
        "",
        "partitions that nobody serves; a takeover takes the lane TTL and a second",
        LANES_REMEDY,
        _unowned,
        fail=1,
    ),
    Indicator(
        "pending_age",
        "s",
        "age of the oldest command that was read and not settled",
        "see everbus_parked_commands and the log's command.failed: a session waits "
        "for a tier or for a command that fails",
        ages_known(lambda lane: lane.pending_s),
        warn=5,
        fail=30,
    ),
    Indicator(
        "lag",
        "s",
        "age of the oldest command that nobody has read",
        LANES_REMEDY + ". With enough owners: more managers, or fewer commands",
        ages_known(lambda lane: lane.unread_s),
        warn=2,
        fail=10,
    ),
    Indicator(
        "ingress_seen",
        "",
        "ingress streams too many to be looked at for the two above",
        "those of removed MADs can go: everbus mads remove",
        _streams,
        warn=1,
    ),
    Indicator(
        "reply_wait",
        "ms",
        "how long the slowest lane takes to reply to a question that needs nothing",
        "see lag, pending_age and commit_p99; else the managers' CPU",
        _ping,
        warn=250,
        fail=2_000,
    ),
    Indicator(
        "commit_p99",
        "ms",
        "99th percentile of a commit with its next read, the last 5 minutes",
        "see bus_memory and the bus's SLOWLOG; appendfsync always needs a fast disk",
        _commit_p99,
        warn=50,
        fail=500,
    ),
    Indicator(
        "parked",
        "",
        "commands that wait for their session",
        "see warm_tier, cold_tier and outbox: they wait for one of them",
        _parked,
        warn=500,
        fail=5_000,
    ),
    Indicator(
        "silent_processes",
        "",
        "managers and archivers that stopped telling of themselves in 10 minutes",
        "see whether they run; if they do, whether they reach the bus",
        _silent,
        warn=1,
    ),
    Indicator(
        "replica_crashes",
        "",
        "managers that ended without goodbye, the last 5 minutes",
        "see why in their logs: killed, out of memory, or a dead letter `poison`",
        _recent("failures.replica_crashed"),
        warn=1,
        fail=5,
    ),
    Indicator(
        "takeovers",
        "per lane",
        "lanes taken within 5 minutes; one a lane is a start",
        "lanes wander: see whether managers restart, or lose the bus",
        _takeovers,
        warn=5,
        fail=20,
    ),
    Indicator(
        "superseded",
        "",
        "owners that the epoch fence turned away, the last 5 minutes",
        "processes were paused for longer than their TTL: see CPU and swapping, or "
        "raise EVERBUS_LANE_TTL_MS",
        _recent("superseded"),
        warn=1,
        fail=20,
    ),
    Indicator(
        "disturbed",
        "",
        "lane restarts that replay what is pending, the last 5 minutes",
        "see lane.disturbed in the managers' logs: its cause names the remedy",
        _recent("disturbed"),
        warn=10,
        fail=200,
    ),
    Indicator(
        "lost_mads",
        "",
        "MAD instances declared lost, the last 5 minutes",
        "see everbus mads list, and why they ended or could not publish",
        _recent("lost_mads"),
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
        "dead_letters",
        "",
        "commands that could not be applied and wait for somebody to decide",
        "everbus dead list, then redrive or drop them",
        _dead,
        warn=1,
    ),
    Indicator(
        "dead_letters_room",
        "%",
        "how full the fullest lane's dead letters are; the oldest go at 100%",
        "everbus dead list, then redrive or drop them",
        _dead_room,
        warn=50,
        fail=90,
    ),
    Indicator(
        "lost_entries",
        "",
        "commands that somebody trimmed away before they were settled",
        "find who trims eb:{*}:in:*; only everbus may. Then restart the managers to "
        "begin a new count",
        failures("lost_entries"),
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
