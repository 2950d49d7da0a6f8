"""
MADs that were disabled for what they take of the bus: their records and Redis users.

A disabled user can neither connect nor publish. What the bus has acknowledged stays,
and is settled. Each server of a bus has its own users, so each is asked, replicas too.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
from redis.exceptions import ResponseError

from everbus.bus.bus_servers import bus_servers, reachable
from everbus.bus.errors import Forbidden
from everbus.bus.keys import EDGE, GATEWAY
from everbus.bus.wire import Wire
from everbus.gateway.store.scripts import write_at_all_times

# Hash: MAD → its `DisabledMad`.
DISABLED = "eb:disabled"
# Field of that hash, no name of a MAD: why managers cannot disable users.
_UNENFORCED = ":unenforced"
# Users that are no MAD's.
_OTHERS = frozenset({GATEWAY, EDGE, "default"})
TIMEOUT_S = 2.0

Switched = Literal["switched", "unchanged", "missing"]


class DisabledMad(msgspec.Struct, frozen=True, kw_only=True):
    """
    A MAD that took more than a bound allows.

    Attributes:
        bound: name of the bound; *value* is above *limit*.
        by: the manager that noticed it.
        off: whether its Redis user is off; without ACLs it has none of its own.
    """

    mad: str
    bound: str
    value: int
    limit: int
    at_ms: int
    by: str = ""
    off: bool = False

    @property
    def shown(self) -> str:
        """
        The reason as text.
        """
        state = "disabled" if self.off else "not disabled: it has no user of its own"
        return f"{self.mad} ({self.bound}: {self.value:,} > {self.limit:,}; {state})"


async def record(wire: Wire, disabled: DisabledMad) -> None:
    """
    Store the record for doctor and `everbus mads`.

    Raises:
        EverbusError: the bus is away, or refuses.
    """
    packed = msgspec.json.encode(disabled)
    await write_at_all_times(wire, "HSET", DISABLED, disabled.mad, packed)


async def record_rights(wire: Wire, reason: str) -> None:
    """
    Store why managers cannot disable users; empty: they can.

    Raises:
        EverbusError: the bus is away, or refuses.
    """
    if reason:
        await wire.call("HSET", DISABLED, _UNENFORCED, reason)
    else:
        await wire.call("HDEL", DISABLED, _UNENFORCED)


def parse_records(pairs: Sequence[bytes]) -> tuple[tuple[DisabledMad, ...], str]:
    """
    The records in a reply to HGETALL, and why managers cannot disable users.
    """
    found: list[DisabledMad] = []
    reason = ""
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if name.decode() == _UNENFORCED:
            reason = value.decode()
            continue
        found.append(msgspec.json.decode(value, type=DisabledMad))
    return tuple(sorted(found, key=lambda one: one.mad)), reason


async def disabled_mads(wire: Wire) -> tuple[DisabledMad, ...]:
    """
    The records of all MADs that are over a bound.

    Raises:
        EverbusError: the bus is away, or refuses.
    """
    return parse_records(await wire.call("HGETALL", DISABLED))[0]


async def missing_rights(url: str) -> str:
    """
    Why this process cannot disable users; empty if it can.

    Raises:
        EverbusError: the bus is away.
    """
    async with _nodes(url) as wires:
        for wire in wires:
            try:
                await wire.call("ACL", "GETUSER", "default", timeout_s=TIMEOUT_S)
                # Without a rule it changes nothing.
                await wire.call("ACL", "SETUSER", "default")
                # A name that no user has: what counts is whether it may be asked.
                await wire.call("CLIENT", "KILL", "USER", "everbus:nobody")
            except (Forbidden, ResponseError) as error:
                if "No such user" in str(error):
                    continue
                return str(error)
    return ""


async def switch_user(url: str, mad: str, *, on: bool) -> Switched:
    """
    Switch the Redis user of *mad* on or off on each node; off ends its connections.

    Returns `missing` if no node has such a user, `unchanged` if it was so before.

    Raises:
        EverbusError: a node is away, or refuses.
    """
    if mad in _OTHERS:
        return "missing"
    wanted = "on" if on else "off"
    states: set[Switched] = set()
    async with _nodes(url) as wires:
        for wire in wires:
            user = await wire.call("ACL", "GETUSER", mad, timeout_s=TIMEOUT_S)
            if user is None:
                continue
            if wanted.encode() in _flags(user):
                states.add("unchanged")
                continue
            await wire.call("ACL", "SETUSER", mad, wanted)
            if not on:
                await wire.call("CLIENT", "KILL", "USER", mad)
            states.add("switched")
    if "switched" in states:
        return "switched"
    return "unchanged" if states else "missing"


def _flags(user: list[Any]) -> list[bytes]:
    """
    The flags in a reply to ACL GETUSER: a list, or one text.
    """
    fields = dict(zip(user[::2], user[1::2], strict=True))
    flags: bytes | list[bytes] = fields[b"flags"]
    return flags.split() if isinstance(flags, bytes) else flags


async def connections_by_user(url: str) -> dict[str, int]:
    """
    User → its connections on the node where it has most.

    Raises:
        EverbusError: a node is away, or refuses.
    """
    found: dict[str, int] = {}
    async with _nodes(url) as wires:
        for wire in wires:
            text = await wire.call("CLIENT", "LIST", "TYPE", "normal")
            text += await wire.call("CLIENT", "LIST", "TYPE", "pubsub")
            counts: dict[str, int] = {}
            for part in text.split():
                if part.startswith(b"user="):
                    user = part[5:].decode()
                    counts[user] = counts.get(user, 0) + 1
            found |= {u: max(n, found.get(u, 0)) for u, n in counts.items()}
    return found


async def most_connections(url: str) -> int:
    """
    Connections of all users on the node that has most.

    Raises:
        EverbusError: a node is away, or refuses.
    """
    most = 0
    async with _nodes(url) as wires:
        for wire in wires:
            info = await wire.call("INFO", "clients", timeout_s=TIMEOUT_S)
            for line in info.splitlines():
                if line.startswith(b"connected_clients:"):
                    most = max(most, int(line.partition(b":")[2]))
    return most


@asynccontextmanager
async def _nodes(url: str) -> AsyncIterator[list[Wire]]:
    """
    A connection to each server that answers, closed at the end; replicas may be away.
    """
    async with bus_servers(url, name="everbus-quota") as servers:
        yield [one.wire for one in reachable(servers)]
