"""
The nodes of a Redis Cluster that this process knows, shared by all its connections.

The URL may name one node only, and that node may die. So all connections share the
nodes that one of them learns, and later connections begin with them. Nodes are learnt
from CLUSTER SLOTS, where a user may ask it, and from redirections.
"""

import random
from functools import lru_cache
from typing import Any

from everbus.bus.cluster_routing import cluster_address, is_cluster
from everbus.bus.wire import Command

ASK: Command = ("CLUSTER", "SLOTS")
# Redirections of a foreign server must not fill the memory.
MAX_NODES = 1000


class KnownNodes:
    """
    Addresses of the nodes of one cluster: named in the URL, or learnt.
    """

    def __init__(self, url: str) -> None:
        self._cluster = cluster_address(url)
        self._learnt: dict[str, None] = {}
        # Addresses that gave no answer the last time.
        self._away: set[str] = set()

    @property
    def addresses(self) -> list[str]:
        """
        Every known address; those in the URL come first.
        """
        return list(dict.fromkeys((*self._cluster.addresses, *self._learnt)))

    @property
    def urls(self) -> list[str]:
        """
        One URL per known node.
        """
        return [self._cluster.url(address) for address in self.addresses]

    def candidates(self) -> list[str]:
        """
        The known addresses, shuffled; nodes without an answer come last.

        In a fixed order all clients would begin with the same node.
        """
        addresses = self.addresses
        mixed = random.sample(addresses, len(addresses))

        return sorted(mixed, key=self._away.__contains__)

    def url(self, address: str) -> str:
        """
        URL of one node, with the credentials and options of the cluster's URL.
        """
        return self._cluster.url(address)

    def note(self, address: str) -> None:
        """
        Keep an address from a redirection.
        """
        if len(self._learnt) < MAX_NODES:
            self._learnt[address] = None

    def note_away(self, address: str) -> None:
        """
        Try the others first from now on.
        """
        self._away.add(address)

    def note_answer(self, address: str, reply: Any) -> None:
        """
        Keep the nodes in the reply to ASK by the node at *address*.

        An error is no harm: a MAD may lack the right to ask.
        """
        self._away.discard(address)
        found = addresses_in(reply, address)
        if found:
            # The list is complete: a node that is not in it has left the cluster.
            self._learnt = dict.fromkeys(found[:MAX_NODES])


@lru_cache(maxsize=64)
def known_nodes(url: str) -> KnownNodes:
    """
    The known nodes of the cluster at *url*, one object per process.
    """
    return KnownNodes(url)


def server_urls(url: str) -> list[str]:
    """
    One URL per known node of a cluster; for any other bus, *url* itself.
    """
    return known_nodes(url).urls if is_cluster(url) else [url]


def addresses_in(reply: Any, asked: str) -> list[str]:
    """
    Addresses in a reply to CLUSTER SLOTS; without a host, that of the asked node.
    """
    if not isinstance(reply, list):
        return []
    own_host = asked.rpartition(":")[0]
    found: dict[str, None] = {}
    for _, _, *nodes in reply:
        for host, port, *_ in nodes:
            found[f"{_host(host) or own_host}:{port}"] = None

    return list(found)


def _host(name: Any) -> str:
    host = name.decode() if isinstance(name, bytes) else str(name or "")

    return "" if host == "?" else host
