"""
The URL of a bus: its schemes and options, and the parts that may be shown.
"""

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import parse_url

from everbus.bus.cluster_routing import node_urls
from everbus.bus.errors import Invalid
from everbus.bus.quotation import quoted
from everbus.bus.sentinel import FORM, PASSWORD, USER, is_sentinel, sentinel_address

# Valkey speaks the same protocol; its own schemes mean the same.
SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+cluster": "redis+cluster",
    "rediss+cluster": "rediss+cluster",
    "redis+sentinel": "redis+sentinel",
    "rediss+sentinel": "rediss+sentinel",
    "valkey": "redis",
    "valkeys": "rediss",
    "valkey+cluster": "redis+cluster",
    "valkeys+cluster": "rediss+cluster",
    "valkey+sentinel": "redis+sentinel",
    "valkeys+sentinel": "rediss+sentinel",
}
OPTIONS = frozenset(
    {"db", "username", "password", "client_name", "virtual_host"}
    | {"socket_connect_timeout", "socket_keepalive", "health_check_interval"}
    | {"ssl_keyfile", "ssl_certfile", "ssl_password", "ssl_cert_reqs"}
    | {"ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname"}
    | {USER, PASSWORD}
    | {"ssl_min_version", "ssl_ciphers", "ssl_validate_ocsp"}
)
UNREADABLE = (
    "the URL of the bus cannot be read; wanted scheme://user:password@host:port/db, "
    "with special characters of the password percent-encoded"
)
# everbus chooses these itself; other clients of the same URL may need them.
IGNORED = frozenset({"protocol", "decode_responses"})


def server_url(url: str) -> str:
    """
    *url* as the connections need it: a scheme of Redis, and known options only.

    Raises:
        Invalid: naming `url`, for an unknown scheme or option; without its user part.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in sorted(SCHEMES))
        raise Invalid(
            f"the URL of the bus begins with {quoted(scheme if mark else '')}; "
            f"one of {known}",
            field="url",
        )
    place, query_mark, query = rest.partition("?")
    tls = SCHEMES[scheme].startswith("rediss")
    kept = urlencode(list(_options(query, tls=tls)))
    end = f"?{kept}" if query_mark and kept else ""
    address = f"{SCHEMES[scheme]}://{place}{end}"
    if is_sentinel(address) and not _names_a_bus(address):
        raise Invalid(
            f"a bus behind Sentinels has a URL of the form {FORM}", field="url"
        )
    try:
        for node in _server_urls(address):
            parse_url(node)
    except ValueError:
        # Without the error's text, which may quote a part of the password.
        raise Invalid(UNREADABLE, field="url") from None

    return address


def url_with_tls(url: str, ca: str, cert: str = "", key: str = "") -> str:
    """
    *url* with the files of TLS as its options, if it has TLS and names none itself.

    They travel in the URL, so that every connection of a process finds them there.
    """
    scheme = SCHEMES.get(url.partition("://")[0], "")
    files = {"ssl_ca_certs": ca, "ssl_certfile": cert, "ssl_keyfile": key}
    options = {
        name: path for name, path in files.items() if path and f"{name}=" not in url
    }
    if not options or not scheme.startswith("rediss"):
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(options)}"


def shown_address(url: str) -> str:
    """
    Host and port in *url*, without user, password and options.
    """
    parts = urlsplit(url)

    return parts.netloc.rpartition("@")[2] or parts.path


def _names_a_bus(address: str) -> bool:
    try:
        sentinel_address(address)
    except ValueError:
        return False
    return True


def _server_urls(address: str) -> list[str]:
    if not is_sentinel(address):
        return node_urls(address)
    bus = sentinel_address(address)

    return [bus.server_url(one) for one in bus.sentinels]


def _options(query: str, *, tls: bool) -> Iterator[tuple[str, str]]:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in IGNORED:
            continue
        if name not in OPTIONS or (name.startswith("ssl_") and not tls):
            raise Invalid(
                f"the URL of the bus has the option {quoted(name)}; known are "
                f"{', '.join(sorted(OPTIONS))} (ssl_… with TLS only)",
                field="url",
            )
        yield name, value
