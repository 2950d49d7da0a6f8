"""
Indicators of the Redis or Valkey servers that are the bus.
"""

from everbus.gateway.health.node_indicators import listed, worst_of
from everbus.gateway.health.readings import Readings
from everbus.gateway.health.server_report import ServerReport, unpatched, weaknesses
from everbus.gateway.health.verdicts import FAILED, FINE, WARNED, Indicator, Measurement

_GIB = 2**30
# Clocks that differ by less agree.
SAME_CLOCK_MS = 500
_JUDGES = 2


def _memory(readings: Readings) -> Measurement:
    found = worst_of(_used)(readings)
    backlog = sum(lane.backlog for lane in readings.lanes)
    if found.value is None or not backlog:
        return found
    held = f"{backlog:,} records wait in the outboxes for MongoDB"

    return found._replace(shown=f"{found.shown}; {held}")


def _used(server: ServerReport) -> Measurement:
    used = server.number("used_memory")
    limit = server.number("maxmemory") or server.number("total_system_memory")
    if not limit:
        return Measurement(None)
    of = "maxmemory" if server.number("maxmemory") else "the host's"
    share = 100 * used / limit

    return Measurement(share, f"{share:.3g}% of {of} {limit / _GIB:,.1f} GiB")


def _evictions(readings: Readings) -> Measurement:
    some = [one for one in readings.servers if one.number("evicted_keys")]
    total = sum(one.number("evicted_keys") for one in some)
    if not some or len(readings.servers) == 1:
        return Measurement(total)
    return Measurement(total, f"{total:,.0f} at {listed(one.address for one in some)}")


def _persistence(server: ServerReport) -> Measurement:
    if not server.info:
        return Measurement(None, "not known: INFO is forbidden")
    if server.info.get("aof_last_write_status") == "err":
        return Measurement(FAILED, "the last write of the AOF failed")
    if server.info.get("aof_last_bgrewrite_status") == "err":
        return Measurement(WARNED, "the last rewrite of the AOF failed")
    return _state(server, "appendonly", FAILED, "AOF is on")


def _state(server: ServerReport, setting: str, grade: float, fine: str) -> Measurement:
    """
    A state of the server's configuration, by the trouble that it makes.
    """
    if not server.info:
        return Measurement(None, "not known: INFO is forbidden")
    for found in weaknesses(server):
        if found.setting == setting:
            return Measurement(grade, found.said)
    return Measurement(FINE, fine)


def _policy(server: ServerReport) -> Measurement:
    return _state(server, "maxmemory-policy", FAILED, "noeviction")


def _fsync(server: ServerReport) -> Measurement:
    policy = server.settings.get("appendfsync")
    if policy is None:
        return Measurement(None)
    return Measurement(FINE if policy == "always" else WARNED, policy)


def _notifications(server: ServerReport) -> Measurement:
    notifies = server.notifies
    if notifies is None:
        return Measurement(None)
    return Measurement(FINE, "on") if notifies else Measurement(WARNED, "off")


def _config(server: ServerReport) -> Measurement:
    if server.forbidden:
        return Measurement(WARNED, "CONFIG is forbidden")
    return Measurement(FINE, "can be read")


def _followers(server: ServerReport) -> Measurement:
    if server.info.get("master_link_status") == "down":
        return Measurement(FAILED, "no link to its primary")
    followers = server.followers
    if not followers:
        return Measurement(None, "no replicas")
    broken = [one for one in followers if not one.online]
    lag_s = max(one.lag_s for one in followers)
    if broken:
        return Measurement(FAILED, f"{len(broken)} of {len(followers)} not online")
    grade = FAILED if lag_s >= 30 else WARNED if lag_s >= 5 else FINE

    return Measurement(grade, f"{len(followers)}, {lag_s} s behind at most")


def _guard(server: ServerReport) -> Measurement:
    return _state(server, "min-replicas-to-write", WARNED, "fits")


def _priorities(readings: Readings) -> Measurement:
    replicas = [one for one in readings.servers if not one.is_primary]
    settings = [one.settings.get("replica-priority", "") for one in replicas]
    found = {int(one) for one in settings if one}
    if not found:
        return Measurement(None, "" if replicas else "no replicas")
    if len(found) > 1:
        priorities = ", ".join(map(str, sorted(found)))
        return Measurement(WARNED, f"unequal: {priorities}")
    return Measurement(FINE, "equal")


def _skew(readings: Readings) -> Measurement:
    apart = _apart(readings)
    skews = {one.host or one.name: one.skew_ms for one in readings.fresh()}
    skews["this host"] = readings.skew_ms
    where, skew_ms = max(skews.items(), key=lambda one: abs(one[1]))
    if apart is not None and apart[0] > abs(skew_ms):
        return Measurement(*apart)
    # Two other hosts that agree are right, and the bus's clock is wrong.
    agree = max(skews.values()) - min(skews.values()) < SAME_CLOCK_MS
    if agree and len(skews) > _JUDGES and abs(skew_ms) >= SAME_CLOCK_MS:
        return Measurement(
            abs(skew_ms), f"{-skew_ms:+,} ms, the bus: {len(skews)} hosts agree"
        )
    return Measurement(abs(skew_ms), f"{skew_ms:+,} ms, {where}" if skew_ms else "0 ms")


def _apart(readings: Readings) -> tuple[float, str] | None:
    """
    How far the clocks of the bus's own servers differ, if they do not agree.
    """
    answering = [one for one in readings.servers if not one.trouble]
    in_order = sorted(answering, key=lambda one: one.skew_ms)
    if not in_order:
        return None
    ahead, behind = in_order[0], in_order[-1]
    differ_ms = behind.skew_ms - ahead.skew_ms
    if differ_ms < SAME_CLOCK_MS:
        return None
    return differ_ms, f"{differ_ms:,} ms from {behind.address} to {ahead.address}"


def _version(server: ServerReport) -> Measurement:
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
        worst_of(_policy),
        fail=FAILED,
        wanted="noeviction",
    ),
    Indicator(
        "persistence",
        "state",
        "whether the bus keeps an append-only file and can write it",
        "CONFIG SET appendonly yes; if writing fails, make room on its disk",
        worst_of(_persistence),
        warn=WARNED,
        fail=FAILED,
        wanted="AOF on",
    ),
    Indicator(
        "fsync",
        "state",
        "how soon a write is on the bus's disk",
        "CONFIG SET appendfsync always, if a power loss of its host must cost nothing",
        worst_of(_fsync),
        warn=WARNED,
        wanted="always",
    ),
    Indicator(
        "redis_replicas",
        "state",
        "whether the bus's replicas follow: failed if one is not online or 30 s behind",
        "see the replicas' logs and the network between",
        worst_of(_followers),
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
        worst_of(_guard),
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
        worst_of(_notifications),
        warn=WARNED,
        wanted="on",
    ),
    Indicator(
        "bus_config",
        "state",
        "whether the bus tells its configuration",
        "nothing depends on it: check fsync and min-replicas by hand, or allow "
        "+config|get",
        worst_of(_config),
        warn=WARNED,
        wanted="readable",
    ),
    Indicator(
        "bus_version",
        "state",
        "whether scripts can break out of the server (CVE-2025-49844 and its kin)",
        "upgrade to Redis 8.2.2, 8.0.4, 7.4.6, 7.2.11 or 6.2.20, Valkey 8.1.4, 8.0.6 "
        "or 7.2.11, or later; MADs may run no scripts in any case",
        worst_of(_version),
        warn=WARNED,
        fail=FAILED,
        wanted="patched",
    ),
)
