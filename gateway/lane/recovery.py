"""
The opening of a lane: forget everything, then replay the pending entries.

Pending is exactly what was not committed. Each pending command is a suspect, since
the owner before may have died of it; see `quarantine`.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Self

import structlog

from everbus.bus.backoff import Backoff
from everbus.gateway.lane.connection import LaneConnection
from everbus.gateway.lane.decision import Decider
from everbus.gateway.lane.delivery import Now, Queued, Undecodable, cancels_in
from everbus.gateway.lane.hot_epoch import HotEpochs
from everbus.gateway.lane.intake import FairQueue
from everbus.gateway.lane.lookup import Lookup
from everbus.gateway.lane.quarantine import Quarantine
from everbus.gateway.lane.sequence import WaitingProducers
from everbus.gateway.lane.waiting import WaitingSessions
from everbus.gateway.store.scripts import load_scripts

log = structlog.get_logger()

# The delay after the first failure of a command; it doubles with each further one.
FIRST_BACKOFF_S = 0.1
PRUNE_EVERY_S = 3600.0
LOADED_AT_ONCE = 256


class LaneMemory(NamedTuple):
    """
    The state of a lane that no longer holds after a disturbance.
    """

    decider: Decider
    lookup: Lookup
    waiting: WaitingSessions
    producers: WaitingProducers
    queue: FairQueue

    @classmethod
    def of(
        cls,
        decider: Decider,
        wire: LaneConnection,
        partition: int,
        epochs: HotEpochs,
    ) -> Self:
        """
        The empty memory of one partition's lane.
        """
        cache, queue = decider.cache, FairQueue()
        lookup = Lookup(wire, partition, cache, epochs)
        waiting = WaitingSessions(time.monotonic)
        producers = WaitingProducers(cache.windows, waiting.held, queue)
        cache.held = waiting.held.numbers

        return cls(decider, lookup, waiting, producers, queue)

    def forget(self) -> None:
        """
        Drop everything; the commands are still pending on their streams.
        """
        self.waiting.clear()
        self.producers.clear()
        self.queue.clear()
        self.decider.forget()


class Recovery:
    """
    Opens one lane, at its start and after each disturbance.

    Attributes:
        prune_at: monotonic time from which `prune` has something to do.
    """

    def __init__(
        self,
        wire: LaneConnection,
        memory: LaneMemory,
        epochs: HotEpochs,
        quarantine: Quarantine,
    ) -> None:
        self._wire = wire
        self._memory = memory
        self._epochs = epochs
        self._quarantine = quarantine
        self.prune_at = 0.0

    async def begin(self) -> Now:
        """
        Forget everything and connect anew; returns the server's time.

        The time comes by its own call: pending commands are decided before the
        first read, which brings the time otherwise.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        memory = self._memory
        memory.forget()
        await self._wire.reopen()
        await load_scripts(self._wire)
        [seconds, micros] = await self._wire.call("TIME")
        now = Now.at(int(seconds) * 1000 + int(micros) // 1000)
        memory.lookup.hot_epoch = await self._epochs.current()
        return now

    async def prune(self, now: Now) -> None:
        """
        Forget long-silent publishers now and then, so that memory does not grow.

        Raises:
            WireFailed: the connection broke.
        """
        if time.monotonic() < self.prune_at:
            return
        self.prune_at = time.monotonic() + PRUNE_EVERY_S
        await self._memory.lookup.prune(self._wire.owner, now.ms // 1000)

    async def enqueue(self, pending: Sequence[Queued], now: Now) -> None:
        """
        Queue pending commands, each for a trial of its own: one may be a killer.

        A command that was tried alone before and never settled waits behind all
        others, so that it delays no session but its own.

        Raises:
            WireFailed: the connection broke.
        """
        memory = self._memory
        log.info("lane.replays", lane=memory.lookup.partition, commands=len(pending))
        await self._quarantine.recognise(pending)
        memory.decider.revocation.note_cancels(cancels_in(pending))
        # In their order, before any of them waits: the first command of an unknown
        # publisher decides which of its numbers count as settled.
        for first in range(0, len(pending), LOADED_AT_ONCE):
            await memory.lookup.load(pending[first : first + LOADED_AT_ONCE], now)
        for one in pending:
            self._enqueue(one)

    def _enqueue(self, one: Queued) -> None:
        memory = self._memory
        if isinstance(one, Undecodable):
            memory.queue.append(one)
        elif not memory.waiting.enqueue_behind(one):
            if one.attempts:
                memory.waiting.block(one, backoff_s(one))
            else:
                memory.queue.append(one)


def backoff_s(received: Queued) -> float:
    """
    Seconds until the next try, by the number of failed attempts.
    """
    return Backoff(FIRST_BACKOFF_S).after(len(received.attempts))
