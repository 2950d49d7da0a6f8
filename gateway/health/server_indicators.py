"""
Indicators of the Redis or Valkey server that is the bus.
"""

from everbus.gateway.health.readings import Readings
from everbus.gateway.health.server_report import unpatched, weaknesses
from everbus.gateway.health.verdicts import FAILED, FINE, WARNED, Indicator, Measurement

_GIB = 2**30
# Clocks that differ by less agree.
SAME_CLOCK_MS = 500
_JUDGES = 2


def _memory(readings: Readings) -> Measurement:
    server = readings.server
    used = server.number("used_memory")
    limit = server.number("maxmemory") or server.number("total_system_memory")
    if not limit:
        return Measurement(None)
    of = "maxmemory" if server.number("maxmemory") else "the host's"
    share = 100 * used / limit
    backlog = sum(lane.backlog for lane in readings.lanes)
    held = f"; {backlog:,} records wait in the outboxes for MongoDB" if backlog else ""

    return Measurement(share, f"{share:.3g}% of {of} {limit / _GIB:,.1f} GiB{held}")


def _evictions(readings: Readings) -> Measurement:
    return Measurement(readings.server.number("evicted_keys"))


def _persistence(readings: Readings) -> Measurement:
    server = readings.server
    if not server.info:
        return Measurement(None, "not known: INFO is forbidden")
    if server.info.get("aof_last_write_status") == "err":
        return Measurement(FAILED, "the last write of the AOF failed")
    if server.info.get("aof_last_bgrewrite_status") == "err":
        return Measurement(WARNED, "the last rewrite of the AOF failed")
    return _state(readings, "appendonly", FAILED, "AOF is on")


def _state(readings: Readings, setting: str, grade: float, fine: str) -> Measurement:
    """
    A state of the server's configuration, by the trouble that it makes.
    """
    if not readings.server.info:
        return Measurement(None, "not known: INFO is forbidden")
    for found in weaknesses(readings.server):
        if found.setting == setting:
            return Measurement(grade, found.said)
    return Measurement(FINE, fine)


def _policy(readings: Readings) -> Measurement:
    return _state(readings, "maxmemory-policy", FAILED, "noeviction")


def _fsync(readings: Readings) -> Measurement:
    policy = readings.server.settings.get("appendfsync")
    if policy is None:
        return Measurement(None)
    return Measurement(FINE if policy == "always" else WARNED, policy)


def _notifications(readings: Readings) -> Measurement:
    notifies = readings.server.notifies
    if notifies is None:
        return Measurement(None)
    return Measurement(FINE, "on") if notifies else Measurement(WARNED, "off")


def _config(readings: Readings) -> Measurement:
    if readings.server.forbidden:
        return Measurement(WARNED, "CONFIG is forbidden")
    return Measurement(FINE, "can be read")


def _followers(readings: Readings) -> Measurement:
    followers = readings.server.followers
    if not followers:
        return Measurement(None, "no replicas")
    broken = [one for one in followers if not one.online]
    lag_s = max(one.lag_s for one in followers)
    if broken:
        return Measurement(FAILED, f"{len(broken)} of {len(followers)} not online")
    grade = FAILED if lag_s >= 30 else WARNED if lag_s >= 5 else FINE

    return Measurement(grade, f"{len(followers)}, {lag_s} s behind at most")


def _guard(readings: Readings) -> Measurement:
    return _state(readings, "min-replicas-to-write", WARNED, "fits")


def _priorities(readings: Readings) -> Measurement:
    found = set(readings.priorities)
    if not found:
        return Measurement(None, "no replicas" if not readings.server.followers else "")
    if len(found) > 1:
        priorities = ", ".join(map(str, sorted(found)))
        return Measurement(WARNED, f"unequal: {priorities}")
    return Measurement(FINE, "equal")


def _skew(readings: Readings) -> Measurement:
    skews = {one.host or one.name: one.skew_ms for one in readings.fresh()}
    skews["this host"] = readings.skew_ms
    where, skew_ms = max(skews.items(), key=lambda one: abs(one[1]))
    # Two other hosts that agree are right, and the bus's clock is wrong.
    agree = max(skews.values()) - min(skews.values()) < SAME_CLOCK_MS
    if agree and len(skews) > _JUDGES and abs(skew_ms) >= SAME_CLOCK_MS:
        return Measurement(
            abs(skew_ms), f"{-skew_ms:+,} ms, the bus: {len(skews)} hosts agree"
        )
    return Measurement(abs(skew_ms), f"{skew_ms:+,} ms, {where}" if skew_ms else "0 ms")


