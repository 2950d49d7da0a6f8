"""
The archiver's lease: one archiver works at a time, the others wait.

It is a lease like a lane's: an owner key with a TTL. It keeps archivers from doing the
same work twice. It is no lock: a paused archiver may go on a little after it lost the
lease, so each of its steps must be harmless when it comes late.
"""

import asyncio
import time

import structlog

from everbus.archiver.script_runner import run
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.keys import NEWS
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script

log = structlog.get_logger()

NAME = "archiver"
TTL_MS = 5_000
RENEW_S = 1.5
CALL_TIMEOUT_S = 2.0


class ArchiverLease:
    """
    The lease of one archiver process.

    Attributes:
        owner: the value of the owner key while it is ours; the fence of reads.
    """

    def __init__(self, redis_url: str, name: str) -> None:
        self.owner = ""
        self._wire = wire_to(redis_url, name="everbus-archiver-lease")
        self._name = name
        self._until = 0.0
        self._kept_at = time.monotonic()
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """
        Why the bus could not be asked for the lease for its TTL; else empty.
        """
        silent = time.monotonic() - self._kept_at > TTL_MS / 1000

        return self._trouble if silent else ""

    @property
    def held(self) -> bool:
        """
        Whether it is ours, by this process's own clock.
        """
        return bool(self.owner) and time.monotonic() < self._until

    def lose(self) -> None:
        """
        Drop the lease, after the bus named another owner.
        """
        self.owner = ""

    async def run(self) -> None:
        """
        Take the lease as soon as it is free, and renew it, until cancelled.
        """
        while True:
            try:
                await self._keep()
                self._kept_at, self._trouble = time.monotonic(), ""
            except EverbusError as error:
                self._trouble = error.message
                # The lease expires by itself, here and on the server.
                log.warning("lease.not_kept", error=error.message)
            await asyncio.sleep(RENEW_S)

    async def release(self) -> None:
        """
        Release the lease, so that the next archiver need not wait for its TTL; never
        raises.
        """
        try:
            if self.owner:
                keys = [key_names.owner(NAME)]
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
        command = script("renew", [key_names.owner(NAME)], self.owner, TTL_MS)
        [renewed] = await run(self._wire, [command], timeout_s=CALL_TIMEOUT_S)
        return bool(renewed)

    async def _acquired(self) -> str:
        """
        Our owner value; empty if another archiver has the lease.
        """
        keys = [key_names.owner(NAME), key_names.epoch(NAME)]
        command = script("acquire", keys, self._name, f"{time.time_ns():x}", TTL_MS)
        [(taken, owner)] = await run(self._wire, [command], timeout_s=CALL_TIMEOUT_S)
        return owner.decode() if taken else ""
