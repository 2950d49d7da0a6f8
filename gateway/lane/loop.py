"""
One lane: the commands of one partition, from its streams to their commits.

A lane is a loop of turns. A turn commits the batch before and reads the next
entries in one write; then a lookup loads the unknown, and the commands are decided in
order. Every disturbance (a lost connection, a vanished group, a stale session) has
the same remedy: forget everything and begin with the pending entries, since pending
is exactly what was not committed.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import structlog

from everbus.bus.backoff import Backoff
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.waits import set_within
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Command, WireFailed
from everbus.gateway.failpoints import FailPoint, disarmed
from everbus.gateway.lane.admission import Admission, AdmissionTerms, Doubts
from everbus.gateway.lane.commit import (
    Batch,
    BatchLimits,
    Lineages,
    backlog_after,
    dropped_letters,
)
from everbus.gateway.lane.connection import Disturbed, LaneConnection, LaneLost
from everbus.gateway.lane.decision import Decider, Decision
from everbus.gateway.lane.delivery import (
    CANCEL_KIND,
    Delivery,
    Now,
    Queued,
    Undecodable,
    cancels_in,
)
from everbus.gateway.lane.fetch_budget import FetchBudget
from everbus.gateway.lane.fetches import Fetches, LowerTiers
from everbus.gateway.lane.hot_epoch import HotEpochs
from everbus.gateway.lane.intake import WAIT_MS, Intake
from everbus.gateway.lane.quarantine import Quarantine
from everbus.gateway.lane.recovery import LaneMemory, Recovery, backoff_s
from everbus.gateway.lane.replication import SERVER, Replicas, Replication
from everbus.gateway.lane.revocation import cancelled_by
from everbus.gateway.store import key_names
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.telemetry import metrics, tracing
from everbus.gateway.telemetry.failures import NOTED

log = structlog.get_logger()

MAX_ATTEMPTS = 5
FIRST_RETRY_S = 0.1
MAX_RETRY_S = 0.5
# A lane that served for so long begins with short pauses again.
STEADY_S = 2.0
DEFERRED_RETRY_S = 0.25
# How often the lane looks at a session that is on its way to the cold tier.
LEAVING_RETRY_S = 0.05
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 32 * 1024 * 1024
# Of one MAD; beyond, its ingress alone is not read. The edge is one MAD.
MAX_WAITING_OF_MAD = 2_048
MAX_WAITING_OF_MAD_BYTES = 8 * 1024 * 1024
IDLE_COMMANDS = 1


class LaneParts(NamedTuple):
    """
    The parts of a lane, the same for all lanes of a replica.
    """

    redis_url: str
    partitions: int
    decider: Callable[[], Decider]
    tiers: LowerTiers
    incarnation: str
    limits: BatchLimits = BatchLimits()
    hot_ttl_ms: int = 3_600_000
    doubts: Doubts = "wait"
    replicas: Replicas = Replicas()
    batch_commands: int = 256
    batch_bytes: int = 8 * 1024 * 1024
    budget: FetchBudget | None = None
    outbox_records: int = 50_000
    lease_ttl_ms: int = 30_000
    lost_after_disconnect_s: float = 5.0
    fail: FailPoint = disarmed
    sealed: SealedCopies | None = None


class Lane:
    """
    Serves one partition, of which *owner* was the owner value when it was acquired.

    Attributes:
        polled_at: monotonic time of the last completed exchange; a lane whose
            exchanges stop completing is deaf, however connected it seems.
    """

    def __init__(self, number: int, owner: str, parts: LaneParts) -> None:
        self.number = number
        self.polled_at = time.monotonic()
        self._parts = parts
        at = key_names.owner(number)
        wire = wire_to(parts.redis_url, name=f"everbus-lane-{number}", at=at)
        self._wire = LaneConnection(wire, number, owner)
        decider = parts.decider()
        self._epochs = HotEpochs(
            self._wire, number, parts.hot_ttl_ms, tiers=decider.tiers
        )
        memory = LaneMemory.of(decider, self._wire, number, self._epochs)
        memory.lookup.sealed = parts.sealed
        self._decider, self._lookup = memory.decider, memory.lookup
        self._waiting, self._producers = memory.waiting, memory.producers
        self._held, self._queue = memory.waiting.held, memory.queue
        self._intake = self._new_intake()
        self._quarantine = Quarantine(self._wire, number, parts.incarnation)
        self._admission = Admission(
            self._wire,
            number,
            self._decider.cache,
            AdmissionTerms(parts.hot_ttl_ms, parts.limits.ledger_ttl_ms, parts.doubts),
            parts.sealed,
        )
        self._recovery = Recovery(self._wire, memory, self._epochs, self._quarantine)
        self._fetches = Fetches(
            parts.tiers,
            self._decider,
            self._waiting,
            self._queue,
            self._nudge,
            parts.budget,
        )
        self._replication = Replication(
            parts.redis_url, number, parts.replicas, self._nudge
        )
        self._now = Now.at(0)
        self._mads: frozenset[str] = frozenset()
        self._admitted: frozenset[str] = frozenset()
        self._nudged = asyncio.Event()
        self._stopping = False
        self._resting = False
        self._memory_full = False
        self._backlog = 0
        self._counted = 0
        self._may_trim = False
        self._decided_ns = 0
        self._interruption: asyncio.Task[None] | None = None

    @property
    def owner(self) -> str:
        """
        The value of the owner key; it changes with each connection.
        """
        return self._wire.owner

    def admit(self, mads: frozenset[str]) -> None:
        """
        Serve these MADs from the next turn on.
        """
        if mads != self._mads:
            self._mads = mads
            self._nudge()

    def note_memory(self, *, full: bool) -> None:
        """
        Note whether the server's memory is nearly used up.

        Then writes wait, or are refused, while MongoDB has something of this lane to
        take: that frees memory. Without it a batch is let in, which its ingress holds
        already; so no lane waits for what nobody can free.
        """
        self._memory_full = full
        self._note_backlog(self._backlog)

    def stop(self) -> None:
        """
        Read no more, finish the commands in hand, then let `run` return.
        """
        self._stopping = True
        self._nudge()

    def oldest_age_s(self) -> float:
        """
        Age of the oldest command read and not settled; 0 if there is none.
        """
        oldest = self._intake.oldest_ms()
        return 0.0 if oldest is None else max(0.0, self._now.ms - oldest) / 1000

    async def run(self) -> None:
        """
        Serve until stopped; survives every disturbance of the bus.

        Raises:
            LaneLost: another replica owns the lane.
        """
        backoff = Backoff(FIRST_RETRY_S, MAX_RETRY_S, steady_s=STEADY_S)
        try:
            while True:
                began = time.monotonic()
                try:
                    return await self._serve()
                except EverbusError as error:
                    self._note_disturbance(error)
                except LaneLost:
                    raise
                except Exception:  # a defect must not end the other lanes
                    self._quarantine.fail_trial()
                    log.exception("lane.failed", lane=self.number)
                    metrics.DISTURBED.labels("defect").inc()
                await asyncio.sleep(backoff.next_s(time.monotonic() - began))
                if self._stopping:
                    return None
        finally:
            self._fetches.cancel()
            await self._replication.close()
            await self._wire.close()

    def _note_disturbance(self, error: EverbusError) -> None:
        cause = error.cause if isinstance(error, Disturbed) else error.code
        level = log.error if cause == "nogroup" else log.warning
        level("lane.disturbed", lane=self.number, cause=cause, error=error.message)
        metrics.DISTURBED.labels(cause).inc()

    async def _serve(self) -> None:
        """
        Begin with the pending entries, then take turns until stopped.
        """
        await self._open()
        while True:
            received = await self._next_batch()
            batch = self._new_batch()
            if self._replication.replies:
                self._replication.stage(batch)
            if received:
                await self._decide_all(received, batch)
            self._stage_trims(batch)
            if batch:
                await self._commit(batch)
            elif self._stopping and self._intake.astray:
                # The entries of the interrupted wait are ours to finish.
                self._accept(await self._intake.wait(1))
            elif self._stopping and not self._queue:
                return
            elif not received:
                await self._rest()

    def _new_batch(self) -> Batch:
        lineages = Lineages(
            self._lookup.hot_epoch.lineage, self._decider.cache.unclaimed
        )
        return Batch(
            self.number,
            self._parts.limits,
            self._now,
            self._decider.subscribers,
            lineages,
            self._parts.sealed,
        )

    async def _open(self) -> None:
        """
        Forget everything and read the pending entries.
        """
        self._fetches.cancel()
        self._replication.forget()
        self._intake = self._new_intake()
        self._may_trim = False
        self._now = await self._recovery.begin()
        await self._admit(replays=True)
        await self._look_at_backlog()
        await self._recovery.prune(self._now)
        pending = await self._intake.replay()
        if pending:
            self._parts.fail("takeover")
            await self._recovery.enqueue(pending, self._now)
        self._polled()

    def _new_intake(self) -> Intake:
        return Intake(self._wire, self.number, self._parts.partitions, self._queue)

    async def _admit(self, *, replays: bool = False) -> None:
        mads = self._mads
        await self._intake.admit(mads, replays=replays)
        self._admitted = mads

    async def _next_batch(self) -> list[Queued]:
        """
        The next commands to decide together; a suspect comes alone.
        """
        if self._admitted is not self._mads:
            await self._admit()
        self._may_trim |= await self._intake.look_for_others()
        if self._decider.overloaded:
            await self._look_at_backlog()
        if self._fetches.loaded:
            await self._admit_loaded()
        if self._held.count or self._intake.paused:
            self._release()
        if self._decider.unread.is_due:
            await self._decider.unread.look(self._wire, self._now.ms)
        return self._taken_from_queue()

    def _taken_from_queue(self) -> list[Queued]:
        parts = self._parts
        received = self._queue.take(parts.batch_commands, parts.batch_bytes)
        if self._fetches.held_bytes:
            for one in received:
                if isinstance(one, Delivery) and one.given_bytes:
                    self._fetches.release(one)
        return received

    def _release(self) -> None:
        """
        Let go on what waits no more, and pause the MADs of which too much waits.
        """
        self._queue.put_back(self._waiting.release())
        self._queue.put_back(self._producers.release())
        self._intake.paused = self._held.mads_beyond(
            MAX_WAITING_OF_MAD, MAX_WAITING_OF_MAD_BYTES
        )

    async def _admit_loaded(self) -> None:
        """
        Make the loaded sessions hot, and let their commands go on.
        """
        loaded = self._fetches.take_loaded()
        states = await self._admission.admit(loaded, self._now)
        for session_id, state in states.items():
            self._fetches.resume(session_id, state, self._now)

    async def _decide_all(self, received: Sequence[Queued], batch: Batch) -> None:
        """
        Settle the commands into *batch*, as far as that is possible now.
        """
        self._decided_ns = time.time_ns()
        if self._parts.sealed is not None:
            for one in received:
                if isinstance(one, Delivery):
                    one.envelope = await self._parts.sealed.open_body(one.envelope)
        await self._load(received, batch.now)
        self._parts.fail("after_load")
        self._producers.batch = received
        for one in received:
            if isinstance(one, Undecodable):
                self._decider.replies.bury_undecodable(one, batch)
            elif self._waits(one):
                continue
            elif not one.suspect or await self._may_try(one, batch):
                self._decide(one, batch)
        self._count_waiting()

    async def _load(self, received: Sequence[Queued], now: Now) -> None:
        """
        Look up what the commands need and the cache has not, or no longer surely.
        """
        cache, lookup = self._decider.cache, self._lookup
        # A hot copy of that age may expire under us: it is read again.
        lasts = timedelta(milliseconds=0.9 * lookup.hot_epoch.ttl_ms)
        cache.begin(now.datetime - lasts)
        lookup.below.clear()
        if not cache.covers(received):
            await lookup.load(received, now)
            self._decider.refuse_uncounted(received)

    def _waits(self, delivery: Delivery) -> bool:
        """
        Let *delivery* wait if its session, or its producer, has to.

        Asked as late as this: the lookup must see a publisher's commands in their
        order, and an earlier command of the batch may block the session.
        """
        producers = self._producers
        if producers.queues and producers.enqueue_behind(delivery):
            return True
        waiting, below = self._waiting.queues, self._lookup.below
        if (waiting or below) and self._session_waits(delivery):
            return True
        return producers.block(delivery)

    def _session_waits(self, delivery: Delivery) -> bool:
        if isinstance(delivery.given, EverbusError):
            return False  # the lower tiers refuse: it only needs its reply
        if self._waiting.enqueue_behind(delivery):
            return True
        if delivery.session not in self._lookup.below:
            return False
        if not self._decider.worth_loading(delivery, self._now):
            return False
        self._fetches.load(delivery, self._lookup.below[delivery.session])
        return True

    async def _may_try(self, suspect: Delivery, batch: Batch) -> bool:
        """
        Mark the trial of a suspect; bury it instead after too many trials.
        """
        if len(suspect.attempts) >= MAX_ATTEMPTS:
            self._decider.replies.bury(suspect, batch, "poison")
            return False
        if not self._decider.defers(suspect):
            # A deferred one waits untried: no owner that ends meanwhile died of it.
            await self._quarantine.mark(suspect)
        return True

    def _decide(self, delivery: Delivery, batch: Batch) -> None:
        cancel = delivery.envelope.kind == CANCEL_KIND
        if cancel:
            self._refuse_cancelled(delivery, batch)
        decision = self._decider.decide(delivery, batch)
        if cancel:
            self._decider.revocation.settle_cancel(delivery)
        if decision is not Decision.SETTLED:
            self._let_wait(delivery, decision, batch)

    def _let_wait(self, delivery: Delivery, decision: Decision, batch: Batch) -> None:
        """
        Block the session for as long as *decision* needs.
        """
        if decision is Decision.WANTS:
            self._fetches.read(delivery)
        elif decision is Decision.DEFERRED:
            self._waiting.block(delivery, DEFERRED_RETRY_S)
        elif decision is Decision.LEAVING:
            self._decider.cache.sessions.pop(delivery.session, None)
            self._waiting.block(delivery, LEAVING_RETRY_S)
        elif len(delivery.attempts) >= MAX_ATTEMPTS:
            self._decider.replies.bury(delivery, batch, "poison")
        else:
            self._waiting.block(delivery, backoff_s(delivery))

    def _refuse_cancelled(self, cancel: Delivery, batch: Batch) -> None:
        """
        Decide the command that *cancel* is about, if it waits: it will be refused.

        The other commands keep their place and their time.
        """
        command, revocation = cancelled_by(cancel), self._decider.revocation

        def meant(one: Delivery) -> bool:
            return one.command == command and revocation.cancels(one)

        for delivery in (
            *self._waiting.withdraw_everywhere(meant),
            *self._producers.withdraw(meant),
        ):
            self._decider.decide(delivery, batch)

    async def _commit(self, batch: Batch) -> None:
        """
        Commit *batch* and read the next entries, in one write.
        """
        self._parts.fail("before_commit")
        if batch.sealed is not None:
            await batch.prepare()
        commands: list[Command] = [batch.command(self.owner)]
        if batch.replicating:
            commands.append(SERVER)
        reading = self._wants_more(batch)
        if reading:
            commands.append(self._intake.read())
        started = time.perf_counter()
        replies = await self._wire.exchange(commands, timeout_s=EXCHANGE_TIMEOUT_S)
        self._polled()
        self._committed(batch, replies[0], time.perf_counter() - started)
        if batch.replicating:
            self._replication.note(batch, replies[1])
        if reading:
            self._accept(replies[-1])

    def _wants_more(self, batch: Batch) -> bool:
        """
        Whether to read on behind the commit, rather than to rest after it.

        Behind a small batch there is seldom more, and a read would keep the reply
        back; the rest reads as well.
        """
        if self._stopping or self._full() or not self._intake.readable:
            return False
        return bool(self._queue) or batch.outcomes.total() > IDLE_COMMANDS

    def _accept(self, reply: Any) -> None:
        now_ms, received = self._intake.accept(reply)
        self._now = Now.at(now_ms)
        if not received:
            return
        self._queue.extend(received)
        if cancels := cancels_in(received):
            self._decider.revocation.note_cancels(cancels)
        self._parts.fail("after_read")

    def _committed(self, batch: Batch, reply: Any, took_s: float) -> None:
        backlog = backlog_after(reply)
        batch.confirm()
        self._parts.fail("after_commit")
        self._intake.settled(batch.acknowledged)
        self._note_backlog(backlog)
        for delivery, stream, size in batch.stored_replies():
            self._decider.unread.note(delivery, stream, size, batch.now.ms)
        # Waiting commands rely on their publisher's window, which may be new.
        self._decider.cache.measure(batch.changes)
        self._decider.cache.shrink(windows=not self._held.count)
        self._count(batch, took_s)
        if batch.traced:
            tracing.committed(batch.traced, self.number, self._decided_ns)
        if batch.letters and (dropped := dropped_letters(reply)):
            metrics.BOUND_REACHED.labels("dead_letters_max_bytes").inc(dropped)
            log.error("letters.dropped", lane=self.number, letters=dropped)

    def _count(self, batch: Batch, took_s: float) -> None:
        for (kind, code), count in batch.outcomes.items():
            metrics.COMMANDS.labels(kind, code).inc(count)
        for cause in batch.letters:
            metrics.DEAD.labels(cause if cause in metrics.CAUSES else "other").inc()
            log.error("command.buried", lane=self.number, cause=cause)
        metrics.BATCH.observe(batch.outcomes.total())
        metrics.COMMIT.observe(took_s)

    def _count_waiting(self) -> None:
        if self._held.count != self._counted:
            self._counted = self._held.count
            metrics.PARKED.labels(self.number).set(self._counted)

    async def _look_at_backlog(self) -> None:
        backlog = await self._wire.call("GET", key_names.backlog(self.number))
        self._note_backlog(int(backlog or 0))

    def _note_backlog(self, records: int) -> None:
        metrics.BACKLOG.labels(self.number).set(records)
        self._backlog = records
        full = records >= self._parts.outbox_records or (
            self._memory_full and records > 0
        )
        if full and not self._decider.overloaded:
            NOTED.count("overload")
        self._decider.overloaded = full
        self._decider.memory_full = self._memory_full

    async def _rest(self) -> None:
        """
        Wait for new entries, a due session, data of the lower tiers, or a nudge.
        """
        if time.monotonic() >= self._recovery.prune_at:
            await self._recovery.prune(self._now)
        due_s = self._waiting.due_in_s() if self._waiting.queues else None
        wait_s = WAIT_MS / 1000 if due_s is None else min(WAIT_MS / 1000, due_s)
        if self._full() or not self._intake.readable:
            await self._pause(wait_s)
            return
        self._resting = not self._nudged.is_set()
        try:
            if self._resting:
                self._accept(await self._intake.wait(int(wait_s * 1000)))
                self._polled()
        except WireFailed:
            if not self._nudged.is_set():
                raise
        finally:
            self._resting = False
        self._nudged.clear()
        if not self._wire.connected:
            await self._wire.reopen()
            await self._epochs.check(self._lookup.hot_epoch)

    def _nudge(self) -> None:
        """
        Wake the lane from its rest by closing the connection that it waits on.

        Cheaper than a task a rest, and harmless: the next connection has an epoch of
        its own, so that a late wait takes nothing.
        """
        self._nudged.set()
        if self._resting:
            self._interruption = asyncio.create_task(self._interrupt())

    async def _interrupt(self) -> None:
        if self._resting:
            await self._wire.close()

    async def _pause(self, wait_s: float) -> None:
        await set_within(self._nudged, wait_s)
        self._nudged.clear()
        self._polled()

    def _stage_trims(self, batch: Batch) -> None:
        if not self._may_trim:
            return
        self._may_trim = False
        for mad, before in self._intake.trims().items():
            batch.trim(mad, before)

    def _full(self) -> bool:
        """
        Whether so many commands wait that the lane may read no more.
        """
        waiting = self._held.count + len(self._fetches.reads)

        return waiting >= MAX_WAITING or self._held.bytes >= MAX_WAITING_BYTES

    def _polled(self) -> None:
        self.polled_at = time.monotonic()
