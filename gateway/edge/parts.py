"""
What the edge is built from.
"""

from collections.abc import Callable
from typing import NamedTuple

from bus.client import Mad
from gateway.edge.desk import Desk
from gateway.identity.grants import Grants
from gateway.identity.tokens import Identity


class Limits(NamedTuple):
    """
    How much the edge lets a principal, and a tenant, ask of it.

    Attributes:
        rate: requests a second of one principal; twice that in a burst.
        tenant_rate: of all principals of one tenant.
        concurrency: requests of one principal that are worked on at once.
        tenant_concurrency: of one tenant.
        streams: live streams that one principal may have open.
        drain_s: how long requests under way may take when the edge stops.
    """

    rate: float = 200
    tenant_rate: float = 2000
    concurrency: int = 64
    tenant_concurrency: int = 1024
    streams: int = 1000
    drain_s: float = 10


class EdgeParts(NamedTuple):
    """
    What every request may use.

    Attributes:
        bus: the edge's own instance on the bus; for a request it acts with a grant
            for the principal who asks, see `bus.requests.Acting`.
        desk: the way to the managers, and past them while the bus is away.
        now: seconds since 1970.
    """

    bus: Mad
    desk: Desk
    identity: Identity
    grants: Grants
    limits: Limits
    now: Callable[[], float]
