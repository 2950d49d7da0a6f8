"""
Replicas killed while the load runs, with the proof that it bit.

Only replicas of a stack that the bench itself has started.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from everbus.bus.wire import Wire
from everbus.compose.bench.load import Load
from everbus.gateway.store import key_names

if TYPE_CHECKING:
    # It needs psutil, which a production image has not.
    from everbus.compose.bench.own_stack import OwnStack

BACK_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02


class Kill(msgspec.Struct, kw_only=True):
    """
    One replica killed, and the proof that it was at work.

    Attributes:
        at_s: the time, since the start of the load.
        lanes: how many partitions it served.
        in_flight: commands under way in these when it was killed.
        waited: the most that were under way in these until it served again: what
            had to wait for the takeover.
        ready_s: how long after that it served again; None: not while the load ran.
    """

    at_s: float
    replica: str
    pid: int
    lanes: int
    in_flight: int
    waited: int = 0
    ready_s: float | None = None

    @property
    def bit(self) -> bool:
        """
        Whether another replica had to take over work.
        """
        return self.lanes > 0 and max(self.in_flight, self.waited) > 0


@asynccontextmanager
async def killing(
    stack: "OwnStack", every_s: float, load: Load, seed: int
) -> AsyncIterator[list[Kill]]:
    """
    Kill a random replica of *stack* every *every_s* seconds while the block runs.

    Yields the list of the kills, oldest first; it grows meanwhile.
    """
    wire = Wire(stack.environment()["EVERBUS_REDIS_URL"], name="everbus-bench")
    killer = _Killer(stack, wire, load, seed)
    task = asyncio.create_task(killer.run(every_s), name="killer")
    try:
        yield killer.kills
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await wire.close()


class _Killer:
    def __init__(self, stack: "OwnStack", wire: Wire, load: Load, seed: int) -> None:
        self.kills: list[Kill] = []
        self._stack = stack
        self._wire = wire
        self._load = load
        self._random = random.Random(seed)  # noqa: S311 - the choice of a replica is no secret

    async def run(self, every_s: float) -> None:
        """
        Kill until cancelled; wait for a replica that is starting.
        """
        clock = self._load.schedule
        due_s = every_s
        while True:
            await asyncio.sleep(max(0.0, due_s - clock.now_s))
            await self._kill()
            due_s = max(due_s + every_s, clock.now_s)

    async def _kill(self) -> None:
        name = self._random.choice(self._stack.replicas)
        await self._stack.until_ready(name, BACK_WITHIN_S)
        lanes = await self._lanes_of(name)
        kill = Kill(
            at_s=round(self._load.schedule.now_s, 3),
            replica=name,
            pid=self._stack.pid(name),
            lanes=len(lanes),
            in_flight=self._under_way(lanes),
        )
        await self._stack.kill(name)
        self.kills.append(kill)
        began = time.monotonic()
        ready = asyncio.ensure_future(self._stack.until_ready(name, BACK_WITHIN_S))
        try:
            while not ready.done():
                kill.waited = max(kill.waited, self._under_way(lanes))
                await asyncio.wait({ready}, timeout=LOOK_EVERY_S)
            with suppress(TimeoutError):
                await ready
                kill.ready_s = round(time.monotonic() - began, 3)
        finally:
            ready.cancel()

    def _under_way(self, lanes: Sequence[int]) -> int:
        return sum(self._load.under_way[lane] for lane in lanes)

    async def _lanes_of(self, replica: str) -> list[int]:
        """
        The partitions that a replica serves.
        """
        lanes = range(len(self._load.under_way))
        owners = await self._wire.call("MGET", *map(key_names.owner, lanes))

        return [
            lane
            for lane, owner in zip(lanes, owners, strict=True)
            if owner is not None and key_names.holder_of(owner.decode())[0] == replica
        ]
