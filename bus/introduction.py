"""
What an instance must know of a bus before it can use it, and the bus of its MAD.
"""

import asyncio
import time
from typing import NamedTuple

import structlog

from bus.cluster import wire_to
from bus.errors import Forbidden, Invalid, Unavailable
from bus.keys import CONFIG, MADS, NEWS
from bus.lease import DEFAULT_TTL_S
from bus.messages import SCHEMA
from bus.spool import Spool
from bus.wire import Wire, WireFailed

log = structlog.get_logger()

DEFAULT_LEASE_MS = int(DEFAULT_TTL_S * 1000)


class Terms(NamedTuple):
    """
    What all who use one bus have to agree on.
    """

    partitions: int
    lease_ms: int


async def introduce(url: str, mad: str, timeout: float) -> Terms:
    """
    Make *mad* known where the bus lets it, and learn the terms.

    Raises:
        Unavailable: no bus, or none that managers of our schema have started on.
        Unauthenticated, Forbidden: the bus turns the URL's user away.
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
    return Terms(count, int(lease_ms or DEFAULT_LEASE_MS))


async def _register(wire: Wire, mad: str) -> None:
    """
    Enter *mad* in the list of MADs, on a bus without ACL; else `mads add` did.
    """
    try:
        if await wire.call("HSETNX", MADS, mad, "{}"):
            await wire.call("PUBLISH", NEWS, "mads")
    except Forbidden:
        log.debug("mad.registered_by_operator", mad=mad)
    except WireFailed:
        raise
    except Unavailable as error:
        log.warning("mad.not_registered", mad=mad, error=error.message)


async def meet(url: str, mad: str, spool: Spool | None, partitions: int) -> None:
    """
    Make sure that the bus is the one that *spool* knows, of so many *partitions*.

    For who was started while the bus was away: what is numbered for other partitions
    would be lost on it.

    Raises:
        Invalid: it is another bus.
        Unavailable, Unauthenticated, Forbidden: as in `introduce`.
    """
    terms = await introduce(url, mad, 0.0)
    if terms.partitions != partitions:
        raise Invalid(
            f"this bus has {terms.partitions} partitions, and the one that the "
            f"spool knows had {partitions}. Connect to that bus, or move the "
            "file away and connect anew",
            field="spool",
        )
    if spool is not None:
        spool.remember(*terms)


def partitions_in(told: bytes | None) -> int:
    """
    The number of partitions, as `eb:config` told it.

    Raises:
        Unavailable: it told nothing.
    """
    if told is None:
        raise Unavailable(
            "this bus has no eb:config: no manager ever started on it. "
            "Start `everbus manager`, or `everbus dev` for a whole stack"
        )
    return int(told)
