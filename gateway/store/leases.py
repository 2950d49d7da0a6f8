"""
Leases of MAD instances: the keys in the slot of {mads}, and who lives by them.

Only the owner of the `mads` lane writes here, by scripts that check that it is
(`gateway.presence`); whoever wants to know who is alive reads here. A deadline is
the truth about a lease; the lease key is there to expire, which wakes the owner.
"""

from typing import Any, Literal

import msgspec

from bus.keys import PRESENCE
from bus.wire import Wire
from gateway.store import names

OWNER = names.owner(PRESENCE)
LEASE_PREFIX = f"eb:{{{PRESENCE}}}:lease:"
# Sorted set `<mad>:<instance>` → when its lease ends, in ms of the server's clock.
DEADLINES = f"eb:{{{PRESENCE}}}:deadlines"
# Hash `<mad>:<instance>` → `<state> <epoch> <since> <heard> <ended> <noticed>`.
RECORDS = f"eb:{{{PRESENCE}}}:instances"
# Sorted set `<mad>:<instance>` → when it was lost or left: what to forget first.
ENDED = f"eb:{{{PRESENCE}}}:ended"
# Hash MAD → how many instances of it live.
LIVING = f"eb:{{{PRESENCE}}}:living"
# Hash `<mad>:<instance>:<epoch>` → `lost` or `left`, until every partition was told.
LOSSES = f"eb:{{{PRESENCE}}}:losses"
# Hash: when was swept last, until when nobody may be declared lost, and whether the
# server tells of expired keys.
WATCH = f"eb:{{{PRESENCE}}}:watch"

PAGE = 500

State = Literal["living", "lost", "left"]
# Whether the server tells of expired leases: each by its own channel, all expired
# keys by one, not at all, or it does not tell whether it does.
Notified = Literal["keyspace", "keyevent", "off", "forbidden", ""]


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is known of one instance of a MAD.

    Attributes:
        epoch: the highest that was heard of; if *state* is not `living`, it is over.
        since_ms: when this epoch's first heartbeat came.
        heard_ms: when the last heartbeat came, on the server's clock.
        left_ms: how long the lease lasts without another one; 0 if there is none.
        ended_ms: when it was declared lost, or left; 0 while it lives.
        noticed: what a loss was noticed by; else empty. `event`: its own expiry was
            told; `sweep`: a look at all deadlines found it.
    """

    mad: str
    instance: str
    state: State
    epoch: int
    since_ms: int
    heard_ms: int
    left_ms: int = 0
    ended_ms: int = 0
    noticed: str = ""


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """
    How well the leases are watched.

    Attributes:
        idle_ms: since when nobody has swept them; None if nobody ever did.
        grace_ms: how long nobody will be declared lost yet, after an outage.
        notified: how the server tells of expired leases.
        living: how many instances hold a lease.
        untold: losses that some partition has not been told of yet.
    """

    idle_ms: int | None
    grace_ms: int
    notified: Notified
    living: int
    untold: int


def lease(member: str) -> str:
    """
    The lease key of `<mad>:<instance>`.
    """
    return f"{LEASE_PREFIX}{member}"


def member_of(mad: str, instance: str) -> str:
    """
    What stands for an instance in the keys of this slot; no name has a colon.
    """
    return f"{mad}:{instance}"


async def instances(wire: Wire, mad: str = "") -> list[InstanceRecord]:
    """
    All instances that are known, of one *mad* or of all, by MAD and instance.

    Those that were lost or left stay known for a day; the newest 10,000 of them.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    now_ms = await _now_ms(wire)
    grace_ms = int(await wire.call("HGET", WATCH, "grace_ms") or 0)
    pattern = ("MATCH", f"{mad}:*") if mad else ()
    found: dict[str, InstanceRecord] = {}
    cursor = b"0"
    while True:
        cursor, fields = await wire.call(
            "HSCAN", RECORDS, cursor, *pattern, "COUNT", PAGE
        )
        members = fields[::2]
        if members:
            ends = await wire.call("ZMSCORE", DEADLINES, *members)
            for member, packed, end in zip(members, fields[1::2], ends, strict=True):
                lasts_ms = max(int(end), grace_ms) - now_ms if end else 0
                found[member.decode()] = parse_record(member, packed, lasts_ms)
        if cursor == b"0":
            return [found[member] for member in sorted(found)]


async def watch(wire: Wire) -> Watch:
    """
    How well the leases are watched now.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    now_ms = await _now_ms(wire)
    swept, grace, notified = await wire.call(
        "HMGET", WATCH, "swept_ms", "grace_ms", "notified"
    )
    told = {
        "idle_ms": None if swept is None else max(0, now_ms - int(swept)),
        "grace_ms": max(0, int(grace or 0) - now_ms),
        "notified": (notified or b"").decode(),
        "living": await wire.call("ZCARD", DEADLINES),
        "untold": await wire.call("HLEN", LOSSES),
    }

    return msgspec.convert(told, Watch)


def parse_record(member: bytes, packed: bytes, lasts_ms: int = 0) -> InstanceRecord:
    """
    The record that lies under *member*, whose lease lasts *lasts_ms* yet.
    """
    mad, _, instance = member.decode().partition(":")
    state, epoch, since, heard, ended, noticed = packed.decode().split(" ")
    told = {
        "mad": mad,
        "instance": instance,
        "state": state,
        "epoch": epoch,
        "since_ms": since,
        "heard_ms": heard,
        "left_ms": max(0, lasts_ms),
        "ended_ms": ended,
        "noticed": noticed.removeprefix("-"),
    }

    return msgspec.convert(told, InstanceRecord, strict=False)


async def _now_ms(wire: Wire) -> int:
    told: Any = await wire.call("TIME")

    return int(told[0]) * 1000 + int(told[1]) // 1000
