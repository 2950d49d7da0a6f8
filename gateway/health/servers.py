"""
Indicators of the Redis or Valkey server that is the bus.
"""

from gateway.health.readings import Readings
from gateway.health.server import troubles, unpatched
from gateway.health.verdicts import FAILED, FINE, WARNED, Indicator, Measured

_GIB = 2**30


def _memory(readings: Readings) -> Measured:
    server = readings.server
    used = server.number("used_memory")
    limit = server.number("maxmemory") or server.number("total_system_memory")
    if not limit:
        return Measured(None)
    of = "maxmemory" if server.number("maxmemory") else "the host's"
    share = 100 * used / limit

    return Measured(share, f"{share:.3g}% of {of} {limit / _GIB:,.1f} GiB")


def _evictions(readings: Readings) -> Measured:
    return Measured(readings.server.number("evicted_keys"))


def _persistence(readings: Readings) -> Measured:
    server = readings.server
    if not server.info:
        return Measured(None, "not known: INFO is forbidden")
    if server.info.get("aof_last_write_status") == "err":
        return Measured(FAILED, "the last write of the AOF failed")
    if server.info.get("aof_last_bgrewrite_status") == "err":
        return Measured(WARNED, "the last rewrite of the AOF failed")
    return _state(readings, "appendonly", FAILED, "AOF is on")


def _state(readings: Readings, setting: str, grade: float, fine: str) -> Measured:
    """
    A state of the server's configuration, by the trouble that it makes.
    """
    if not readings.server.info:
        return Measured(None, "not known: INFO is forbidden")
    for found in troubles(readings.server):
        if found.setting == setting:
            return Measured(grade, found.said)
    return Measured(FINE, fine)


def _policy(readings: Readings) -> Measured:
    return _state(readings, "maxmemory-policy", FAILED, "noeviction")


def _fsync(readings: Readings) -> Measured:
    told = readings.server.settings.get("appendfsync")
    if told is None:
        return Measured(None)
    return Measured(FINE if told == "always" else WARNED, told)


def _notifications(readings: Readings) -> Measured:
    notifies = readings.server.notifies
    if notifies is None:
        return Measured(None)
    return Measured(FINE, "on") if notifies else Measured(WARNED, "off")


def _config(readings: Readings) -> Measured:
    if readings.server.forbidden:
        return Measured(WARNED, "CONFIG is forbidden")
    return Measured(FINE, "can be read")


def _followers(readings: Readings) -> Measured:
    followers = readings.server.followers
    if not followers:
        return Measured(None, "no replicas")
    broken = [one for one in followers if not one.online]
    lag_s = max(one.lag_s for one in followers)
    if broken:
        return Measured(FAILED, f"{len(broken)} of {len(followers)} not online")
    grade = FAILED if lag_s >= 30 else WARNED if lag_s >= 5 else FINE

    return Measured(grade, f"{len(followers)}, {lag_s} s behind at most")


def _guard(readings: Readings) -> Measured:
    return _state(readings, "min-replicas-to-write", WARNED, "fits")


def _priorities(readings: Readings) -> Measured:
    found = set(readings.priorities)
    if not found:
        return Measured(None, "no replicas" if not readings.server.followers else "")
    if len(found) > 1:
        told = ", ".join(str(one) for one in sorted(found))
        return Measured(WARNED, f"unequal: {told}")
    return Measured(FINE, "equal")


def _skew(readings: Readings) -> Measured:
    told = [("this host", readings.skew_ms)]
    told += [(one.host or one.name, one.skew_ms) for one in readings.fresh()]
    where, skew_ms = max(told, key=lambda one: abs(one[1]))

    return Measured(abs(skew_ms), f"{skew_ms:+,} ms, {where}" if skew_ms else "0 ms")


def _version(readings: Readings) -> Measured:
    server = readings.server
    if not server.info:
        return Measured(None, "not known: INFO is forbidden")
    shown = f"{server.flavour} {'.'.join(str(part) for part in server.version)}"
    unsafe = unpatched(server)
    if unsafe is None:
        return Measured(WARNED, f"{shown}: only its distributor can patch it")
    if unsafe:
        return Measured(FAILED, f"{shown}: CVE-2025-49844")
    return Measured(FINE, shown)


SERVER: tuple[Indicator, ...] = (
    Indicator(
        "bus_memory",
        "%",
        "memory that the bus uses, of maxmemory, else of its host's",
        "raise maxmemory, or lower EVERBUS_HOT_TTL_S; full, it refuses writes",
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
        "set the clocks by NTP; from 5 s on tokens and new ids are refused",
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
