"""
Write-behind on a Redis Cluster, where each outbox has a slot of its own.

No command may name two outboxes, nor an outbox and the lease. So the drain reads each
outbox by itself, fenced by a copy of the lease's owner in the same slot. It waits for
none of them but polls all.
"""

import asyncio

from everbus.archiver.drain import Drain, LeaseLost
from everbus.archiver.script_runner import run
from everbus.bus.wire import Command
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script

# Interval of polling empty outboxes.
POLL_S = 0.1


class ClusterDrain(Drain):
    """
    Moves the outboxes of all partitions, each from its own node.
    """

    async def _drain(self, stop: asyncio.Event) -> None:
        await self._fence()
        await super()._drain(stop)

    async def _fence(self) -> None:
        """
        Fence off every earlier archiver.

        Raises:
            LeaseLost: a later archiver has set its fence.
        """
        owner = self.lease.owner
        fences = [
            script("fence", [key_names.drainer(p)], owner) for p in self._partitions
        ]
        if not all(await run(self._wire, fences)):
            raise LeaseLost

    async def _anything(self) -> bool:
        looks: list[Command] = [
            ("XREAD", "COUNT", 1, "STREAMS", key_names.outbox(p), "0")
            for p in self._partitions
        ]
        if any(await run(self._wire, looks)):
            return True
        await asyncio.sleep(POLL_S)
        return False

    def _reads(self, after: str) -> list[Command]:
        return [
            self._read_command(key_names.drainer(p), [p], after)
            for p in self._partitions
        ]
