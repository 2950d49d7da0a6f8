"""
Where commands go on a Redis Cluster: the key of a command, the slot of a key, and the
URLs of nodes. Only arithmetic: nothing here asks a server.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from redis.crc import key_slot

from bus.wire import Argument, Command

# Scheme of a cluster's URL → that of each of its nodes.
SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
DEFAULT_PORT = 6379

# Where the key stands, if it is not the first argument; else there is none.
_SECOND = frozenset({"XINFO", "XGROUP", "OBJECT", "MEMORY"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})
_STREAMS = frozenset({"XREAD", "XREADGROUP"})
# Of these it does not matter which node answers.
ANYWHERE = frozenset({"PING", "PUBLISH", "TIME"})
# These ask one node or change it; what it does is not done on the others.
LOCAL = frozenset(
    {
        "ACL",
        "BGREWRITEAOF",
        "BGSAVE",
        "CLIENT",
        "CLUSTER",
        "COMMAND",
        "CONFIG",
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "INFO",
        "KEYS",
        "LASTSAVE",
        "LATENCY",
        "ROLE",
        "SAVE",
        "SCAN",
        "SLOWLOG",
        "WAIT",
        "WAITAOF",
    }
)


def is_cluster(url: str) -> bool:
    """
    Whether *url* names a Redis Cluster, by its scheme.
    """
    return url.partition("://")[0] in SCHEMES


class Places(NamedTuple):
    """
    The nodes that a cluster's URL names, and how to reach these and others.

    Attributes:
        addresses: `host:port` of each node named.
    """

    addresses: tuple[str, ...]
    scheme: str
    user: str
    query: str

    def url(self, address: str) -> str:
        """
        The URL of one node, with the credentials and options of the cluster's.
        """
        host, _, port = address.rpartition(":")
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{self.scheme}://{self.user}{host}:{port}{self.query}"

    def __repr__(self) -> str:
        return f"Places({', '.join(self.addresses)})"

    def __rich_repr__(self) -> Iterable[str]:
        # rich prints locals in tracebacks, and the user part holds a password.
        yield from self.addresses


def places_in(url: str) -> Places:
    """
    What *url* says, as in `redis+cluster://user:secret@one:6379,two:6379`.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    named = tuple(map(_address, hosts.split(",")))
    query = f"?{parts.query}" if parts.query else ""

    return Places(named, SCHEMES[parts.scheme], user + at, query)


def node_urls(url: str) -> list[str]:
    """
    A URL for each node that *url* names; for one server, its own.
    """
    if not is_cluster(url):
        return [url]
    places = places_in(url)

    return [places.url(address) for address in places.addresses]


def key_of(command: Command) -> Argument | None:
    """
    The key that decides where *command* goes; None if it has none.

    Only the first one is looked at: that the others share its slot is up to whoever
    makes the command, and the server refuses it if they do not.
    """
    verb = command[0]
    if verb in _SCRIPTS:
        return command[3] if command[2] else None
    if verb in _STREAMS:
        return command[command.index("STREAMS") + 1]
    if verb in ANYWHERE or verb in LOCAL or verb == "SCRIPT":
        return None
    return command[2 if verb in _SECOND else 1]


def slot_of(key: Argument) -> int:
    """
    The slot of *key*: by its hash tag, where it has one.
    """
    text = key.decode() if isinstance(key, bytes) else str(key)
    start = text.find("{") + 1
    end = text.find("}", start)

    return _slot(text[start:end] if start and end > start else text)


def by_slot(keys: Iterable[str]) -> list[Sequence[str]]:
    """
    *keys* in groups of one slot each, in the order in which they come.
    """
    groups: dict[int, list[str]] = {}
    for key in keys:
        groups.setdefault(slot_of(key), []).append(key)

    return list(groups.values())


# Few tags: one a partition. Keys without one are few as well.
@lru_cache(maxsize=4096)
def _slot(hashed: str) -> int:
    return key_slot(hashed.encode())


def _address(named: str) -> str:
    _, colon, port = named.rpartition(":")
    if colon and port.isdigit():
        return named
    return f"{named}:{DEFAULT_PORT}"
