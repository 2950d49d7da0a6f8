"""
The edge's shared objects and its limits.
"""

from collections.abc import Callable
from typing import NamedTuple

from everbus.bus.client import Mad
from everbus.gateway.edge.addresses import TrustedProxies
from everbus.gateway.edge.fallback import ReadFallback
from everbus.gateway.identity.grants import Grants
from everbus.gateway.identity.token_revocations import TokenRevocations
from everbus.gateway.identity.tokens import Identity


class EdgeLimits(NamedTuple):
    """
    Limits of one principal and of one tenant at one edge.

    Attributes:
        rate: requests per second of one principal; twice that in a burst.
        tenant_rate: requests per second of all principals of one tenant.
        concurrency: requests in flight of one principal.
        tenant_concurrency: requests in flight of one tenant.
        streams: open live streams of one principal.
        bad_tokens: bad tokens of one address in a burst; again after 10 s.
        bad_messages: refused messages of one WebSocket in a burst; again after 60 s.
        drain_s: time for requests in flight when the edge stops.
    """

    rate: float = 200
    tenant_rate: float = 2000
    concurrency: int = 64
    tenant_concurrency: int = 1024
    streams: int = 1000
    bad_tokens: int = 200
    bad_messages: int = 10
    drain_s: float = 10


class EdgeContext(NamedTuple):
    """
    Objects that every request uses.

    Attributes:
        bus: the edge's own instance on the bus; for a request it acts with a grant
            for the request's principal, see `bus.requests.Delegation`.
        fallback: the way to the managers, or to MongoDB while the bus is away.
        now: seconds since 1970.
        proxies: proxies before this edge that name the client's address.
        origins: origins of web pages that may call this edge, as browsers state them.
        docs: whether to serve /docs and /openapi.json.
        revocations: the revoked tokens that this edge has heard of.
        console: whether to serve /console.
    """

    bus: Mad
    fallback: ReadFallback
    identity: Identity
    grants: Grants
    limits: EdgeLimits
    now: Callable[[], float]
    proxies: TrustedProxies = TrustedProxies()
    origins: tuple[str, ...] = ()
    docs: bool = True
    revocations: TokenRevocations | None = None
    console: bool = True
