"""
Backfill: all conversations of the old store, in bounded batches, resumable.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from everbus.bus import Mad
from everbus.bus.errors import Rejection, Unauthenticated
from everbus.compose.migration.copying import Copied, Copier, Diverged
from everbus.compose.migration.cutover import CutoverPlan
from everbus.compose.migration.mapping import MigrationMapping, SessionPlan
from everbus.compose.migration.position import (
    BackfillPosition,
    PositionFile,
    RefusedReport,
)
from everbus.compose.migration.reading import ConversationReader, RefusedRow
from everbus.compose.migration.source import OldConversation, OldStore, in_batches
from everbus.compose.migration.values import RowProblem
from everbus.compose.progress import Advance, Pace
from everbus.compose.worker_pool import each

BATCH = 64
AT_ONCE = 8

# The MAD that writes for a tenant.
MadOf = Callable[[str], Awaitable[Mad]]


class BackfillFiles(NamedTuple):
    """
    The files of one backfill.
    """

    position: Path
    report: Path


class _Job(NamedTuple):
    conversation: OldConversation
    plan: SessionPlan
    mad: Mad


class Backfill:
    """
    One pass over the old store, from the stored position to the end.
    """

    def __init__(
        self,
        store: OldStore,
        mapping: MigrationMapping,
        mad_of: MadOf,
        files: BackfillFiles,
        *,
        rate: float | None = None,
        cutover: CutoverPlan | None = None,
    ) -> None:
        self._store = store
        self._mad_of = mad_of
        self._file = PositionFile(files.position, mapping.digest)
        self.position: BackfillPosition = self._file.load()
        self._report = RefusedReport(files.report, self.position.report_bytes)
        self._reader = ConversationReader(store, mapping, self._refused)
        self._cutover = cutover or CutoverPlan()
        self._turns = asyncio.Lock()
        self._pace = Pace(rate, time.monotonic) if rate else None

    async def run(self, advance: Advance) -> BackfillPosition:
        """
        Copy all that is left; the position goes on disk after each batch.

        Raises:
            EverbusError: the bus is away for long, or refuses the token.
        """
        found = self._store.conversations(self.position.after)
        batches = in_batches(found, BATCH)
        try:
            while batch := await asyncio.to_thread(next, batches, None):
                # Here, not in the workers: a connection ends in the task that made it.
                jobs = [job for one in batch if (job := await self._job(one))]
                await each(self._copy, jobs, AT_ONCE)
                self.position.after = batch[-1].position
                self.position.report_bytes = self._report.sync()
                self._file.save(self.position)
                advance(len(batch))
        finally:
            self._report.close()
        self._file.remove()

        return self.position

    async def _job(self, conversation: OldConversation) -> "_Job | None":
        tally = self.position.tally
        tally.conversations += 1
        plan = self._reader.plan(conversation)
        if plan is None:
            return None
        if self._everbus_leads(plan.owner):
            tally.cut_over += 1
            return None
        return _Job(conversation, plan, await self._mad_of(plan.tenant))

    async def _copy(self, job: "_Job") -> None:
        copier = Copier(job.mad, self._reader, self._paced if self._pace else None)
        try:
            self._count(await copier.copy(job.conversation, job.plan))
        except Unauthenticated:
            raise
        except (Diverged, Rejection) as error:
            self._reader.refuse(job.conversation, RowProblem("session", str(error)))

    def _everbus_leads(self, user: str) -> bool:
        return "everbus" in (self._cutover.now.of(user), self._cutover.next.of(user))

    def _count(self, copied: Copied) -> None:
        tally = self.position.tally
        tally.created += copied.created
        tally.appended += copied.appended
        tally.patched += copied.patched

    def _refused(self, row: RefusedRow) -> None:
        self.position.tally.refused += 1
        self._report.write(row)

    async def _paced(self) -> None:
        if self._pace is not None:
            # One at a time: each turn is the next one's beginning.
            async with self._turns:
                await self._pace.turn()
