"""
One lane: the commands of one partition, from its streams to their commits.

A lane is a loop of turns. A turn commits the batch before and reads the next
entries in one write; then what is unknown is loaded, and the commands are
judged in order. Whatever disturbs it (a lost connection, a vanished group, a
stale session), the remedy is one and the same: forget everything and begin
with what is pending, since pending is exactly what was not committed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from bus.cluster import wire_to
from bus.errors import EverbusError
from bus.wire import EXCHANGE_TIMEOUT_S, Command, WireFailed
from gateway import metrics, tracing
from gateway.admission import Admission
from gateway.aside import Aside
from gateway.batch import Batch, Limits, backlog_after
from gateway.below import Tiers
from gateway.clock import Now
from gateway.delivery import CANCEL_KIND, Work
from gateway.errors import Disturbed, Superseded
from gateway.failpoints import FailPoint, disarmed
from gateway.failures import NOTED
from gateway.intake import WAIT_MS, Intake
from gateway.lookup import Lookup
from gateway.parking import Parking
from gateway.replication import Replicas, Replication
from gateway.settlement import Settlement, Verdict
from gateway.standing import cancelled_by
from gateway.store import names
from gateway.store.scripts import load_scripts
from gateway.suspects import Suspects

log = structlog.get_logger()

MAX_ATTEMPTS = 5
FIRST_RETRY_S = 0.1
HELD_RETRY_S = 0.25
# How often a session is looked at that is on its way to the cold tier.
LEAVING_RETRY_S = 0.05
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 32 * 1024 * 1024
TRIM_EVERY_S = 1.0
PRUNE_EVERY_S = 3600.0
LOAD_WORKS = 256
IDLE_COMMANDS = 1


class LaneParts(NamedTuple):
    """
    What a lane is built from, the same for all lanes of a replica.
    """

    redis_url: str
    partitions: int
    settlement: Callable[[], Settlement]
    tiers: Tiers
    incarnation: str
    limits: Limits = Limits()
    hot_ttl_ms: int = 3_600_000
    replicas: Replicas = Replicas()
    batch_commands: int = 256
    outbox_records: int = 50_000
    lease_ttl_ms: int = 30_000
    fail: FailPoint = disarmed


class Lane:
    """
    Serves one partition while *owner* is the value of its owner key.

    Attributes:
        polled_at: monotonic time of the last completed exchange; a lane whose
            exchanges stop completing is deaf, however connected it seems.
    """

    def __init__(self, number: int, owner: str, parts: LaneParts) -> None:
        self.number = number
        self.owner = owner
        self.polled_at = time.monotonic()
        self._parts = parts
        at = names.owner(number)
        self._wire = wire_to(parts.redis_url, name=f"everbus-lane-{number}", at=at)
        self._intake = Intake(self._wire, number, parts.partitions, owner)
        self._settlement = parts.settlement()
        self._lookup = Lookup(self._wire, number, self._settlement.known)
        self._parking = Parking(time.monotonic)
        self._queue: deque[Work] = deque()
        self._now = Now.at(0)
        self._mads: frozenset[str] = frozenset()
        self._admitted: frozenset[str] = frozenset()
        self._nudged = asyncio.Event()
        self._stopping = False
        self._resting = False
        self._suspects = Suspects(self._wire, number, owner, parts.incarnation)
        self._parked = 0
        self._trimmed_at = 0.0
        self._pruned_at = -PRUNE_EVERY_S
        self._replication = Replication(parts.replicas)
        self._admission = Admission(self._wire, number, owner, parts.hot_ttl_ms)
        self._aside = Aside(
            parts.tiers,
            self._admission,
            self._settlement,
            self._parking,
            self._queue,
            self._nudge,
        )
        self._interruption: asyncio.Task[None] | None = None
        self._judged_ns = 0

    def admit(self, mads: frozenset[str]) -> None:
        """
        Serve these MADs from the next turn on.
        """
        if mads != self._mads:
            self._mads = mads
            self._nudge()

    def stop(self) -> None:
        """
        Read no more, finish what was read, then let `run` return.
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
            Superseded: another replica owns the lane.
        """
        wait_s = FIRST_RETRY_S
        try:
            while True:
                try:
                    return await self._serve()
                except EverbusError as error:
                    self._disturbed(error)
                except Superseded:
                    raise
                except Exception:  # a defect must not end the other lanes
                    # A new life: the trial that was under way counts as failed.
                    self._suspects.begin_life()
                    log.exception("lane.failed", lane=self.number)
                    metrics.DISTURBED.labels("defect").inc()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, 1.0)
                if self._stopping:
                    return None
        finally:
            self._aside.cancel()
            await self._wire.close()

    def _disturbed(self, error: EverbusError) -> None:
        cause = error.cause if isinstance(error, Disturbed) else error.code
        level = log.error if cause == "nogroup" else log.warning
        level("lane.disturbed", lane=self.number, cause=cause, error=error.message)
        metrics.DISTURBED.labels(cause).inc()

    async def _serve(self) -> None:
        """
        Begin with what is pending, then take turns until stopped.
        """
        await self._open()
        while True:
            works = await self._next_works()
            watchers = self._settlement.watchers
            batch = Batch(self.number, self._parts.limits, watchers)
            self._replication.stage(batch)
            await self._judge_all(works, batch)
            self._stage_trims(batch)
            if batch:
                await self._turn(batch)
            elif self._stopping and self._intake.astray:
                # What the interrupted wait was given is ours to finish.
                self._accept(await self._intake.wait(1))
            elif self._stopping and not self._queue:
                return
            elif not works:
                await self._prune()
                await self._rest()

    async def _open(self) -> None:
        """
        Forget everything and read what is pending.
        """
        self._aside.cancel()
        self._parking.clear()
        self._queue.clear()
        self._replication.clear()
        self._settlement.forget()
        self._intake = Intake(
            self._wire, self.number, self._parts.partitions, self.owner
        )
        await load_scripts(self._wire)
        # What is pending is judged before anything is read, which tells the time.
        [seconds, micros] = await self._wire.call("TIME")
        self._now = Now.at(int(seconds) * 1000 + int(micros) // 1000)
        self._lookup.era = await self._admission.era(
            self._now, tiers=self._settlement.tiers
        )
        await self._admit()
        backlog = await self._wire.call("GET", names.backlog(self.number))
        self._note_backlog(int(backlog or 0))
        await self._prune()
        pending = await self._intake.replay()
        if pending:
            self._parts.fail("takeover")
            await self._suspect(pending)
        self._polled()

    async def _prune(self) -> None:
        """
        Forget publishers that are long gone, so that memory does not grow.
        """
        if time.monotonic() - self._pruned_at < PRUNE_EVERY_S:
            return
        self._pruned_at = time.monotonic()
        await self._lookup.prune(self.owner, self._now.ms // 1000)

    async def _admit(self) -> None:
        mads = self._mads
        await self._intake.admit(mads)
        self._admitted = mads

    async def _suspect(self, pending: list[Work]) -> None:
        """
        Queue pending commands, each to be tried alone: one may be a killer.

        Those that were tried alone before and never settled wait behind all
        others, so that they kill nobody's work but their own session's.
        """
        log.info("lane.replays", lane=self.number, commands=len(pending))
        await self._suspects.recognise(pending)
        self._settlement.standing.note_cancels(pending)
        # In their order, before any is put aside: the first that is seen of an
        # unknown publisher decides which of its numbers count as gone.
        for first in range(0, len(pending), LOAD_WORKS):
            await self._lookup.load(pending[first : first + LOAD_WORKS], self._now)
        for work in pending:
            if self._parking.joins(work):
                continue
            if work.attempts and work.trouble is None:
                self._parking.park(work, _backoff_s(work))
            else:
                self._queue.append(work)

    async def _turn(self, batch: Batch) -> None:
        """
        Commit *batch* and read the next entries, in one write.
        """
        self._parts.fail("before_commit")
        commands: list[Command] = [batch.command(self.owner)]
        patience_s = EXCHANGE_TIMEOUT_S
        if batch.replicating:
            commands.append(self._replication.command())
            patience_s += self._replication.timeout_s
        reading = self._wants_more(batch)
        if reading:
            commands.append(self._intake.read())
        started = time.perf_counter()
        replies = await self._wire.exchange(commands, timeout_s=patience_s)
        self._polled()
        self._committed(batch, replies[0], time.perf_counter() - started)
        if batch.replicating:
            self._replication.note(batch, replies[1])
        if reading:
            self._accept(replies[-1])

    def _wants_more(self, batch: Batch) -> bool:
        """
        Whether to read on behind the commit, rather than to rest after it.

        Behind a small batch there is seldom more, and looking for it would keep
        the reply back; resting looks as well.
        """
        if self._stopping or self._full() or not self._intake.mads:
            return False
        if not self._queue and batch.outcomes.total() <= IDLE_COMMANDS:
            return False
        return len(self._queue) < self._parts.batch_commands

    def _accept(self, reply: Any) -> None:
        now_ms, works = self._intake.accept(reply)
        self._now = Now.at(now_ms)
        self._queue.extend(works)
        if works:
            self._settlement.standing.note_cancels(works)
            self._parts.fail("after_read")

    def _committed(self, batch: Batch, reply: Any, took_s: float) -> None:
        backlog = backlog_after(reply)
        self._parts.fail("after_commit")
        self._intake.settled(batch.acknowledged)
        self._note_backlog(backlog)
        # What waits relies on its publisher's record, which may be new.
        self._settlement.known.shrink(progress=not self._parking)
        metrics.count_commit(batch.outcomes, batch.letters, took_s)
        if batch.traced:
            tracing.committed(batch.traced, self.number, self._judged_ns)
        for cause in batch.letters:
            log.error("command.buried", lane=self.number, cause=cause)

    def _note_parked(self) -> None:
        if len(self._parking) != self._parked:
            self._parked = len(self._parking)
            metrics.PARKED.labels(self.number).set(self._parked)

    def _note_backlog(self, records: int) -> None:
        metrics.BACKLOG.labels(self.number).set(records)
        full = records >= self._parts.outbox_records
        if full and not self._settlement.overloaded:
            NOTED.count("overload")
        self._settlement.overloaded = full

    async def _next_works(self) -> list[Work]:
        """
        The next commands to judge together; a suspect comes alone.
        """
        if self._admitted is not self._mads:
            await self._admit()
        if self._settlement.overloaded:
            backlog = await self._wire.call("GET", names.backlog(self.number))
            self._note_backlog(int(backlog or 0))
        await self._aside.admit(self._now)
        released = self._parking.release()
        self._queue.extendleft(reversed(released))
        works: list[Work] = []
        while self._queue and len(works) < self._parts.batch_commands:
            work = self._queue[0]
            if work.suspect and works:
                break
            works.append(self._queue.popleft())
            if work.suspect:
                break
        return works

    async def _judge_all(self, works: Sequence[Work], batch: Batch) -> None:
        """
        Settle *works* into *batch*, as far as they can be settled now.
        """
        if not works:
            return
        self._judged_ns = time.time_ns()
        await self._lookup.load(works, self._now)
        self._parts.fail("after_load")
        for work in works:
            # Only now: loading has seen all of them in their order. And an earlier
            # one of the same batch may have sent its session waiting.
            if not _is_told_off(work) and self._parking.joins(work):
                continue
            if self._lookup.below and self._is_below(work):
                self._aside.load(work)
            elif not work.suspect or await self._may_try(work, batch):
                self._judge(work, batch)
        self._note_parked()

    def _is_below(self, work: Work) -> bool:
        """
        Whether the work's session has to be loaded before it can be judged.
        """
        if _is_told_off(work) or work.trouble is not None:
            return False
        return work.session in self._lookup.below

    async def _may_try(self, work: Work, batch: Batch) -> bool:
        """
        Note that a suspect is tried, unless it was tried too often: then bury it.
        """
        if len(work.attempts) >= MAX_ATTEMPTS:
            self._settlement.bury(work, batch, self._now, "poison")
            return False
        if self._settlement.holds(work):
            # It waits untried: no owner that ends meanwhile has died of it.
            return True
        await self._suspects.mark(work)
        return True

    def _judge(self, work: Work, batch: Batch) -> None:
        cancel = work.envelope is not None and work.envelope.kind == CANCEL_KIND
        if cancel:
            self._take_back(work, batch)
        verdict = self._settlement.judge(work, batch, self._now)
        if cancel:
            self._settlement.standing.settle_cancel(work)
        if verdict is Verdict.FAILED:
            if len(work.attempts) >= MAX_ATTEMPTS:
                self._settlement.bury(work, batch, self._now, "poison")
            else:
                self._parking.park(work, _backoff_s(work))
        elif verdict is Verdict.HELD:
            self._parking.park(work, HELD_RETRY_S)
        elif verdict is Verdict.LEAVING:
            self._settlement.known.sessions.pop(work.session, None)
            self._parking.park(work, LEAVING_RETRY_S)
        elif verdict is Verdict.WANTS:
            self._aside.want(work)

    def _take_back(self, cancel: Work, batch: Batch) -> None:
        """
        Judge what *cancel* is about, if it waits: its turn has come, to be refused.
        """
        command, standing = cancelled_by(cancel), self._settlement.standing
        # Whatever still stands keeps its place and its time.
        for work in self._parking.take(
            lambda work: work.command == command and standing.cancels(work)
        ):
            self._settlement.judge(work, batch, self._now)

    async def _rest(self) -> None:
        """
        Wait for news on the streams, a due session, a page, or a nudge.
        """
        due_s = self._parking.due_in_s()
        wait_s = WAIT_MS / 1000 if due_s is None else min(WAIT_MS / 1000, due_s)
        if self._full() or not self._intake.mads:
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

    def _nudge(self) -> None:
        """
        Wake the lane, should it rest, by closing the connection it waits on.

        Cheaper than a task a rest, and harmless: what waits has taken nothing.
        """
        self._nudged.set()
        if self._resting:
            self._interruption = asyncio.create_task(self._interrupt())

    async def _interrupt(self) -> None:
        if self._resting:
            await self._wire.close()

    async def _pause(self, wait_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._nudged.wait()
        self._nudged.clear()
        self._polled()

    def _stage_trims(self, batch: Batch) -> None:
        now = time.monotonic()
        if now - self._trimmed_at < TRIM_EVERY_S:
            return
        self._trimmed_at = now
        for mad, below in self._intake.trims().items():
            batch.trim(mad, below)

    def _full(self) -> bool:
        """
        Whether so much waits already that nothing more may be read.
        """
        waiting = len(self._parking) + len(self._aside)

        return waiting >= MAX_WAITING or self._parking.bytes >= MAX_WAITING_BYTES

    def _polled(self) -> None:
        self.polled_at = time.monotonic()


def _backoff_s(work: Work) -> float:
    return float(FIRST_RETRY_S * 2 ** (len(work.attempts) - 1))


def _is_told_off(work: Work) -> bool:
    """
    Whether the tiers below cannot give what it needs, so that it only is told so.
    """
    return isinstance(work.given, EverbusError)
