"""
The archiver's lease: one archiver works at a time, others wait for it.

The same kind of lease as a lane's: an owner key with a TTL. It keeps archivers from
doing the same work twice. It is no lock: one that was paused may go on a little
after it lost the lease, so whatever it does must be harmless when it comes late.
"""

import asyncio
import time

import structlog

from archiver.scripting import run
from bus.cluster import wire_to
from bus.errors import EverbusError
from bus.keys import NEWS
from gateway.store import names
from gateway.store.scripts import script

log = structlog.get_logger()

NAME = "archiver"
TTL_MS = 5_000
RENEW_S = 1.5
CALL_TIMEOUT_S = 2.0


class Lease:
    """
    Whether this archiver is the one that works.

    Attributes:
        owner: the value of the owner key while it is ours; what reading is fenced by.
    """

    def __init__(self, redis_url: str, name: str) -> None:
        self.owner = ""
        self._wire = wire_to(redis_url, name="everbus-archiver-lease")
        self._name = name
        self._until = 0.0

    @property
    def held(self) -> bool:
        """
        Whether it is ours, as far as this process's own clock can tell.
        """
        return bool(self.owner) and time.monotonic() < self._until

    def lose(self) -> None:
        """
        Note that the bus named another owner.
        """
        self.owner = ""

    async def run(self) -> None:
        """
        Take the lease as soon as it is free, and prolong it, until cancelled.
        """
        while True:
            try:
                await self._keep()
            except EverbusError as error:
                # It lapses by itself, here and there.
                log.warning("lease.not_kept", error=error.message)
            await asyncio.sleep(RENEW_S)

    async def release(self) -> None:
        """
        Give it up, so that the next need not wait for its end; never raises.
        """
        try:
            if self.owner:
                keys = [names.owner(NAME)]
                await run(self._wire, [script("release", keys, self.owner, NEWS)])
        except EverbusError as error:
            log.warning("lease.not_released", error=error.message)
        finally:
            self.owner = ""
            await self._wire.close()

    async def _keep(self) -> None:
        asked_at = time.monotonic()
        if self.owner and not await self._renewed():
            log.warning("lease.lost")
            self.owner = ""
        if not self.owner:
            self.owner = await self._acquired()
        if self.owner:
            self._until = asked_at + TTL_MS / 1000

    async def _renewed(self) -> bool:
        command = script("renew", [names.owner(NAME)], self.owner, TTL_MS)
        [renewed] = await run(self._wire, [command], timeout_s=CALL_TIMEOUT_S)
        return bool(renewed)

    async def _acquired(self) -> str:
        """
        The owner value that is ours now; empty if somebody else has the lease.
        """
        keys = [names.owner(NAME), names.epoch(NAME)]
        command = script("acquire", keys, self._name, f"{time.time_ns():x}", TTL_MS)
        [(taken, owner)] = await run(self._wire, [command], timeout_s=CALL_TIMEOUT_S)
        return owner.decode() if taken else ""