def _version(readings: Readings) -> Measurement:
    server = readings.server
    if not server.info:
        return Measurement(None, "not known: INFO is forbidden")
    shown = f"{server.flavour} {'.'.join(str(part) for part in server.version)}"
    unsafe = unpatched(server)
    if unsafe is None:
        return Measurement(WARNED, f"{shown}: only its distributor can patch it")
    if unsafe:
        return Measurement(FAILED, f"{shown}: CVE-2025-49844")
    return Measurement(FINE, shown)


SERVER: tuple[Indicator, ...] = (
    Indicator(
        "bus_memory",
        "%",
        "memory that the bus uses, of maxmemory, else of its host's",
        "while records wait for MongoDB, see warm and outbox: memory is freed when it "
        "has them. Else raise maxmemory, or lower EVERBUS_HOT_TTL_S. From 95% on "
        "writes are refused as overloaded",
        _memory,
        warn=75,
        fail=90,
    ),
    Indicator(
        "evictions",
        "",
        "keys that the bus dropped for want of memory since it started",
        "CONFIG SET maxmemory-policy noeviction; compare with MongoDB what is gone",
        _evictions,
        fail=1,
    ),
    Indicator(
        "eviction_policy",
        "state",
        "what the bus does when its memory is full",
        "CONFIG SET maxmemory-policy noeviction (and in redis.conf)",
        _policy,
        fail=FAILED,
        wanted="noeviction",
    ),
    Indicator(
        "persistence",
        "state",
        "whether the bus keeps an append-only file and can write it",
        "CONFIG SET appendonly yes; if writing fails, make room on its disk",
        _persistence,
        warn=WARNED,
        fail=FAILED,
        wanted="AOF on",
    ),
    Indicator(
        "fsync",
        "state",
        "how soon a write is on the bus's disk",
        "CONFIG SET appendfsync always, if a power loss of its host must cost nothing",
        _fsync,
        warn=WARNED,
        wanted="always",
    ),
    Indicator(
        "redis_replicas",
        "state",
        "whether the bus's replicas follow: failed if one is not online or 30 s behind",
        "see the replicas' logs and the network between",
        _followers,
        warn=WARNED,
        fail=FAILED,
        wanted="online, < 5 s",
    ),
    Indicator(
        "replica_priority",
        "state",
        "whether a failover may choose any replica, not a lagging favourite",
        "CONFIG SET replica-priority 100 on each replica",
        _priorities,
        warn=WARNED,
        wanted="equal",
    ),
    Indicator(
        "min_replicas",
        "state",
        "whether a primary that is cut off stops accepting writes",
        "CONFIG SET min-replicas-to-write 1",
        _guard,
        warn=WARNED,
        wanted=">= 1 with replicas",
    ),
    Indicator(
        "clock_skew",
        "ms",
        "the largest difference between a host's clock and the bus's",
        "set the clock of the named host by NTP (the bus's, if all others agree); from "
        "5 s on tokens are refused, and new ids of that host",
        _skew,
        warn=500,
        fail=5_000,
    ),
    Indicator(
        "notifications",
        "state",
        "whether the bus tells of expired leases; without, the sweep finds them",
        "CONFIG SET notify-keyspace-events Ex, for faster detection",
        _notifications,
        warn=WARNED,
        wanted="on",
    ),
    Indicator(
        "bus_config",
        "state",
        "whether the bus tells its configuration",
        "nothing depends on it: check fsync and min-replicas by hand, or allow "
        "+config|get",
        _config,
        warn=WARNED,
        wanted="readable",
    ),
    Indicator(
        "bus_version",
        "state",
        "whether scripts can break out of the server (CVE-2025-49844 and its kin)",
        "upgrade to Redis 8.2.2, 8.0.4, 7.4.6, 7.2.11 or 6.2.20, Valkey 8.1.4, 8.0.6 "
        "or 7.2.11, or later; MADs may run no scripts in any case",
        _version,
        warn=WARNED,
        fail=FAILED,
        wanted="patched",
    ),
)
