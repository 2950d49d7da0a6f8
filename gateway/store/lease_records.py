"""
Leases of MAD instances: the keys in the slot of {mads}, and their readers.

Only the owner of the `mads` lane writes these keys, by scripts that check the ownership
(`gateway.presence`); every process may read them. The deadline is the truth about a
lease; the lease key only expires, to wake the owner.
"""

from typing import Any, Literal

import msgspec

from everbus.bus.keys import PRESENCE
from everbus.bus.wire import Wire
from everbus.gateway.store import key_names

OWNER = key_names.owner(PRESENCE)
LEASE_PREFIX = f"eb:{{{PRESENCE}}}:lease:"
# Sorted set `<mad>:<instance>` → when its lease ends, in ms of the server's clock.
DEADLINES = f"eb:{{{PRESENCE}}}:deadlines"
# Hash `<mad>:<instance>` → `<state> <epoch> <since> <heard> <ended> <noticed>`.
RECORDS = f"eb:{{{PRESENCE}}}:instances"
# Sorted set `<mad>:<instance>` → when it was lost or left: what to forget first.
ENDED = f"eb:{{{PRESENCE}}}:ended"
# Hash MAD → how many instances of it live.
LIVING = f"eb:{{{PRESENCE}}}:living"
# Hash `<mad>:<instance>:<epoch>` → `lost` or `left`, until it is announced to every
# partition.
LOSSES = f"eb:{{{PRESENCE}}}:losses"
# Hash: when was swept last, until when nobody may be declared lost, and whether the
# server tells of expired keys.
WATCH = f"eb:{{{PRESENCE}}}:watch"

PAGE = 500

State = Literal["living", "lost", "left"]
# How the server notifies of expired leases: each by its own channel, all expired keys
# by one, not at all, or it does not show the setting.
Notified = Literal["keyspace", "keyevent", "off", "forbidden", ""]


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    The record of one instance of a MAD.

    Attributes:
        epoch: its highest known epoch; ended unless *state* is `living`.
        since_ms: arrival of this epoch's first heartbeat.
        heard_ms: arrival of the last heartbeat, by the server's clock.
        left_ms: time left of its lease without another heartbeat; 0 without a lease.
        ended_ms: time of its loss or leave; 0 while it is alive.
        noticed: how a loss was noticed; else empty. `event`: a notification of its own
            expiry; `sweep`: a look at all deadlines; `disconnect`: its sockets closed
            and did not come back.
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


class SweepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """
    The state of the lease sweep.

    Attributes:
        idle_ms: time since the last sweep; None before the first.
        grace_ms: time, after an outage, until instances may be declared lost.
        notified: the server's notification of expired leases.
        living: number of instances with a lease.
        untold: losses not yet announced to every partition.
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
    The member for an instance in the keys of this slot; no name has a colon.
    """
    return f"{mad}:{instance}"


async def instances(wire: Wire, mad: str = "") -> list[InstanceRecord]:
    """
    All known instances, of one *mad* or of all, sorted by MAD and instance.

    Lost and left instances stay known for a day; the newest 10,000 of them.

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


async def watch(wire: Wire) -> SweepStatus:
    """
    The state of the lease sweep now.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    now_ms = await _now_ms(wire)
    swept, grace, notified = await wire.call(
        "HMGET", WATCH, "swept_ms", "grace_ms", "notified"
    )
    fields = {
        "idle_ms": None if swept is None else max(0, now_ms - int(swept)),
        "grace_ms": max(0, int(grace or 0) - now_ms),
        "notified": (notified or b"").decode(),
        "living": await wire.call("ZCARD", DEADLINES),
        "untold": await wire.call("HLEN", LOSSES),
    }

    return msgspec.convert(fields, SweepStatus)


def parse_record(member: bytes, packed: bytes, lasts_ms: int = 0) -> InstanceRecord:
    """
    The record of *member*, with *lasts_ms* left of its lease.
    """
    mad, _, instance = member.decode().partition(":")
    state, epoch, since, heard, ended, noticed = packed.decode().split(" ")
    fields = {
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

    return msgspec.convert(fields, InstanceRecord, strict=False)


async def _now_ms(wire: Wire) -> int:
    fields: Any = await wire.call("TIME")

    return int(fields[0]) * 1000 + int(fields[1]) // 1000
