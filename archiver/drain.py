"""
Write-behind: moves committed records from the outbox to the warm tier.

The drain reads an outbox entry, writes it, and only then confirms it; a crash anywhere
repeats it, and a repeated write changes nothing. The lease fences reads, so a paused
archiver takes nothing away from its successor; its late writes only ever go forward.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from everbus.archiver.confirmation import (
    ConfirmationLimits,
    OutboxEntry,
    confirmations,
    entries_in,
    idle_confirmation,
)
from everbus.archiver.consecutive_failures import ConsecutiveFailures
from everbus.archiver.dead_letters import burials
from everbus.archiver.lease import NAME as LEASE
from everbus.archiver.lease import ArchiverLease
from everbus.archiver.script_runner import run
from everbus.bus.backoff import HALF_JITTER, Backoff
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.waits import set_within
from everbus.bus.wire import Command
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import WriteRefused
from everbus.gateway.store.warm_roles import WarmRecords
from everbus.gateway.telemetry import metrics, tracing

log = structlog.get_logger()

T = TypeVar("T")

CONSUMER = "drain"
# Entries of each outbox per round; an entry holds one commit.
READ_ENTRIES = 32
# A round of more than this has fewer entries next time.
ROUND_BYTES = 8 * 1024 * 1024
WAIT_MS = 500
STANDBY_S = 0.1
# After failures of the warm tier in a row: 2, 4, 8, 16, 32, 32 … s.
FIRST_WAIT_S = 2.0
MAX_WAIT_S = 32.0
# After failures of the bus in a row: it is back in a moment after a hand-over.
FIRST_BUS_WAIT_S = 0.1
MAX_BUS_WAIT_S = 1.0
# How often, when idle, the counts of empty outboxes are set right.
RECKON_S = 5.0


TERMS = ConfirmationLimits()


class LeaseLost(Exception):
    """
    Another archiver has the lease: this one must not read on.
    """


class WarmTierFailed(Unavailable):
    """
    The warm tier cannot take the records now; the bus has no part in it.
    """


class Drain:
    """
    Moves the outboxes of all partitions into the warm tier.

    Attributes:
        lease: held while this archiver is the active one.
        written: number of records confirmed since the start.
    """

    def __init__(
        self,
        redis_url: str,
        partitions: int,
        warm: WarmRecords,
        name: str,
        *,
        fail: Callable[[str], object],
        terms: ConfirmationLimits = TERMS,
        backoff: Backoff | None = None,
        sealed: SealedCopies | None = None,
    ) -> None:
        self._sealed = sealed
        self.lease = ArchiverLease(redis_url, name)
        self.written = 0
        self._wire = wire_to(redis_url, name="everbus-archiver")
        self._partitions = range(partitions)
        self._warm = warm
        self._fail = fail
        self._terms = terms
        self._tier_failures = ConsecutiveFailures(
            backoff or Backoff(FIRST_WAIT_S, MAX_WAIT_S)
        )
        self._bus_failures = ConsecutiveFailures(
            Backoff(FIRST_BUS_WAIT_S, MAX_BUS_WAIT_S, jitter=HALF_JITTER)
        )
        self._reckoned_at = 0.0
        self._count = READ_ENTRIES

    @property
    def trouble(self) -> str:
        """
        Why the bus does not let this archiver work, for some seconds; else empty.
        """
        return self.lease.trouble or self._bus_failures.trouble

    async def run(self, stop: asyncio.Event) -> None:
        """
        Drain until *stop* is set; nothing that fails is ever dropped.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(self.lease.run())
                await self._drain_until(stop)
                keeping.cancel()
        finally:
            await self.lease.release()
            await self._wire.close()

    async def _drain_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not self.lease.held:
                await set_within(stop, STANDBY_S)
                continue
            try:
                await self._drain(stop)
            except LeaseLost:
                metrics.SUPERSEDED.inc()
                log.warning("drain.superseded")
                self.lease.lose()
            except EverbusError as error:
                await set_within(stop, self._failures_of(error).note(error))

    def _failures_of(self, error: EverbusError) -> ConsecutiveFailures:
        away = isinstance(error, WarmTierFailed)

        return self._tier_failures if away else self._bus_failures

    def _clear_failures(self) -> None:
        self._tier_failures.clear()
        self._bus_failures.clear()

    async def _drain(self, stop: asyncio.Event) -> None:
        """
        Finish what was begun, then follow the outboxes while the lease is ours.
        """
        await self._make_groups()
        await _of_the_warm_tier(self._warm.prepare())
        while await self._move("0"):
            if stop.is_set():
                return
        while self.lease.held and not stop.is_set():
            await self._follow()

    async def _make_groups(self) -> None:
        group = (key_names.ARCHIVER_GROUP, "0")
        await run(
            self._wire,
            [script("groups", [key_names.outbox(p)], *group) for p in self._partitions],
        )

    async def _follow(self) -> None:
        """
        Move new entries; without any, wait a little for them.
        """
        if await self._move(">"):
            return
        self._clear_failures()
        if not await self._anything():
            await self._reckon()
        elif not await self._move(">"):
            # Entries there that are not new were read and never confirmed.
            await self._move("0")

    async def _anything(self) -> bool:
        """
        Whether an outbox has an entry, after at most WAIT_MS.
        """
        outboxes = [key_names.outbox(p) for p in self._partitions]
        command: Command = (
            *("XREAD", "COUNT", 1, "BLOCK", WAIT_MS, "STREAMS"),
            *outboxes,
            *(["0"] * len(outboxes)),
        )
        timeout_s = WAIT_MS / 1000 + 5.0
        return bool(await self._wire.call(*command, timeout_s=timeout_s))

    async def _reckon(self) -> None:
        """
        Correct the counts of empty outboxes, after entries were trimmed by hand.
        """
        if time.monotonic() - self._reckoned_at < RECKON_S:
            return
        await run(self._wire, [idle_confirmation(p) for p in self._partitions])
        self._reckoned_at = time.monotonic()

    async def _move(self, after: str) -> int:
        """
        Write and confirm the next entries of every outbox; returns their number.

        Args:
            after: `>` for new entries, `0` for entries read and not confirmed.

        Raises:
            Unavailable: a tier or the bus is away; the entries stay pending.
            LeaseLost: another archiver works.
        """
        entries, now_ms = await self._read(after)
        if not entries:
            return 0
        self._fail("drain_read")
        records = [r for e in entries for r in e.records]
        begun_ns = time.time_ns()
        refused = await _of_the_warm_tier(self._warm.write(records))
        tracing.written_behind((e for r in records for e in r.events), begun_ns)
        self._fail("drain_written")
        await self._bury(refused, entries, now_ms)
        await self._confirm(entries, refused, now_ms)
        self._fail("drain_confirmed")
        self._clear_failures()

        return len(entries)

    async def _read(self, after: str) -> tuple[list[OutboxEntry], int]:
        """
        The next entries, and the server's clock.
        """
        entries: list[OutboxEntry] = []
        now_ms = 0
        for reply in await run(self._wire, self._reads(after)):
            if reply[0] == b"superseded":
                raise LeaseLost
            if reply[0] == b"nogroup":
                log.error("drain.group_lost")
                raise Unavailable("the outboxes' group is gone: the bus lost its data")
            now_ms, streams = reply
            if self._sealed is not None:
                streams = await self._sealed.open_outbox(streams)
            entries += entries_in(streams)
        self._pace(sum(entry.size for entry in entries))

        return entries, int(now_ms)

    def _reads(self, after: str) -> list[Command]:
        """
        The fenced reads of the next entries behind *after*.
        """
        return [self._read_command(key_names.owner(LEASE), self._partitions, after)]

    def _read_command(
        self, fence: str, partitions: Sequence[int], after: str
    ) -> Command:
        keys = [fence, *map(key_names.outbox, partitions)]
        arguments = (self.lease.owner, key_names.ARCHIVER_GROUP, CONSUMER, self._count)

        return script("read_outbox", keys, *arguments, *([after] * len(partitions)))

    def _pace(self, size: int) -> None:
        """
        Read fewer entries at once while they are large, to bound memory.
        """
        if size > ROUND_BYTES:
            self._count = max(1, self._count // 2)
        elif size < ROUND_BYTES // 4:
            self._count = min(READ_ENTRIES, 2 * self._count)

    async def _bury(
        self,
        refused: Sequence[WriteRefused],
        entries: Sequence[OutboxEntry],
        now_ms: int,
    ) -> None:
        """
        Bury refused records as dead letters before their entries go; a crash between
        the two steps leaves a letter twice.
        """
        commands = list(burials(refused, entries, now_ms, self._sealed))
        if commands:
            await run(self._wire, commands)

    async def _confirm(
        self,
        entries: Sequence[OutboxEntry],
        refused: Sequence[WriteRefused],
        now_ms: int,
    ) -> None:
        commands = list(confirmations(entries, refused, now_ms, self._terms))
        await run(self._wire, commands)
        records = sum(entry.counted for entry in entries)
        self.written += records
        metrics.DRAINED.inc(records)


async def _of_the_warm_tier(call: Awaitable[T]) -> T:
    """
    The result of *call*, which asks the warm tier.

    Raises:
        WarmTierFailed: it cannot be had now.
    """
    try:
        return await call
    except EverbusError as error:
        raise WarmTierFailed(error.message, **error.details) from error
