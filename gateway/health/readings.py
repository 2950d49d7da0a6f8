"""
What the health of a whole bus is judged by, read in a few pipelined writes.

Only reads, each bounded: no KEYS, no SCAN, no entry's content. Streams beyond
MOST_STREAMS are left out, and the reading says so. What one user may not ask is
missing from the readings, and stops nothing.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

from bus import keys
from bus.errors import EverbusError, Forbidden
from bus.introduction import partitions_in
from bus.wire import Command, Wire
from gateway.health import server as servers
from gateway.health.server import Server, server_of
from gateway.health.status import STATUS, Status, skew_ms, statuses_in
from gateway.store import names
from gateway.store.leases import DEADLINES
from gateway.store.scripts import load_scripts, script

# Streams whose oldest entries are looked for, and how many a script looks at.
MOST_STREAMS = 4_000
AGES_AT_ONCE = 200
COMMANDS_AT_ONCE = 500
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
        replicas: managers that live.
        skew_ms: how far the clock of the host that asks is ahead.
        streams: ingress streams there are; *looked_at* of them were looked at, 0
            if the bus does not let us.
        overdue_s: how long the lease of a MAD has been over that nobody declared
            lost; 0 if none.
        archiver: the owner of the archiver's lease; empty if nobody holds it.
        priorities: of the server's replicas, as far as they could be asked.
        ping_ms: how long the slowest lane took to reply; None: not asked.
        outbox_limit: records a lane may hold back.
    """

    now_ms: int
    server: Server
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
    priorities: tuple[int, ...] = ()
    ping_ms: float | None = None
    outbox_limit: int = 50_000

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
    The readings of the bus that *wire* leads to.

    Raises:
        WireFailed: the bus is away.
        Unavailable: no manager ever started on it.
        Forbidden, Unauthenticated: it does not let us in.
    """
    asked_at = time.time()
    seconds, micros = await wire.call("TIME", timeout_s=TIMEOUT_S)
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    skew = skew_ms(asked_at, time.time(), now_ms)
    told = await wire.exchange(list(servers.COMMANDS), timeout_s=TIMEOUT_S)
    whole = await _whole(wire)
    partitions = partitions_in(whole[0])
    mads = sorted(mad.decode() for mad in whole[1])
    lanes = _lanes(partitions, presence=whole[6] is not None)
    ages, looked_at = await _ages(wire, lanes, mads)

    return Readings(
        now_ms=now_ms,
        server=server_of(told),
        partitions=partitions,
        replicas=_living(whole[2], now_ms),
        statuses=tuple(statuses_in(whole[3][1::2])),
        lanes=await _lane_readings(wire, lanes, ages, now_ms),
        skew_ms=skew,
        streams=len(lanes) * len(mads),
        looked_at=looked_at,
        leases=int(whole[4]),
        overdue_s=_overdue_s(whole[5], now_ms),
        archiver=(whole[7] or b"").decode(),
        outbox_limit=outbox_limit,
    )


async def _whole(wire: Wire) -> list[Any]:
    """
    What there is once for a bus.

    Raises:
        Forbidden: the bus does not let us ask for it.
    """
    replies = await wire.exchange(
        [
            ("HGET", keys.CONFIG, "partitions"),
            ("HKEYS", keys.MADS),
            ("ZRANGE", names.REPLICAS, 0, -1, "WITHSCORES"),
            ("HGETALL", STATUS),
            ("ZCARD", DEADLINES),
            ("ZRANGE", DEADLINES, 0, 0, "WITHSCORES"),
            ("GET", names.epoch(keys.PRESENCE)),
            ("GET", names.owner(ARCHIVER)),
        ],
        timeout_s=TIMEOUT_S,
    )
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise Forbidden(
                f"the bus refuses: {reply}. The health of a bus is asked with the "
                "managers' own EVERBUS_REDIS_URL"
            )
    return replies


def _lanes(partitions: int, *, presence: bool) -> list[str]:
    """
    The lanes' names; that of heartbeats once somebody has ever owned it.
    """
    numbered = [str(p) for p in range(partitions)]

    return [*numbered, keys.PRESENCE] if presence else numbered


def _living(scored: Sequence[bytes], now_ms: int) -> tuple[str, ...]:
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
    share = max(1, MOST_STREAMS // max(1, len(lanes)))
    asked: list[tuple[list[str], str]] = []
    for lane in lanes:
        ingress = [keys.ingress(lane, mad) for mad in mads[:share]]
        asked += (
            (ingress[first : first + AGES_AT_ONCE], keys.GROUP)
            for first in range(0, len(ingress), AGES_AT_ONCE)
        )
        if lane != keys.PRESENCE:
            asked.append(([names.outbox(int(lane))], names.ARCHIVER_GROUP))
    try:
        await load_scripts(wire, "ages")
        commands = [script("ages", streams, group) for streams, group in asked]
        replies = await _exchanged(wire, commands)
    except Forbidden:
        return {}, 0
    found: dict[str, tuple[str, str]] = {}
    for (streams, _), ids in zip(asked, replies, strict=True):
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
    commands: list[Command] = []
    for lane in lanes:
        commands += (
            ("GET", names.owner(lane)),
            ("GET", f"eb:{{{lane}}}:backlog"),
            ("XLEN", f"eb:{{{lane}}}:dead"),
            ("XREVRANGE", f"eb:{{{lane}}}:dead", "+", "-", "COUNT", 1),
            ("HLEN", f"eb:{{{lane}}}:publishers"),
        )
    replies = await _exchanged(wire, commands)
    waiting = _waiting(ages, now_ms)
    found = []
    for n, lane in enumerate(lanes):
        owner, backlog, dead, newest, publishers = replies[5 * n : 5 * n + 5]
        pending_s, unread_s, outbox_s = waiting.get(lane, (0.0, 0.0, 0.0))
        found.append(
            LaneReading(
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
        )
    return tuple(found)


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


async def _exchanged(wire: Wire, commands: Sequence[Command]) -> list[Any]:
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
    How old a stream entry is, by its id; 0 without one.

    Whoever publishes may choose its ids, so one may be of any time: a MAD that
    chooses those of 1970 is told of, and nothing more.
    """
    return max(0.0, (now_ms - _ms(identifier)) / 1000) if identifier else 0.0


async def follower_priorities(url: str, server: Server) -> tuple[int, ...]:
    """
    The replica-priority of each of the server's replicas that answers; one that
    cannot be asked from here is left out.
    """
    found = []
    for follower in server.followers[:5]:
        wire = Wire(_at(url, follower.host, follower.port), name="everbus-doctor")
        try:
            told = await wire.call("CONFIG", "GET", "replica-priority", timeout_s=1.0)
            found.append(int(told[1]))
        except (EverbusError, ResponseError, IndexError):
            continue
        finally:
            await wire.close()
    return tuple(found)


def _at(url: str, host: str, port: int) -> str:
    """
    *url* with another host and port; credentials and options stay.
    """
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    shown = f"[{host}]" if ":" in host else host

    return parts._replace(netloc=f"{login}{at}{shown}:{port}").geturl()
