"""
Indicators of lanes, and of the processes that serve them.
"""

from collections.abc import Callable

from everbus.gateway.health.readings import LaneReading, Readings
from everbus.gateway.health.verdicts import Indicator, Measurement

# Dead letters that a lane keeps before it drops the oldest (see lane/commit.py).
DEAD_CAP = 10_000
LANES_REMEDY = (
    "start a manager (everbus manager); if there are enough, look into their logs "
    "for lane.disturbed and lane.deaf"
)


def _worst(
    readings: Readings, of: Callable[[LaneReading], float], unit: str
) -> Measurement:
    """
    The largest value among the lanes, and of which lane it is.
    """
    worst = max(readings.lanes, key=of, default=None)
    if worst is None or of(worst) == 0:
        return Measurement(0.0)
    return Measurement(of(worst), f"{of(worst):,.1f} {unit}, lane {worst.name}")


def _replicas(readings: Readings) -> Measurement:
    names = ", ".join(readings.replicas[:5])
    count = len(readings.replicas)

    return Measurement(count, f"{count}: {names}" if names else "none")


def _unowned(readings: Readings) -> Measurement:
    lanes = [lane.name for lane in readings.lanes if not lane.owner]
    text = f"{len(lanes)}: {', '.join(lanes[:8])}" if lanes else "0"

    return Measurement(len(lanes), text)


def ages_known(
    of: Callable[[LaneReading], float],
) -> Callable[[Readings], Measurement]:
    """
    A measure of the oldest thing that waits, of all lanes.
    """

    def measure(readings: Readings) -> Measurement:
        if readings.streams and not readings.looked_at:
            return Measurement(None, "not known: scripts are forbidden")
        return _worst(readings, of, "s")

    return measure


def _silent(readings: Readings) -> Measurement:
    stale = [one for one in readings.statuses if one.stale(readings.now_ms)]
    # What has been silent for long was noticed long ago, and is only remembered.
    lately = [o for o in stale if readings.now_ms - o.at_ms < 600_000]
    text = ", ".join(f"{one.role} {one.name}" for one in lately[:4])

    return Measurement(len(lately), f"{len(lately)}: {text}" if text else "0")


def recent(name: str) -> Callable[[Readings], Measurement]:
    """
    What all processes counted under *name* in the last 5 minutes.
    """

    def measure(readings: Readings) -> Measurement:
        return Measurement(readings.recent(name))

    return measure


def _takeovers(readings: Readings) -> Measurement:
    lanes = max(1, len(readings.lanes))
    taken = readings.recent("takeovers")

    return Measurement(taken / lanes)


def _commit_p99(readings: Readings) -> Measurement:
    slow = [one.recent.get("commit_p99_ms") for one in readings.fresh()]
    known = [ms for ms in slow if ms is not None]

    return Measurement(max(known)) if known else Measurement(None, "no commits")


def _ping(readings: Readings) -> Measurement:
    ping_ms = readings.ping_ms

    return (
        Measurement(None, "not asked")
        if ping_ms is None
        else Measurement(round(ping_ms))
    )


def _parked(readings: Readings) -> Measurement:
    return Measurement(sum(one.gauges.get("parked", 0) for one in readings.fresh()))


def _dead(readings: Readings) -> Measurement:
    count = sum(lane.dead for lane in readings.lanes)
    newest = max((lane.newest_dead_ms for lane in readings.lanes), default=0)
    if not count:
        return Measurement(0)
    age_s = max(0, readings.now_ms - newest) / 1000

    return Measurement(count, f"{count:,}, the newest {age_s:,.0f} s ago")


def _dead_room(readings: Readings) -> Measurement:
    fullest = max((lane.dead for lane in readings.lanes), default=0)

    return Measurement(100 * fullest / DEAD_CAP)


def failures(*kinds: str) -> Callable[[Readings], Measurement]:
    """
    Failures since the processes started: lost data does not come back.
    """

    def measure(readings: Readings) -> Measurement:
        return Measurement(
            sum(
                one.totals.get(f"failures.{kind}", 0)
                for one in readings.fresh()
                for kind in kinds
            )
        )

    return measure


def _streams(readings: Readings) -> Measurement:
    left_out = readings.streams - readings.looked_at
    text = f"{readings.looked_at:,} of {readings.streams:,}"

    return Measurement(left_out, text)


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
        recent("failures.replica_crashed"),
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
        recent("superseded"),
        warn=1,
        fail=20,
    ),
    Indicator(
        "disturbed",
        "",
        "lane restarts that replay what is pending, the last 5 minutes",
        "see lane.disturbed in the managers' logs: its cause names the remedy",
        recent("disturbed"),
        warn=10,
        fail=200,
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
)
