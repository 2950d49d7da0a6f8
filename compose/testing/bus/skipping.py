"""
Skipping time: the effect on leases when a test moves the server's clock.

Nothing happens in an hour that is skipped. In production every working part renews its
leases in an hour, so these leases move along with the clock: the lanes of living
replicas, and the lease of each MAD with an open heartbeat connection. The last look at
the deadlines counts as just now. All of it is one step of the event loop.
"""

from collections.abc import Iterable

from everbus.bus import keys
from everbus.bus.messages import COMMAND_FIELD, unpack, unpack_envelope
from everbus.compose.testing.bus import bus_time
from everbus.compose.testing.bus.fake_redis import FakeRedisServer
from everbus.gateway.presence.heartbeats import Heartbeat
from everbus.gateway.store import key_names, lease_records

_OWNERS = key_names.owner("*")
_HEARTBEATS = keys.ingress(keys.PRESENCE, "*")
_GATEWAYS = keys.ingress("*", keys.GATEWAY)


def skip(
    server: FakeRedisServer,
    living: set[str],
    hearts: Iterable[tuple[str, bytes]],
    seconds: float,
) -> None:
    """
    Move the clock, and the leases of the living parts with it.

    Args:
        living: names of replicas and of the archiver.
        hearts: MAD and newest heartbeat of each instance that is connected.
    """
    skipped_ms = round(seconds * 1000)
    for key in server.call("KEYS", _OWNERS):
        owner, left_ms = server.call("GET", key), server.call("PTTL", key)
        if owner and key_names.holder_of(owner.decode())[0] in living:
            server.call("PEXPIRE", key, left_ms + skipped_ms)
    for name in server.call("ZRANGE", key_names.REPLICAS, 0, -1):
        if name.decode() in living:
            server.call("ZINCRBY", key_names.REPLICAS, skipped_ms, name)
    alive = list(hearts)
    for mad, packed in alive:
        _prolong(server, mad, packed, skipped_ms)
    bus_time.skip(seconds)
    note_look(server)
    beat(server, alive)
    for member in _due(server):
        # The expiry event of a real server; fakeredis has none.
        channel = f"__keyspace@0__:{lease_records.lease(member.decode())}"
        server.call("PUBLISH", channel, "expired")
    # Lanes of the dead are free now; the living look for them at once.
    server.call("PUBLISH", keys.NEWS, "lanes")


def beat(server: FakeRedisServer, hearts: Iterable[tuple[str, bytes]]) -> None:
    """
    Repeat heartbeats, each given with its MAD.
    """
    for mad, packed in hearts:
        stream = keys.ingress(keys.PRESENCE, mad)
        server.call("XADD", stream, "*", COMMAND_FIELD, packed)


def note_look(server: FakeRedisServer) -> None:
    """
    Date the last look at the deadlines, if there was one, to now.

    After two seconds without a look the presence lane declares nobody lost for a TTL,
    since the silence may be its own. A busy machine must not delay a test that long.
    """
    if server.call("EXISTS", lease_records.WATCH):
        looked = ("swept_ms", bus_time.now_ms(), "grace_ms", 0)
        server.call("HSET", lease_records.WATCH, *looked)


def is_quiet(server: FakeRedisServer, living: set[str], lanes: Iterable[str]) -> bool:
    """
    Whether every heartbeat is applied, every loss is announced to all lanes, and each
    free lane has an owner again.
    """
    for owner in server.call("MGET", *map(key_names.owner, lanes)):
        if not owner:
            return False
        if key_names.holder_of(owner.decode())[0] not in living:
            # A dead replica's lease still holds this lane, so nothing else moves.
            return True
    if server.call("KEYS", _HEARTBEATS) or _due(server):
        return False
    if server.call("EXISTS", lease_records.LOSSES):
        return False
    if not server.call("EXISTS", lease_records.WATCH):
        # The first look at the deadlines declares nobody lost for a whole TTL.
        return False
    return all(_is_settled(server, key) for key in server.call("KEYS", _GATEWAYS))


def _prolong(server: FakeRedisServer, mad: str, packed: bytes, by_ms: int) -> None:
    """
    Move the lease of one instance: a sweep may come before its heartbeat is read.
    """
    beat = unpack(unpack_envelope(packed).body, Heartbeat)
    member = lease_records.member_of(mad, beat.instance)
    if server.call("ZSCORE", lease_records.DEADLINES, member) is None:
        return
    server.call("ZINCRBY", lease_records.DEADLINES, by_ms, member)
    lease = lease_records.lease(member)
    server.call("PEXPIRE", lease, server.call("PTTL", lease) + by_ms)


def _due(server: FakeRedisServer) -> list[bytes]:
    now = bus_time.now_ms()
    due: list[bytes] = server.call(
        "ZRANGEBYSCORE", lease_records.DEADLINES, "-inf", now
    )
    return due


def _is_settled(server: FakeRedisServer, stream: bytes) -> bool:
    newest = server.call("XREVRANGE", stream, "+", "-", "COUNT", 1)
    for told in server.call("XINFO", "GROUPS", stream):
        group = dict(zip(told[::2], told[1::2], strict=True))
        read = not newest or group[b"last-delivered-id"] == newest[0][0]
        if group[b"pending"] or not read:
            return False
    return True
