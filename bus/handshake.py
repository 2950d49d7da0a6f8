"""
Handshake with a bus: its parameters, and the registration of the MAD.
"""

import asyncio
import time
from typing import NamedTuple

import structlog

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import Forbidden, Invalid, Overloaded, Unavailable
from everbus.bus.keys import CONFIG, MADS, NEWS
from everbus.bus.lease import DEFAULT_TTL_S
from everbus.bus.messages import SCHEMA
from everbus.bus.spool import Spool
from everbus.bus.wire import Wire, WireFailed

log = structlog.get_logger()

DEFAULT_LEASE_MS = int(DEFAULT_TTL_S * 1000)


class BusParameters(NamedTuple):
    """
    Parameters that all users of one bus share.
    """

    partitions: int
    lease_ms: int


async def handshake(url: str, mad: str, timeout: float) -> BusParameters:
    """
    Register *mad* if the bus allows it, and read the parameters; idempotent.

    Raises:
        Unavailable: there is no bus, or no manager of our schema has started on it.
        Unauthenticated, Forbidden: the bus refuses the URL's user.
    """
    wire = wire_to(url, name=f"mad-{mad}")
    deadline = time.monotonic() + timeout
    try:
        while True:
            asked = ("partitions", "schema", "lease_ms")
            partitions, schema, lease_ms = await wire.call("HMGET", CONFIG, *asked)
            if partitions is not None or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        count = partitions_in(partitions)
        await _register(wire, mad)
    finally:
        await wire.close()
    if int(schema or SCHEMA) < SCHEMA:
        raise Unavailable(
            f"the managers understand schema {int(schema)}, this SDK speaks "
            f"{SCHEMA}; upgrade the managers first"
        )
    return BusParameters(count, int(lease_ms or DEFAULT_LEASE_MS))


async def _register(wire: Wire, mad: str) -> None:
    """
    Enter *mad* in the list of MADs; on a bus with ACL `mads add` has done so.
    """
    try:
        if await wire.call("HSETNX", MADS, mad, "{}"):
            await wire.call("PUBLISH", NEWS, "mads")
    except Forbidden:
        log.debug("mad.registered_by_operator", mad=mad)
    except WireFailed:
        raise
    except Overloaded:
        # Nobody would read the ingress of one that is not listed.
        if not await wire.call("HEXISTS", MADS, mad):
            raise
    except Unavailable as error:
        log.warning("mad.not_registered", mad=mad, error=error.message)


async def verify_bus(url: str, mad: str, spool: Spool | None, partitions: int) -> None:
    """
    Check that the bus has the number of *partitions* that *spool* knows.

    For an instance that started while the bus was away: commands numbered for other
    partitions would be lost.

    Raises:
        Invalid: it is another bus.
        Unavailable, Unauthenticated, Forbidden: as in `handshake`.
    """
    terms = await handshake(url, mad, 0.0)
    if terms.partitions != partitions:
        raise Invalid(
            f"this bus has {terms.partitions} partitions, and the one that the "
            f"spool knows had {partitions}. Connect to that bus, or move the "
            "file away and connect anew",
            field="spool",
        )
    if spool is not None:
        spool.remember(*terms)


def partitions_in(stored: bytes | None) -> int:
    """
    Number of partitions in `eb:config`.

    Raises:
        Unavailable: it is not there.
    """
    if stored is None:
        raise Unavailable(
            "this bus has no eb:config: no manager ever started on it. "
            "Start `everbus manager`, or `everbus dev` for a whole stack"
        )
    return int(stored)
