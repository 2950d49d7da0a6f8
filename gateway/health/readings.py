"""
Readings of a whole bus for its indicators, in a few pipelined writes.

Only bounded reads: no KEYS, no SCAN, no content of entries. Streams beyond MAX_STREAMS
are left out, and the readings show how many. A read that the user may not make is
missing from the readings, and stops nothing.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError, TryAgainError

from everbus.bus import keys
from everbus.bus.bus_servers import BusServer, bus_servers
from everbus.bus.cluster_wire import is_of_one_node
from everbus.bus.errors import EverbusError, Forbidden
from everbus.bus.handshake import partitions_in
from everbus.bus.server_errors import refusal
from everbus.bus.wire import Command, Wire
from everbus.gateway.health.server_report import COMMANDS, ServerReport, server_of
from everbus.gateway.health.status import STATUS, Status, skew_ms, statuses_in
from everbus.gateway.store import key_names
from everbus.gateway.store.lease_records import DEADLINES
from everbus.gateway.store.mad_access import DISABLED, DisabledMad, parse_records
from everbus.gateway.store.scripts import load_scripts, script

# Streams whose oldest entries are read, in all and per script.
MAX_STREAMS = 4_000
AGES_AT_ONCE = 200
COMMANDS_AT_ONCE = 500
# Commands of `_commands_of`.
COMMANDS_A_LANE = 5
TIMEOUT_S = 5.0
ARCHIVER = "archiver"


class LaneReading(NamedTuple):
    """
    One lane at one moment; ages in seconds, 0 where nothing waits.

    Attributes:
        owner: `<epoch>:<replica>/<life>`; empty if it has none.
        pending_s: of the oldest command that was read and not settled.
        unread_s: of the oldest command that was not read.
        backlog: outbox records that MongoDB does not hold.
        outbox_s: of the oldest of them.
    """

    name: str
    owner: str = ""
    pending_s: float = 0.0
    unread_s: float = 0.0
    backlog: int = 0
    outbox_s: float = 0.0
    dead: int = 0
    newest_dead_ms: int = 0
    publishers: int = 0


class Readings(NamedTuple):
    """
    A whole bus at one moment, on its server's clock.

    Attributes:
        servers: every primary, then every replica; empty if they were not asked.
        replicas: managers that live.
        skew_ms: how far the clock of the host that asks is ahead.
        streams: ingress streams there are; *looked_at* of them were looked at, 0
            if the bus does not let us.
        overdue_s: how long the lease of a MAD has been over that nobody declared
            lost; 0 if none.
        archiver: the owner of the archiver's lease; empty if nobody holds it.
        ping_ms: how long the slowest lane took to reply; None: not asked.
        outbox_limit: records a lane may hold back.
        disabled: MADs above a quota.
        unenforced: why managers cannot disable users; empty if they can.
    """

    now_ms: int
    servers: tuple[ServerReport, ...] = ()
    partitions: int = 0
    replicas: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    lanes: tuple[LaneReading, ...] = ()
    skew_ms: int = 0
    streams: int = 0
    looked_at: int = 0
    leases: int = 0
    overdue_s: float = 0.0
    archiver: str = ""
    ping_ms: float | None = None
    outbox_limit: int = 50_000
    disabled: tuple[DisabledMad, ...] = ()
    unenforced: str = ""

    def fresh(self) -> list[Status]:
        """
        The statuses of the processes that tell of themselves.
        """
        return [one for one in self.statuses if not one.stale(self.now_ms)]

    def recent(self, name: str) -> float:
        """
        What all processes counted of *name* lately.
        """
        return sum(one.recent.get(name, 0) for one in self.fresh())


async def read_bus(wire: Wire, *, outbox_limit: int = 50_000) -> Readings:
    """
    The readings of the bus that *wire* leads to, without those of its servers.

    Raises:
        WireFailed: the bus is away.
        Unavailable: no manager ever started on it.
        Forbidden, Unauthenticated: it does not let us in.
    """
    asked_at = time.time()
    now_ms = _time_ms(await wire.call("TIME", timeout_s=TIMEOUT_S))
    skew = skew_ms(asked_at, time.time(), now_ms)
    shared = await _read_shared_keys(wire)
    partitions = partitions_in(shared[0])
    mads = sorted(mad.decode() for mad in shared[1])
    lanes = _lanes(partitions, presence=shared[6] is not None)
    ages, looked_at = await _ages(wire, lanes, mads)
    disabled, unenforced = parse_records(shared[8])

    return Readings(
        now_ms=now_ms,
        partitions=partitions,
        replicas=_live_replicas(shared[2], now_ms),
        statuses=tuple(statuses_in(shared[3][1::2])),
        lanes=await _lane_readings(wire, lanes, ages, now_ms),
        skew_ms=skew,
        streams=len(lanes) * len(mads),
        looked_at=looked_at,
        leases=int(shared[4]),
        overdue_s=_overdue_s(shared[5], now_ms),
        archiver=(shared[7] or b"").decode(),
        outbox_limit=outbox_limit,
        disabled=disabled,
        unenforced=unenforced,
    )


async def read_servers(url: str) -> tuple[ServerReport, ...]:
    """
    The report of every server of the bus at *url*; all are asked at once.

    Raises:
        WireFailed: no server tells of the others.
        Forbidden, Unauthenticated, Unavailable: that server refuses.
    """
    async with bus_servers(url, name="everbus-health") as found:
        return tuple(await asyncio.gather(*map(_report, found)))


async def _report(server: BusServer) -> ServerReport:
    unknown = ServerReport({}, {}, address=server.address, is_primary=server.is_primary)
    if server.trouble is not None:
        return unknown._replace(trouble=server.trouble.message)
    asked_at = time.time()
    try:
        # Users are a manager's to see; without that right they are not known.
        clock, users, *rest = await server.wire.exchange(
            [("TIME",), ("ACL", "USERS"), *COMMANDS], timeout_s=TIMEOUT_S
        )
    except EverbusError as error:
        return unknown._replace(trouble=error.message)
    if isinstance(clock, ResponseError):
        return unknown._replace(trouble=refusal(clock).message)
    report = server_of(rest)

    return unknown._replace(
        info=report.info,
        settings=report.settings,
        forbidden=report.forbidden,
        users=_names(users),
        skew_ms=skew_ms(asked_at, time.time(), _time_ms(clock)),
    )


def _names(users: Any) -> frozenset[str]:
    if isinstance(users, ResponseError):
        return frozenset()
    return frozenset(name.decode(errors="replace") for name in users)


def _time_ms(reply: Any) -> int:
    seconds, micros = reply

    return int(seconds) * 1000 + int(micros) // 1000


async def _read_shared_keys(wire: Wire) -> list[Any]:
    """
    What there is once for a bus; of a node that is away, what an empty one would say.

    Raises:
        Forbidden: the bus does not let us ask for it.
        Unavailable: the node with the configuration of the bus is away.
    """
    asked: list[tuple[Command, Any]] = [
        (("HGET", keys.CONFIG, "partitions"), None),
        (("HKEYS", keys.MADS), []),
        (("ZRANGE", key_names.REPLICAS, 0, -1, "WITHSCORES"), []),
        (("HGETALL", STATUS), []),
        (("ZCARD", DEADLINES), 0),
        (("ZRANGE", DEADLINES, 0, 0, "WITHSCORES"), []),
        (("GET", key_names.epoch(keys.PRESENCE)), None),
        (("GET", key_names.owner(ARCHIVER)), None),
        (("HGETALL", DISABLED), []),
    ]
    replies = await wire.exchange([one for one, _ in asked], timeout_s=TIMEOUT_S)
    if is_of_one_node(replies[0]):
        raise refusal(replies[0])
    found = []
    for (_, empty), reply in zip(asked, replies, strict=True):
        if isinstance(reply, ResponseError) and not is_of_one_node(reply):
            raise Forbidden(
                f"the bus refuses: {reply}. The health of a bus is asked with the "
                "managers' own EVERBUS_REDIS_URL"
            )
        found.append(empty if isinstance(reply, ResponseError) else reply)
    return found


def _lanes(partitions: int, *, presence: bool) -> list[str]:
    """
    The lanes' names; that of heartbeats once somebody has ever owned it.
    """
    numbered = [str(p) for p in range(partitions)]

    return [*numbered, keys.PRESENCE] if presence else numbered


def _live_replicas(scored: Sequence[bytes], now_ms: int) -> tuple[str, ...]:
    pairs = zip(scored[::2], scored[1::2], strict=True)

    return tuple(sorted(name.decode() for name, end in pairs if float(end) >= now_ms))


def _overdue_s(first: Sequence[bytes], now_ms: int) -> float:
    return max(0.0, (now_ms - float(first[1])) / 1000) if first else 0.0


async def _ages(
    wire: Wire, lanes: Sequence[str], mads: Sequence[str]
) -> tuple[dict[str, tuple[str, str]], int]:
    """
    Stream → ids of its oldest pending and its oldest unread entry, and how many
    ingress streams were looked at.
    """
    share = max(1, MAX_STREAMS // max(1, len(lanes)))
    asked: list[tuple[list[str], str]] = []
    for lane in lanes:
        ingress = [keys.ingress(lane, mad) for mad in mads[:share]]
        asked += (
            (ingress[first : first + AGES_AT_ONCE], keys.GROUP)
            for first in range(0, len(ingress), AGES_AT_ONCE)
        )
        if lane != keys.PRESENCE:
            asked.append(([key_names.outbox(int(lane))], key_names.ARCHIVER_GROUP))
    try:
        await load_scripts(wire, "ages")
        commands = [script("ages", streams, group) for streams, group in asked]
        replies = await _exchange(wire, commands)
    except Forbidden:
        return {}, 0
    found: dict[str, tuple[str, str]] = {}
    for (streams, _), ids in zip(asked, replies, strict=True):
        if is_of_one_node(ids) or isinstance(ids, TryAgainError):
            continue  # a slot that is away, or on its way
        if isinstance(ids, ResponseError):
            return {}, 0
        texts = [one.decode() for one in ids]
        found |= dict(
            zip(streams, zip(texts[::2], texts[1::2], strict=True), strict=True)
        )

    return found, len(lanes) * min(share, len(mads))


async def _lane_readings(
    wire: Wire,
    lanes: Sequence[str],
    ages: dict[str, tuple[str, str]],
    now_ms: int,
) -> tuple[LaneReading, ...]:
    replies = await _exchange(wire, [c for lane in lanes for c in _commands_of(lane)])
    waiting = _waiting(ages, now_ms)
    rows = zip(*[iter(replies)] * COMMANDS_A_LANE, strict=True)

    return tuple(
        _lane_reading(lane, row, waiting.get(lane, (0.0, 0.0, 0.0)))
        for lane, row in zip(lanes, rows, strict=True)
    )


def _commands_of(lane: str) -> tuple[Command, ...]:
    return (
        ("GET", key_names.owner(lane)),
        ("GET", f"eb:{{{lane}}}:backlog"),
        ("XLEN", f"eb:{{{lane}}}:dead"),
        ("XREVRANGE", f"eb:{{{lane}}}:dead", "+", "-", "COUNT", 1),
        ("HLEN", f"eb:{{{lane}}}:publishers"),
    )


def _lane_reading(
    lane: str, replies: Sequence[Any], waiting: tuple[float, float, float]
) -> LaneReading:
    if any(map(is_of_one_node, replies)):
        return LaneReading(lane)  # its node is away: nobody serves it
    owner, backlog, dead, newest, publishers = replies
    pending_s, unread_s, outbox_s = waiting

    return LaneReading(
        name=lane,
        owner=(owner or b"").decode(),
        pending_s=pending_s,
        unread_s=unread_s,
        backlog=int(backlog or 0),
        outbox_s=outbox_s,
        dead=dead,
        newest_dead_ms=_ms(newest[0][0].decode()) if newest else 0,
        publishers=publishers,
    )


def _waiting(
    ages: dict[str, tuple[str, str]], now_ms: int
) -> dict[str, tuple[float, float, float]]:
    """
    Lane → ages of its oldest pending, unread and unconfirmed entry.
    """
    found: dict[str, tuple[float, float, float]] = {}
    for stream, (pending, unread) in ages.items():
        lane = stream.partition("{")[2].partition("}")[0]
        first, second, third = found.get(lane, (0.0, 0.0, 0.0))
        if stream.endswith(":outbox"):
            third = max(_age_s(pending, now_ms), _age_s(unread, now_ms))
        else:
            first = max(first, _age_s(pending, now_ms))
            second = max(second, _age_s(unread, now_ms))
        found[lane] = (first, second, third)
    return found


async def _exchange(wire: Wire, commands: Sequence[Command]) -> list[Any]:
    """
    The replies to however many commands, some at a time.
    """
    replies: list[Any] = []
    for first in range(0, len(commands), COMMANDS_AT_ONCE):
        some = commands[first : first + COMMANDS_AT_ONCE]
        replies += await wire.exchange(some, timeout_s=TIMEOUT_S)
    return replies


def _ms(identifier: str) -> int:
    return int(identifier.partition("-")[0])


def _age_s(identifier: str, now_ms: int) -> float:
    """
    The age of a stream entry from its id; 0 without one.

    A publisher may choose ids, so an id may be of any time: ids of 1970 show up
    as an age, and do nothing more.
    """
    return max(0.0, (now_ms - _ms(identifier)) / 1000) if identifier else 0.0
