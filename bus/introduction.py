"""
What an instance must know of a bus before it can use it, and the bus of its MAD.
"""

import asyncio
import time
from typing import NamedTuple

import structlog

from bus.errors import EverbusError, Forbidden, Invalid, Unauthenticated, Unavailable
from bus.keys import CONFIG, MADS, NEWS
from bus.lease import DEFAULT_TTL_S, Lease
from bus.messages import SCHEMA
from bus.publisher import Publisher
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
    wire = Wire(url, name=f"mad-{mad}")
    deadline = time.monotonic() + timeout
    try:
        while True:
            asked = ("partitions", "schema", "lease_ms")
            partitions, schema, lease_ms = await wire.call("HMGET", CONFIG, *asked)
            if partitions is not None:
                break
            if time.monotonic() > deadline:
                raise Unavailable(
                    "this bus has no eb:config: no manager ever started on it. "
                    "Start `everbus manager`, or `everbus dev` for a whole stack"
                )
            await asyncio.sleep(0.1)
        await _register(wire, mad)
    finally:
        await wire.close()
    if int(schema or SCHEMA) < SCHEMA:
        raise Unavailable(
            f"the managers understand schema {int(schema)}, this SDK speaks "
            f"{SCHEMA}; upgrade the managers first"
        )
    return Terms(int(partitions), int(lease_ms or DEFAULT_LEASE_MS))


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


class Newcomer(Publisher):
    """
    A publisher that was started while the bus was away.

    It makes sure that this is the bus that its spool remembers before it writes
    anything: what is numbered for other partitions would be lost on it.
    """

    def __init__(
        self,
        url: str,
        mad: str,
        instance: str,
        partitions: int,
        *,
        lease: Lease | None,
        spool: Spool | None,
        token: str,
    ) -> None:
        super().__init__(
            url, mad, instance, partitions, lease=lease, spool=spool, token=token
        )
        self._url = url
        self._assumed = partitions
        self._spool = spool
        self._met = False

    async def _write(self) -> EverbusError | None:
        try:
            if not self._met:
                await self._meet()
        except (Forbidden, Unauthenticated):
            raise
        except EverbusError as error:
            return error
        return await super()._write()

    async def _meet(self) -> None:
        terms = await introduce(self._url, self._mad, 0.0)
        if terms.partitions != self._assumed:
            raise Invalid(
                f"this bus has {terms.partitions} partitions, and the one that the "
                f"spool knows had {self._assumed}. Connect to that bus, or move the "
                "file away and connect anew",
                field="spool",
            )
        if self._spool is not None:
            self._spool.remember(*terms)
        self._met = True
