"""
Indicators of the tiers below the hot one, and of the way there.
"""

from collections.abc import Callable

from gateway.health.lanes import ages_known, failures
from gateway.health.readings import Readings
from gateway.health.verdicts import FAILED, FINE, WARNED, Indicator, Measured
from gateway.store import names


def _outbox(readings: Readings) -> Measured:
    fullest = max((lane.backlog for lane in readings.lanes), default=0)
    total = sum(lane.backlog for lane in readings.lanes)
    share = 100 * fullest / readings.outbox_limit

    return Measured(share, f"{share:.3g}%, {total:,} records")


def _archiver(readings: Readings) -> Measured:
    if readings.archiver:
        return Measured(FINE, names.holder_of(readings.archiver)[0])
    waiting = sum(lane.backlog for lane in readings.lanes)
    if waiting:
        return Measured(FAILED, f"none; {waiting:,} records wait")
    return Measured(WARNED, "none; nothing waits")


def _drain_failing(readings: Readings) -> Measured:
    failing = (one.gauges.get("drain_failing_s", 0) for one in readings.fresh())

    return Measured(max(failing, default=0.0))


def _breaker(tier: str) -> Callable[[Readings], Measured]:
    words = {FINE: "closed", WARNED: "half open", FAILED: "open"}

    def measure(readings: Readings) -> Measured:
        found = [one.gauges.get(f"breaker.{tier}") for one in readings.fresh()]
        states = [state for state in found if state is not None]
        if not states:
            return Measured(None, "not used")
        return Measured(max(states), words[max(states)])

    return measure


TIERS: tuple[Indicator, ...] = (
    Indicator(
        "outbox",
        "%",
        "how full the fullest outbox is; writes are refused at 100%",
        "see archiver and drain_failing; MongoDB is behind",
        _outbox,
        warn=50,
        fail=90,
    ),
    Indicator(
        "outbox_age",
        "s",
        "age of the oldest record that MongoDB does not hold",
        "see archiver and drain_failing; MongoDB is behind",
        ages_known(lambda lane: lane.outbox_s),
        warn=30,
        fail=300,
    ),
    Indicator(
        "archiver",
        "state",
        "whether an archiver holds the lease",
        "start one (everbus archiver); it needs EVERBUS_MONGO_URL",
        _archiver,
        warn=WARNED,
        fail=FAILED,
        wanted="one lives",
    ),
    Indicator(
        "drain_failing",
        "s",
        "since when the archiver gets nothing done though there is something to do",
        "see drain.waits in the archiver's log",
        _drain_failing,
        warn=5,
        fail=60,
    ),
    *(
        Indicator(
            f"{tier}_tier",
            "state",
            f"the breaker between everbus and {store}, the worst of all processes",
            f"see whether {store} runs and is reached; it is probed by itself",
            _breaker(tier),
            warn=WARNED,
            fail=FAILED,
            wanted="closed",
        )
        for tier, store in (("warm", "MongoDB"), ("cold", "S3"))
    ),
    Indicator(
        "corrupted",
        "",
        "archives or records that are not what was put there, or were refused",
        "everbus dead list, and the log's *.corrupted; put the objects back from a "
        "backup of the bucket",
        failures("corrupted_state", "refused_records"),
        fail=1,
    ),
)
