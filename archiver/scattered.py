"""
Write-behind on a Redis Cluster, where each outbox is in a slot of its own.

No command may name two of them, nor one and the lease. So each is read by itself,
fenced by a copy of the lease's owner in the same slot, and none is waited for: all are
looked at now and then.
"""

import asyncio

from archiver.drain import Drain, LeaseLost
from archiver.scripting import run
from bus.wire import Command
from gateway.store import names
from gateway.store.scripts import script

# How often empty outboxes are looked at.
POLL_S = 0.1


class ScatteredDrain(Drain):
    """
    Moves the outboxes of all partitions, each from its own node.
    """

    async def _drain(self, stop: asyncio.Event) -> None:
        await self._fence()
        await super()._drain(stop)

    async def _fence(self) -> None:
        """
        Keep every earlier archiver from reading on.

        Raises:
            LeaseLost: a later one has done so.
        """
        owner = self.lease.owner
        fences = [script("fence", [names.drainer(p)], owner) for p in self._partitions]
        if not all(await run(self._wire, fences)):
            raise LeaseLost

    async def _anything(self) -> bool:
        looks: list[Command] = [
            ("XREAD", "COUNT", 1, "STREAMS", names.outbox(p), "0")
            for p in self._partitions
        ]
        if any(await run(self._wire, looks)):
            return True
        await asyncio.sleep(POLL_S)
        return False

    def _reads(self, after: str) -> list[Command]:
        return [
            self._read_command(names.drainer(p), [p], after) for p in self._partitions
        ]
