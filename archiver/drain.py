"""
Write-behind: what was committed reaches the warm tier, then leaves the outbox.

An outbox entry is read, written, and only then confirmed; a crash anywhere repeats
it, and the warm tier does not mind. Reading is fenced by the lease, so that an
archiver that was paused takes nothing away from its successor; what it does with
what it had read before only ever goes forward.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

import structlog
from redis.exceptions import ResponseError

from archiver.burial import burials
from archiver.confirmation import (
    OutboxEntry,
    Terms,
    confirmations,
    entries_in,
    idle_confirmation,
)
from archiver.failures import BACKOFF, Backoff, Failures
from archiver.lease import NAME as LEASE
from archiver.lease import Lease
from archiver.pauses import pause
from archiver.scripting import run
from bus.cluster import wire_to
from bus.errors import EverbusError, Unavailable
from bus.wire import Command, refusal
from gateway import metrics, tracing
from gateway.store import names
from gateway.store.outbox import Record
from gateway.store.scripts import script
from gateway.store.tiers import Refused, WarmTier

log = structlog.get_logger()

CONSUMER = "drain"
# Entries of each outbox per round; an entry holds one commit.
READ_ENTRIES = 32
# A round of more than this has fewer entries next time.
ROUND_BYTES = 8 * 1024 * 1024
WAIT_MS = 500
STANDBY_S = 0.1
# How often, when idle, the counts of empty outboxes are set right.
RECKON_S = 5.0


TERMS = Terms()


class LeaseLost(Exception):
    """
    Another archiver works now: nothing more may be read.
    """


class Drain:
    """
    Moves the outboxes of all partitions into the warm tier.

    Attributes:
        lease: held while this archiver is the one that works.
        written: how many records were confirmed since the start.
    """

    def __init__(
        self,
        redis_url: str,
        partitions: int,
        warm: WarmTier,
        name: str,
        *,
        fail: Callable[[str], None],
        terms: Terms = TERMS,
        backoff: Backoff = BACKOFF,
    ) -> None:
        self.lease = Lease(redis_url, name)
        self.written = 0
        self._wire = wire_to(redis_url, name="everbus-archiver")
        self._partitions = range(partitions)
        self._warm = warm
        self._fail = fail
        self._terms = terms
        self._failures = Failures(backoff)
        self._reckoned_at = 0.0
        self._count = READ_ENTRIES

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
                await pause(stop, STANDBY_S)
                continue
            try:
                await self._drain(stop)
            except LeaseLost:
                metrics.SUPERSEDED.inc()
                log.warning("drain.superseded")
                self.lease.lose()
            except EverbusError as error:
                await pause(stop, self._failures.note(error))

    async def _drain(self, stop: asyncio.Event) -> None:
        """
        Finish what was begun, then follow the outboxes while the lease is ours.
        """
        await self._make_groups()
        await self._warm.prepare()
        while await self._move("0"):
            if stop.is_set():
                return
        while self.lease.held and not stop.is_set():
            await self._follow()

    async def _make_groups(self) -> None:
        make = ("XGROUP", "CREATE")
        replies = await self._wire.exchange(
            [
                (*make, names.outbox(p), names.ARCHIVER_GROUP, "0", "MKSTREAM")
                for p in self._partitions
            ]
        )
        for reply in replies:
            if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
                raise refusal(reply)

    async def _follow(self) -> None:
        """
        Move what is new; if there is nothing, wait a little for it.
        """
        if await self._move(">"):
            return
        self._failures.clear()
        if not await self._anything():
            await self._reckon()
        elif not await self._move(">"):
            # What lies there and is not new was read and never confirmed.
            await self._move("0")

    async def _anything(self) -> bool:
        """
        Whether an outbox holds anything, waiting WAIT_MS for it.
        """
        outboxes = [names.outbox(p) for p in self._partitions]
        command: Command = (
            *("XREAD", "COUNT", 1, "BLOCK", WAIT_MS, "STREAMS"),
            *outboxes,
            *(["0"] * len(outboxes)),
        )
        timeout_s = WAIT_MS / 1000 + 5.0
        return bool(await self._wire.call(*command, timeout_s=timeout_s))

    async def _reckon(self) -> None:
        """
        Set the counts of empty outboxes right, where entries were trimmed by hand.
        """
        if time.monotonic() - self._reckoned_at < RECKON_S:
            return
        await run(self._wire, [idle_confirmation(p) for p in self._partitions])
        self._reckoned_at = time.monotonic()

    async def _move(self, after: str) -> int:
        """
        Write and confirm the next entries of every outbox; returns how many.

        Args:
            after: `>` for new entries, `0` for those read and not confirmed.

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
        refused = await self._warm.write(records)
        tracing.written_behind((e for r in records for e in r.events), begun_ns)
        self._fail("drain_written")
        await self._bury(refused, entries, now_ms)
        await self._confirm(entries, [one.record for one in refused], now_ms)
        self._fail("drain_confirmed")
        self._failures.clear()

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
            entries += entries_in(streams)
        self._pace(sum(entry.size for entry in entries))

        return entries, int(now_ms)

    def _reads(self, after: str) -> list[Command]:
        """
        The fenced reads of the next entries behind *after*.
        """
        return [self._read_command(names.owner(LEASE), self._partitions, after)]

    def _read_command(
        self, fence: str, partitions: Sequence[int], after: str
    ) -> Command:
        keys = [fence, *map(names.outbox, partitions)]
        told = (self.lease.owner, names.ARCHIVER_GROUP, CONSUMER, self._count)

        return script("read", keys, *told, *([after] * len(partitions)))

    def _pace(self, size: int) -> None:
        """
        Read fewer entries at once while they are large: memory is bounded.
        """
        if size > ROUND_BYTES:
            self._count = max(1, self._count // 2)
        elif size < ROUND_BYTES // 4:
            self._count = min(READ_ENTRIES, 2 * self._count)

    async def _bury(
        self, refused: Sequence[Refused], entries: Sequence[OutboxEntry], now_ms: int
    ) -> None:
        """
        Keep what cannot be written as dead letters, before the entries go; a crash
        between the two leaves a letter twice.
        """
        commands = list(burials(refused, entries, now_ms))
        if commands:
            await run(self._wire, commands)

    async def _confirm(
        self, entries: Sequence[OutboxEntry], refused: Collection[Record], now_ms: int
    ) -> None:
        commands = list(confirmations(entries, refused, now_ms, self._terms))
        await run(self._wire, commands)
        records = sum(entry.counted for entry in entries)
        self.written += records
        metrics.DRAINED.inc(records)
