"""
Indicators of the warm and cold tiers, and of the drain to them.
"""

from collections.abc import Callable

from everbus.gateway.health.lane_indicators import ages_known, failures
from everbus.gateway.health.readings import Readings
from everbus.gateway.health.verdicts import FAILED, FINE, WARNED, Indicator, Measurement
from everbus.gateway.store import key_names


def _outbox(readings: Readings) -> Measurement:
    fullest = max((lane.backlog for lane in readings.lanes), default=0)
    total = sum(lane.backlog for lane in readings.lanes)
    share = 100 * fullest / readings.outbox_limit

    return Measurement(share, f"{share:.3g}%, {total:,} records")


def _archiver(readings: Readings) -> Measurement:
    if readings.archiver:
        return Measurement(FINE, key_names.holder_of(readings.archiver)[0])
    waiting = sum(lane.backlog for lane in readings.lanes)
    if waiting:
        return Measurement(FAILED, f"none; {waiting:,} records wait")
    return Measurement(WARNED, "none; nothing waits")


def _drain_failing(readings: Readings) -> Measurement:
    failing = (one.gauges.get("drain_failing_s", 0) for one in readings.fresh())

    return Measurement(max(failing, default=0.0))


def _breaker(tier: str) -> Callable[[Readings], Measurement]:
    words = {FINE: "closed", WARNED: "half open", FAILED: "open"}

    def measure(readings: Readings) -> Measurement:
        found = [one.gauges.get(f"breaker.{tier}") for one in readings.fresh()]
        states = [state for state in found if state is not None]
        if not states:
            return Measurement(None, "not used")
        return Measurement(max(states), words[max(states)])

    return measure


def _recent(*names: str) -> Callable[[Readings], Measurement]:
    def measure(readings: Readings) -> Measurement:
        return Measurement(sum(map(readings.recent, names)))

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
        "lost_writes",
        "",
        "times that the bus may have lost writes, the last 5 minutes",
        "what was acknowledged `hot` right before may be gone; MADs send again what is "
        "not settled. See `session.replaced` in the log; everbus verify --all",
        _recent("failures.hot_tier_went_back", "failures.hot_tier_emptied"),
        warn=1,
    ),
    Indicator(
        "doubtful",
        "",
        "uses of sessions in doubt while MongoDB was away, the last 5 minutes",
        "bring MongoDB back; until then EVERBUS_DOUBT decides: they wait, or are "
        "served and compared later",
        _recent("doubtful"),
        warn=1,
    ),
    Indicator(
        "stale_side",
        "",
        "uses of sessions that another bus has claimed since, the last 5 minutes",
        "two buses are served with one MongoDB: stop the managers of the older one, or "
        "restart it, which begins a later lineage; its callers' error tells what to do "
        "if a clock was ahead",
        _recent("stale_side"),
        fail=1,
    ),
    Indicator(
        "diverged",
        "",
        "records that MongoDB refused since another branch of their session counts",
        "everbus dead list --cause diverged; each letter has the whole record",
        failures("diverged_records"),
        fail=1,
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
