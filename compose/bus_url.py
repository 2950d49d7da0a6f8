"""
The bus's URL for somebody else: the same server, another user.
"""

from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from redis.connection import parse_url

from bus.routing import is_cluster

# Parameters that say who somebody is, which the user part says as well.
_CREDENTIALS = frozenset({"username", "password", "client_name"})


def database_of(url: str) -> int:
    """
    The number of the database in a Redis URL, as redis-py reads it.
    """
    if is_cluster(url):
        return 0  # a cluster has no other
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
