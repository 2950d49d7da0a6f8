"""
INFO and CONFIG of a Redis or Valkey server, and weaknesses of its settings.

Read at the start of a manager and by the health indicators. A server that hides its
configuration (most managed ones forbid CONFIG) still shows most of it in INFO; the rest
is then unknown, which stops no manager.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from everbus.bus.wire import Command

# One command each: Redis before 7.0 takes one name a call.
_SETTINGS = (
    "appendfsync",
    "maxmemory-clients",
    "min-replicas-to-write",
    "notify-keyspace-events",
    "proto-max-bulk-len",
    "replica-priority",
    "timeout",
)
COMMANDS: tuple[Command, ...] = (
    ("INFO",),
    *(("CONFIG", "GET", name) for name in _SETTINGS),
)

# The largest argument of ours: a commit of 256 sessions of 48 KiB, and twice a batch of
# 8 MiB (entries, and the patches of events).
LARGEST_BULK = 256 * 48 * 1024 + 2 * 8 * 1024 * 1024
MOST_BULK = 64 * 1024 * 1024

# First release of each line without CVE-2025-49844, -46817, -46818 and -46819: a user
# with scripts can take the server over. Other lines never got a fix.
Version = tuple[int, int, int]
FIXED: dict[str, tuple[Version, ...]] = {
    "redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}


class Follower(NamedTuple):
    """
    A replica of the server.

    Attributes:
        lag_s: seconds since its last acknowledgement.
    """

    host: str
    port: int
    online: bool
    lag_s: int


class ServerReport(NamedTuple):
    """
    One server at one moment; hidden values are None.

    Attributes:
        info: fields of INFO.
        settings: known settings of its configuration.
        forbidden: whether it refuses CONFIG.
        address: `host:port`, for people.
        is_primary: whether it serves keys.
        trouble: why it gives no answer; then nothing else is known.
        users: names of its users; empty if it does not show them.
        skew_ms: how far this host's clock is ahead of the server's.
    """

    info: dict[str, str]
    settings: dict[str, str]
    forbidden: bool = False
    address: str = ""
    is_primary: bool = True
    trouble: str = ""
    users: frozenset[str] = frozenset()
    skew_ms: int = 0

    @property
    def flavour(self) -> str:
        """
        `valkey` or `redis`.
        """
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> Version:
        """
        Its version; Valkey's own, though it also reports a Redis version.
        """
        info = self.info
        text = info.get("valkey_version") or info.get("redis_version", "0")
        parts = [int(part) for part in text.split(".")[:3] if part.isdecimal()]
        major, minor, patch = [*parts, 0, 0, 0][:3]

        return major, minor, patch

    @property
    def persists(self) -> bool:
        """
        Whether the server keeps an append-only file.
        """
        return self.info.get("aof_enabled") == "1"

    @property
    def evicts(self) -> bool:
        """
        Whether the server drops keys when its memory is full.
        """
        return self.info.get("maxmemory_policy", "noeviction") != "noeviction"

    @property
    def notifies(self) -> bool | None:
        """
        Whether the server notifies of expired keys: needs K or E, and x or A.
        """
        flags = self.settings.get("notify-keyspace-events")
        if flags is None:
            return None
        return bool(set("KE") & set(flags)) and bool(set("xA") & set(flags))

    @property
    def followers(self) -> list[Follower]:
        """
        The server's replicas.
        """
        count = self.number("connected_slaves")
        lines = (self.info.get(f"slave{n}", "") for n in range(int(count)))

        return [_follower(line) for line in lines if line]

    def number(self, field: str) -> float:
        """
        A number from INFO; 0 if it is missing.
        """
        return float(self.info.get(field, "0") or 0)


def server_of(replies: Sequence[Any]) -> ServerReport:
    """
    Parse the replies to COMMANDS; an error among them is a refusal.
    """
    info, *settings_replies = replies
    settings: dict[str, str] = {}
    forbidden = False
    for reply in settings_replies:
        if isinstance(reply, Exception):
            forbidden = True
            continue
        texts = [part.decode(errors="replace") for part in reply]
        settings |= dict(zip(texts[::2], texts[1::2], strict=True))

    return ServerReport(_fields(info), settings, forbidden)


def _fields(info: Any) -> dict[str, str]:
    if not isinstance(info, bytes):
        return {}
    lines = info.decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))

    return {name: value.strip() for name, colon, value in pairs if colon}


def _follower(line: str) -> Follower:
    pairs = (part.partition("=") for part in line.split(","))
    fields = {name: value for name, _, value in pairs}

    return Follower(
        fields.get("ip", ""),
        int(fields.get("port", 0)),
        fields.get("state") == "online",
        int(fields.get("lag", 0)),
    )


class Weakness(NamedTuple):
    """
    A setting of the server that breaks or weakens a promise.

    Attributes:
        said: its present value, in a word or two.
        unsafe: sessions could be lost, so that a manager refuses to start.
    """

    setting: str
    said: str
    what: str
    remedy: str
    unsafe: bool = False


CONFIG_FORBIDDEN = Weakness(
    "CONFIG",
    "forbidden",
    "the server does not show its configuration: appendfsync, notifications and "
    "min-replicas-to-write are not checked",
    "compare with gateway/health/README.md by hand, or allow +config|get",
)
NOTIFICATIONS_OFF = Weakness(
    "notify-keyspace-events",
    "off",
    "no events of expired keys: lost MADs are found by the sweep alone",
    "CONFIG SET notify-keyspace-events Ex",
)
NO_MIN_REPLICAS = Weakness(
    "min-replicas-to-write",
    "0",
    "0: a primary that is cut off from its replicas goes on accepting writes that a "
    "failover then drops",
    "CONFIG SET min-replicas-to-write 1 on the primary and on each replica (and in "
    "redis.conf)",
    unsafe=True,
)


def weaknesses(server: ServerReport) -> list[Weakness]:
    """
    The settings of the server that break or weaken a promise.
    """
    if not server.info:
        return [
            Weakness(
                "INFO",
                "forbidden",
                "the server does not show whether it persists and never evicts",
                "see to appendonly yes and maxmemory-policy noeviction by hand",
            )
        ]
    return [*_unsafe(server), *_weak(server)]


def _unsafe(server: ServerReport) -> Iterator[Weakness]:
    if not server.persists:
        yield Weakness(
            "appendonly",
            "AOF is off",
            "the server keeps no append-only file: its restart loses what "
            "MongoDB does not hold yet",
            "CONFIG SET appendonly yes (and in redis.conf)",
            unsafe=True,
        )
    if server.evicts:
        policy = server.info["maxmemory_policy"]
        yield Weakness(
            "maxmemory-policy",
            policy,
            f"with {policy} the server drops keys when its memory is full, "
            "streams and sessions among them",
            "CONFIG SET maxmemory-policy noeviction (and in redis.conf)",
            unsafe=True,
        )
    if server.followers and server.settings.get("min-replicas-to-write") == "0":
        yield NO_MIN_REPLICAS


def _weak(server: ServerReport) -> Iterator[Weakness]:
    if server.forbidden:
        yield CONFIG_FORBIDDEN
    fsync = server.settings.get("appendfsync", "always")
    if server.persists and fsync != "always":
        yield Weakness(
            "appendfsync",
            fsync,
            f"{fsync}: a power loss of the host can take the last second or more",
            "CONFIG SET appendfsync always, if that matters here",
        )
    if server.notifies is False:
        yield NOTIFICATIONS_OFF
    yield from _unbounded(server)


def _unbounded(server: ServerReport) -> Iterator[Weakness]:
    """
    The bounds of the server's clients: what one connection can take of it.
    """
    bulk = int(server.settings.get("proto-max-bulk-len", LARGEST_BULK))
    if bulk > MOST_BULK:
        yield Weakness(
            "proto-max-bulk-len",
            f"{bulk // 2**20} MiB",
            f"one argument of a command may have {bulk:,} bytes, so a MAD can hold up "
            "all others with one entry",
            "CONFIG SET proto-max-bulk-len 32mb (and in redis.conf)",
        )
    elif bulk < LARGEST_BULK:
        yield Weakness(
            "proto-max-bulk-len",
            f"{bulk:,} bytes",
            f"a commit may need {LARGEST_BULK:,} bytes in one argument, and the server "
            f"refuses more than {bulk:,}: a lane can stand still",
            "CONFIG SET proto-max-bulk-len 32mb (and in redis.conf)",
        )
    if server.settings.get("maxmemory-clients") == "0":
        yield Weakness(
            "maxmemory-clients",
            "0",
            "the buffers of all connections together have no bound",
            "CONFIG SET maxmemory-clients 192mb (and in redis.conf)",
        )
    if server.settings.get("timeout") == "0":
        yield Weakness(
            "timeout",
            "0",
            "idle connections stay for ever",
            "CONFIG SET timeout 600 (and in redis.conf)",
        )


def unpatched(server: ServerReport) -> bool | None:
    """
    Whether scripts can break out of its version; None if its line never got a fix,
    so that only its distributor can know.
    """
    fixed = FIXED[server.flavour]
    for floor in fixed:
        if server.version[:2] == floor[:2]:
            return server.version < floor
    return None if server.version < fixed[-1] else False
