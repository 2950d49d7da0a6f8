"""
Whether a process would send secrets in plain text, or to a server that nobody verified.

Tokens, passwords and conversations go over these connections. Beyond this machine they
need TLS, unless EVERBUS_PLAINTEXT names the connection: on a network of its own, or
below a mesh that encrypts.
"""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog

from everbus.bus.bus_address import shown_address
from everbus.compose.edge_settings import listed
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.settings import Settings

log = structlog.get_logger()

_UNVERIFIED = re.compile(
    r"(?i)[?&](ssl_cert_reqs=(?:none|optional)|ssl_check_hostname=false"
    r"|tlsInsecure=true|tlsAllowInvalid(?:Certificates|Hostnames)=true)"
)
_REMEDY = {
    "redis": "take a rediss:// URL in EVERBUS_REDIS_URL, and EVERBUS_REDIS_CA",
    "mongo": "put tls=true into EVERBUS_MONGO_URL, or set EVERBUS_MONGO_CA",
    "s3": "take an https:// URL in EVERBUS_S3_ENDPOINT, and EVERBUS_S3_CA",
    "edge": "set EVERBUS_EDGE_CERT and EVERBUS_EDGE_KEY, or let TLS end at an ingress",
}


def check_plaintext(settings: Settings, *, edge: bool = False) -> None:
    """
    Refuse plain text beyond this machine, and warn of servers that nobody verifies.

    Raises:
        Failed: a connection is in plain text, and EVERBUS_PLAINTEXT does not name it.
    """
    allowed = set(listed(settings.plaintext))
    refused = [
        name for name in plain_connections(settings, edge=edge) if name not in allowed
    ]
    if refused:
        remedies = "; ".join(f"{name}: {_REMEDY[name]}" for name in refused)
        raise Failed(
            f"{' and '.join(refused)} would be in plain text beyond this machine. "
            f"Remedy: {remedies}. On a network that you trust: "
            f"EVERBUS_PLAINTEXT={','.join(sorted(allowed | set(refused)))}",
            USAGE,
        )
    for name, option in unverified_connections(settings):
        log.warning(
            "tls.unverified",
            connection=name,
            option=option,
            reason="anybody between here and the server can read and change all of it",
            remedy="remove the option, and name the server's authority by "
            f"EVERBUS_{name.upper()}_CA",
        )


def plain_connections(settings: Settings, *, edge: bool) -> Iterator[str]:
    """
    The connections beyond this machine that are in plain text.
    """
    redis, mongo = settings.redis_url, settings.mongo_url
    open_bus = redis.startswith("redis") and not redis.startswith("rediss")
    if open_bus and not _is_local(shown_address(redis)):
        yield "redis"
    encrypted = re.search(r"(?i)[?&](tls|ssl)=true", mongo) or "+srv://" in mongo
    if mongo and not encrypted and not _is_local(shown_address(mongo)):
        yield "mongo"
    s3 = urlsplit(settings.s3_endpoint)
    if s3.scheme == "http" and not _is_local(s3.netloc.rpartition("@")[2]):
        yield "s3"
    if edge and not settings.edge_cert and not _is_local(settings.edge_host):
        yield "edge"


def unverified_connections(settings: Settings) -> Iterator[tuple[str, str]]:
    """
    Connections by TLS that accept any server, and the option that makes them do so.
    """
    for name, url in (("redis", settings.redis_url), ("mongo", settings.mongo_url)):
        found = _UNVERIFIED.search(url)
        if found:
            yield name, found[1]


def _is_local(hosts: str) -> bool:
    """
    Whether all of *hosts*, with commas between them, are this machine.
    """
    return all(_is_loopback(host) for host in hosts.split(","))


def _is_loopback(place: str) -> bool:
    host = place
    if place.startswith("["):
        host = place[1:].partition("]")[0]
    elif place.count(":") == 1:
        host = place.partition(":")[0]
    if host in ("", "localhost") or "/" in host:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
