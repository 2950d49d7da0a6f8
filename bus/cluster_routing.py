"""
Routing on a Redis Cluster: the key of a command, the slot of a key, and the URLs of
nodes. Only arithmetic: nothing here asks a server.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from redis.crc import key_slot

from everbus.bus.wire import Argument, Command

# Scheme of a cluster's URL → that of each of its nodes.
SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
DEFAULT_PORT = 6379
SLOTS = 16_384

# Commands whose key is not the first argument.
_SECOND = frozenset({"XINFO", "XGROUP", "OBJECT", "MEMORY"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})
_STREAMS = frozenset({"XREAD", "XREADGROUP"})
# Any node may answer these.
ANYWHERE = frozenset({"PING", "PUBLISH", "TIME"})
# These read or change one node only.
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


class ClusterAddress(NamedTuple):
    """
    A parsed cluster URL: its nodes, and how to reach these and other nodes.

    Attributes:
        addresses: `host:port` of each node in the URL.
    """

    addresses: tuple[str, ...]
    scheme: str
    user: str
    query: str

    def url(self, address: str) -> str:
        """
        URL of one node, with the credentials and options of the cluster's URL.
        """
        host, _, port = address.rpartition(":")
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{self.scheme}://{self.user}{host}:{port}{self.query}"

    def __repr__(self) -> str:
        return f"ClusterAddress({', '.join(self.addresses)})"

    def __rich_repr__(self) -> Iterable[str]:
        # rich prints locals in tracebacks, and the user part holds a password.
        yield from self.addresses


def cluster_address(url: str) -> ClusterAddress:
    """
    Parse *url*, for example `redis+cluster://user:secret@one:6379,two:6379`.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    named = tuple(map(_address, hosts.split(",")))
    query = f"?{parts.query}" if parts.query else ""

    return ClusterAddress(named, SCHEMES[parts.scheme], user + at, query)


def node_urls(url: str) -> list[str]:
    """
    One URL per node in *url*; for a single server, *url* itself.
    """
    if not is_cluster(url):
        return [url]
    places = cluster_address(url)

    return [places.url(address) for address in places.addresses]


def key_of(command: Command) -> Argument | None:
    """
    The key that decides the node of *command*; None if it has no key.

    Only the first key counts: the caller puts keys of one slot into one command, and
    the server refuses it otherwise.
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
    Slot of *key*, by its hash tag if it has one.
    """
    text = key.decode() if isinstance(key, bytes) else str(key)
    start = text.find("{") + 1
    end = text.find("}", start)

    return _slot(text[start:end] if start and end > start else text)


def by_slot(keys: Iterable[str]) -> list[Sequence[str]]:
    """
    Group *keys* by slot; groups and keys keep their order of appearance.
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
