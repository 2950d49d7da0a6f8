"""
The source of an issuer's keys: an https URL or a file.

The operator sets the address; no token can name another one, and no answer can
redirect to another one. Reads are bounded in size and time.
"""

import ipaddress
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

MAX_BYTES = 256 * 1024
# Deadlines of one operation on the connection, and of the whole read.
STEP_S, WHOLE_S = 3.0, 5.0

Read = Callable[[], bytes]


def source_of(url: str) -> Read:
    """
    A blocking function that reads *url*.

    Raises:
        ValueError: it is neither https, nor http on loopback, nor a file.
    """
    parts = urlsplit(url)
    if is_local(url):
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ValueError("a file URL has three slashes: file:///path/to/keys.json")
        return _file(Path(urllib.request.url2pathname(parts.path)))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("keys come from an https or file URL without credentials")
    if parts.scheme == "http" and not _is_loopback(parts):
        raise ValueError(
            f"http://{parts.hostname} can be forged on the way; use https for keys"
        )
    return _fetcher(url, direct=_is_loopback(parts))


def is_local(url: str) -> bool:
    """
    Whether *url* is a file's.
    """
    return urlsplit(url).scheme == "file"


def _is_loopback(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file(path: Path) -> Read:
    def read() -> bytes:
        with path.open("rb") as file:
            return _bounded(file.read(MAX_BYTES + 1))

    return read


class _Refused(urllib.request.HTTPRedirectHandler):
    """
    Refuses redirects: they are errors like any other status.
    """

    def redirect_request(self, *_: Any) -> None:
        return None


def _fetcher(url: str, *, direct: bool) -> Read:
    handlers: list[urllib.request.BaseHandler] = [_Refused()]
    if direct:
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)

    def read() -> bytes:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked above
        ends_at = time.monotonic() + WHOLE_S
        with opener.open(request, timeout=STEP_S) as response:
            if response.status != 200:
                raise ValueError(f"the issuer answers with status {response.status}")
            taken = b""
            while part := response.read1(MAX_BYTES):
                taken = _bounded(taken + part)
                if time.monotonic() > ends_at:
                    raise TimeoutError(f"the issuer takes longer than {WHOLE_S:g} s")
        return taken

    return read


def _bounded(taken: bytes) -> bytes:
    if len(taken) > MAX_BYTES:
        raise ValueError(f"the keys take more than {MAX_BYTES} bytes")
    return taken
