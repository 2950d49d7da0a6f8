"""
Settings of an edge towards its clients: proxies, origins of browsers, the description.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic_settings import BaseSettings

from everbus.gateway.edge.addresses import ForwardedHeader


def listed(text: str) -> Iterator[str]:
    """
    The items of a setting that is a list with commas.
    """
    return (item.strip() for item in text.split(",") if item.strip())


def _networks(text: str) -> str:
    for item in listed(text):
        try:
            ip_network(item)
        except ValueError:
            raise ValueError(
                "addresses and networks as 10.0.0.0/8, with commas between them"
            ) from None
    return text


def _origins(text: str) -> str:
    for item in listed(text):
        parts = urlsplit(item)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or item != f"{parts.scheme}://{parts.netloc}".lower()
            or {"*", "@"} & set(item)
        ):
            raise ValueError(
                "exact origins as https://app.example, in lower case, without a path "
                "or `*`, with commas between them"
            )
    return text


class EdgeSettings(BaseSettings):
    """
    An edge towards its clients, part of `Settings`.

    Attributes:
        edge_trusted_proxies: addresses of the proxies before the edge, in CIDR
            notation; edge_forwarded_header: the header that they append to.
        edge_cors_origins: origins whose pages may call the edge; empty: none.
        edge_docs: whether the edge serves /docs and /openapi.json.
        edge_console: whether the edge serves /console.
    """

    edge_trusted_proxies: Annotated[str, AfterValidator(_networks)] = ""
    edge_forwarded_header: ForwardedHeader = "x-forwarded-for"
    edge_cors_origins: Annotated[str, AfterValidator(_origins)] = ""
    edge_docs: bool = True
    edge_console: bool = True
