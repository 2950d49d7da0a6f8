"""
Settings of TLS: certificates of the servers below, the edge's own, and plain text.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from pydantic import AfterValidator
from pydantic_settings import BaseSettings

from everbus.compose.edge_settings import listed

# Connections that may be named in EVERBUS_PLAINTEXT.
CONNECTIONS = ("redis", "mongo", "s3", "edge")


def _connections(text: str) -> str:
    if not set(listed(text)) <= set(CONNECTIONS):
        raise ValueError(f"some of {', '.join(CONNECTIONS)}, with commas between them")
    return text


def _file(path: str) -> str:
    if path and not Path(path).is_file():
        raise ValueError("the path of a file that this user may read")
    return path


_File = Annotated[str, AfterValidator(_file)]


class TlsSettings(BaseSettings):
    """
    TLS of a process, part of `Settings`; certificates and keys are paths of PEM files.

    Attributes:
        plaintext: connections beyond this machine that may be in plain text.
        redis_ca: the authority of the bus's certificates; redis_cert and redis_key:
            what this process shows the bus. mongo_ca, mongo_cert (with its key) and
            s3_ca are the same for the tiers. Empty: the authorities of this system.
        edge_cert: the edge's certificate, edge_key its key; with both it serves TLS.
        edge_client_ca: the authority of its clients' certificates, which each of them
            must then show.
    """

    plaintext: Annotated[str, AfterValidator(_connections)] = ""
    redis_ca: _File = ""
    redis_cert: _File = ""
    redis_key: _File = ""
    mongo_ca: _File = ""
    mongo_cert: _File = ""
    s3_ca: _File = ""
    edge_cert: _File = ""
    edge_key: _File = ""
    edge_client_ca: _File = ""


def mongo_url_with_tls(url: str, ca: str, cert: str) -> str:
    """
    *url* with the files of TLS as its options.
    """
    files = {"tlsCAFile": ca, "tlsCertificateKeyFile": cert}
    options = {name: path for name, path in files.items() if path}
    if not options or not url:
        return url
    head, mark, query = url.partition("?")
    given = [query] if query else []
    if not mark and head.count("/") < "mongodb://host/".count("/"):
        head += "/"

    return f"{head}?{'&'.join((*given, urlencode({'tls': 'true', **options})))}"
