"""
What a Redis or Valkey server says of itself, and what that means for promises.

Read at the start of a manager and by the health indicators. A server that keeps
its configuration to itself (CONFIG is forbidden on most managed ones) still tells
the greater part with INFO; the rest is then unknown, which stops nobody.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bus.wire import Command

# One command each: Redis before 7.0 takes one name a call.
_SETTINGS = (
    "appendfsync",
    "min-replicas-to-write",
    "notify-keyspace-events",
    "replica-priority",
)
COMMANDS: tuple[Command, ...] = (
    ("INFO",),
    *(("CONFIG", "GET", name) for name in _SETTINGS),
)

# The first of each line without CVE-2025-49844, -46817, -46818 and -46819: whoever
# may run scripts can take the server over. Lines that are not here never got one.
Version = tuple[int, int, int]
FIXED: dict[str, tuple[Version, ...]] = {
    "redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}


class Follower(NamedTuple):
    """
    A replica of the server.

    Attributes:
        lag_s: since its last acknowledgement.
    """

    host: str
    port: int
    online: bool
    lag_s: int


class Server(NamedTuple):
    """
    One server at one moment; what is not told is None.

    Attributes:
        info: INFO's fields, as they came.
        settings: those of its configuration that it tells.
        forbidden: whether it refuses to tell its configuration.
    """

    info: dict[str, str]
    settings: dict[str, str]
    forbidden: bool = False

    @property
    def flavour(self) -> str:
        """
        `valkey` or `redis`.
        """
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> Version:
        """
        The version of its own line; Valkey tells the Redis it resembles as well.
        """
        told = self.info.get("valkey_version") or self.info.get("redis_version", "0")
        parts = [int(part) for part in told.split(".")[:3] if part.isdecimal()]
        major, minor, patch = [*parts, 0, 0, 0][:3]

        return major, minor, patch

    @property
    def keeps(self) -> bool:
        """
        Whether an append-only file is kept.
        """
        return self.info.get("aof_enabled") == "1"

    @property
    def evicts(self) -> bool:
        """
        Whether it would drop keys when its memory is full.
        """
        return self.info.get("maxmemory_policy", "noeviction") != "noeviction"

    @property
    def notifies(self) -> bool | None:
        """
        Whether it tells of expired keys: needs K or E, and x or A.
        """
        flags = self.settings.get("notify-keyspace-events")
        if flags is None:
            return None
        return bool(set("KE") & set(flags)) and bool(set("xA") & set(flags))

    @property
    def followers(self) -> list[Follower]:
        """
        The replicas that it knows of.
        """
        count = self.number("connected_slaves")
        lines = (self.info.get(f"slave{n}", "") for n in range(int(count)))

        return [_follower(line) for line in lines if line]

    def number(self, field: str) -> float:
        """
        One of INFO's numbers; 0 if it is not there.
        """
        return float(self.info.get(field, "0") or 0)


def server_of(replies: Sequence[Any]) -> Server:
    """
    The server in the replies to COMMANDS; an error among them is a refusal.
    """
    info, *told = replies
    settings: dict[str, str] = {}
    forbidden = False
    for reply in told:
        if isinstance(reply, Exception):
            forbidden = True
            continue
        texts = [part.decode(errors="replace") for part in reply]
        settings |= dict(zip(texts[::2], texts[1::2], strict=True))

    return Server(_fields(info), settings, forbidden)


def _fields(info: Any) -> dict[str, str]:
    if not isinstance(info, bytes):
        return {}
    lines = info.decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))

    return {name: value.strip() for name, colon, value in pairs if colon}


def _follower(line: str) -> Follower:
    pairs = (part.partition("=") for part in line.split(","))
    told = {name: value for name, _, value in pairs}

    return Follower(
        told.get("ip", ""),
        int(told.get("port", 0)),
        told.get("state") == "online",
        int(told.get("lag", 0)),
    )


class Trouble(NamedTuple):
    """
    A way in which a server is not what the promises rest on.

    Attributes:
        said: how the setting is, in a word or two.
        unsafe: sessions could be lost, so that a manager refuses to start.
    """

    setting: str
    said: str
    what: str
    remedy: str
    unsafe: bool = False


def troubles(server: Server) -> list[Trouble]:
    """
    What of the server's configuration breaks or weakens a promise.
    """
    if not server.info:
        return [
            Trouble(
                "INFO",
                "forbidden",
                "the server does not tell whether it keeps and never evicts",
                "see to appendonly yes and maxmemory-policy noeviction by hand",
            )
        ]
    return [*_unsafe(server), *_weak(server)]


def _unsafe(server: Server) -> list[Trouble]:
    found = []
    if not server.keeps:
        found.append(
            Trouble(
                "appendonly",
                "AOF is off",
                "the server keeps no append-only file: its restart loses what "
                "MongoDB does not hold yet",
                "CONFIG SET appendonly yes (and in redis.conf)",
                unsafe=True,
            )
        )
    if server.evicts:
        policy = server.info["maxmemory_policy"]
        found.append(
            Trouble(
                "maxmemory-policy",
                policy,
                f"with {policy} the server drops keys when its memory is full, "
                "streams and sessions among them",
                "CONFIG SET maxmemory-policy noeviction (and in redis.conf)",
                unsafe=True,
            )
        )
    return found


def _weak(server: Server) -> list[Trouble]:
    found = []
    if server.forbidden:
        found.append(
            Trouble(
                "CONFIG",
                "forbidden",
                "the server keeps its configuration to itself: appendfsync, "
                "notifications and min-replicas-to-write are not checked",
                "compare with gateway/README.md by hand, or allow +config|get",
            )
        )
    fsync = server.settings.get("appendfsync", "always")
    if server.keeps and fsync != "always":
        found.append(
            Trouble(
                "appendfsync",
                fsync,
                f"{fsync}: a power loss of the host can take the last second or more",
                "CONFIG SET appendfsync always, if that matters here",
            )
        )
    if server.notifies is False:
        found.append(
            Trouble(
                "notify-keyspace-events",
                "off",
                "no events of expired keys: lost MADs are found by the sweep alone",
                "CONFIG SET notify-keyspace-events Ex",
            )
        )
    if server.followers and server.settings.get("min-replicas-to-write") == "0":
        found.append(
            Trouble(
                "min-replicas-to-write",
                "0",
                "0: a primary that is cut off from its replicas goes on accepting "
                "writes that a failover then drops",
                "CONFIG SET min-replicas-to-write 1",
            )
        )
    return found


def unpatched(server: Server) -> bool | None:
    """
    Whether its version is known to let scripts break out; None if its line never
    got a fix of its own, so that only its distributor can tell.
    """
    fixed = FIXED[server.flavour]
    for floor in fixed:
        if server.version[:2] == floor[:2]:
            return server.version < floor
    return None if server.version < fixed[-1] else False
