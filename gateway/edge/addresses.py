"""
The address of a client: of its connection, or as a trusted proxy states it.

A header that anybody can send names nobody. Only entries that a trusted proxy has
added count, from the right: the first address that is no trusted proxy.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, NamedTuple

from starlette.requests import HTTPConnection

ForwardedHeader = Literal["x-forwarded-for", "forwarded"]
# What one customer of a provider gets; single addresses of it are free.
IPV6_PREFIX = 64
MAX_HOPS = 32
# RFC 7239: for=192.0.2.1, for="192.0.2.1:47011", for="[2001:db8::1]:4711".
_FOR = re.compile(r'(?i)(?:^|;)\s*for\s*=\s*("[^"]*"|[^;]*)')
_PORT = re.compile(r"^(?:\[([^\]]*)\]|([^:]*))(?::\d+)?$")

Address = IPv4Address | IPv6Address


class TrustedProxies(NamedTuple):
    """
    The proxies before this edge, whose header names the client.

    Attributes:
        networks: their addresses in CIDR notation.
        header: the header that they append to. Only this one is read, since they pass
            any other one on as the client sent it.
    """

    networks: Sequence[str] = ()
    header: ForwardedHeader = "x-forwarded-for"

    def client_of(self, connection: HTTPConnection) -> str:
        """
        The address of the client of *connection*, with IPv6 by its network.
        """
        peer = connection.client.host if connection.client else ""
        if not self.trusts(peer):
            return counted_as(peer)
        nearest = peer
        for stated in reversed(self._stated(connection)):
            if _parsed(stated) is None:
                # From here on nothing is known; the nearest known one answers for it.
                break
            nearest = stated
            if not self.trusts(stated):
                break
        return counted_as(nearest)

    def trusts(self, host: str) -> bool:
        """
        Whether *host* is one of these proxies.
        """
        address = _parsed(host)

        return address is not None and any(
            address in ip_network(network) for network in self.networks
        )

    def counted_connection(self, host: str) -> str:
        """
        The name to count a connection of *host* by; empty for a trusted proxy.
        """
        return "" if self.trusts(host) else counted_as(host)

    def _stated(self, connection: HTTPConnection) -> list[str]:
        lines = connection.headers.getlist(self.header)
        entries = ",".join(lines).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        if self.header == "x-forwarded-for":
            return [_without_port(entry.strip()) for entry in entries]
        found = [_FOR.search(entry) for entry in entries]

        return [_without_port(one[1].strip(' "')) if one else "" for one in found]


def counted_as(host: str) -> str:
    """
    *host* as limits count it: an IPv6 address by its network.
    """
    address = _parsed(host)
    if address is None:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, IPV6_PREFIX), strict=False))


@lru_cache(maxsize=10_000)
def _parsed(host: str) -> Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None

    return mapped or address


def _without_port(stated: str) -> str:
    if _parsed(stated) is not None:
        return stated
    match = _PORT.match(stated)

    return (match[1] or match[2] or "") if match else ""
