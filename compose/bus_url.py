"""
The URL of the same bus for another user.
"""

from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from redis.connection import parse_url

from everbus.bus.cluster_routing import is_cluster
from everbus.bus.sentinel import PASSWORD, USER, is_sentinel, sentinel_address

# Query parameters that name the user, as the user part of the URL does.
# The Sentinels' password is the operator's: a MAD gets its own by EVERBUS_SENTINEL_….
_CREDENTIALS = frozenset({"username", "password", "client_name", USER, PASSWORD})


def database_of(url: str) -> int:
    """
    The database number in a Redis URL, as redis-py reads it.
    """
    if is_cluster(url):
        return 0  # a cluster has only this one
    if is_sentinel(url):
        url = sentinel_address(url).server_url("any")
    options = parse_url(url)  # type: ignore[no-untyped-call]

    return int(options.get("db") or 0)


def url_for_user(url: str, user: str = "", password: str = "") -> str:
    """
    *url* with the credentials of *user*, or without any.

    A Unix socket's path, TLS parameters and the database stay as they are.
    """
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    if user:
        secret = f":{quote(password, safe='')}" if password else ""
        address = f"{quote(user, safe='')}{secret}@{address}"
    kept = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name not in _CREDENTIALS
    ]
    query = f"?{urlencode(kept)}" if kept else ""

    return f"{parts.scheme}://{address}{parts.path}{query}"
