"""
Takes a backup: reads MongoDB and the cold tier, session by session, into parts.

Small sessions are read side by side into memory and written when none of them has
moved; a large one is streamed into the part, and taken back out if it has moved.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import msgspec

from everbus.bus.backoff import Backoff
from everbus.compose.backup.archive_copies import ArchiveCopies, ArchiveTrouble
from everbus.compose.backup.folder import (
    MOST_NAMED,
    BackupFolder,
    BackupManifest,
    BackupPart,
    NamedSession,
)
from everbus.compose.backup.format import CopyRecord, PartWriter
from everbus.compose.progress import Advance
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.store.mongo.data_keys import DATA_KEYS
from everbus.gateway.store.mongo.documents import REMOVALS, SESSIONS
from everbus.gateway.store.mongo.export import (
    Export,
    RowCount,
    StoredRow,
    is_placeholder,
)

KEYS_PART, REMOVALS_PART = "keys.part", "removals.part"
# A part ends behind the session that reaches one of these.
PART_BYTES, PART_SESSIONS = 64 * 2**20, 5_000
# A session with more is streamed; of the others so many are read side by side.
SMALL_BYTES, SIDE_BY_SIDE = 2**20, 8
# Reads of a session that moves meanwhile, and the pause before the second; it doubles.
TRIES, PAUSE_S = 6, 0.1

Counts = Counter[str]


class _Copy:
    """
    One reading of a session.

    Attributes:
        counts: kind → number of records so far.
        trouble: what MongoDB or the cold tier lacks of it; empty: nothing.
    """

    def __init__(self, row: StoredRow) -> None:
        self.row = row
        self.counts: Counts = Counter()
        self.trouble = ""

    async def records(
        self, export: Export, archives: ArchiveCopies
    ) -> AsyncIterator[CopyRecord]:
        """
        The document, then its rows, then its archive.
        """
        document = self.row.document
        yield CopyRecord(SESSIONS, document["_id"], self.row.data)
        if "deleted_at" in document:
            self.counts["tombstones"] += 1
            return
        self.counts["sessions"] += 1
        held = RowCount(document)
        async for row in export.rows(document):
            held.see(row)
            self.counts[row.collection] += 1
            yield CopyRecord(row.collection, "", row.data)
        self.trouble = held.missing()
        try:
            async for record in archives.records(document, self.counts):
                yield record
        except ArchiveTrouble as error:
            self.trouble = f"{self.trouble}; {error}" if self.trouble else str(error)


class BackupRun:
    """
    One run of `everbus backup`, from where an earlier one ended.

    Args:
        fail: passed at "backup_page", "backup_part", "backup_noted" and
            "backup_manifest".
        advance: called with the number of sessions looked at.
    """

    def __init__(
        self,
        export: Export,
        archives: ArchiveCopies,
        folder: BackupFolder,
        fail: FailPoint,
        advance: Advance,
    ) -> None:
        self._export = export
        self._archives = archives
        self._folder = folder
        self._fail = fail
        self._advance = advance

    async def run(self, progress: BackupManifest) -> BackupManifest:
        """
        Take what *progress* lacks; returns the manifest of the finished backup.

        Raises:
            Unavailable: a tier is away; the next run goes on.
        """
        # Removals first: of an archive that is noted later, the session is not in a
        # later part, or alive in it.
        if progress.with_keys:
            progress = await self._collection(progress, KEYS_PART, DATA_KEYS)
        progress = await self._collection(progress, REMOVALS_PART, REMOVALS)
        while not progress.sessions_done:
            part = _SessionsPart(self._export, self._archives, self._folder, progress)
            noted = await part.run(self._fail, self._advance)
            self._note(noted)
            progress = noted
        finished = datetime.now(UTC).isoformat()
        manifest = msgspec.structs.replace(progress, finished=finished)
        self._folder.finish(manifest)
        self._fail("backup_manifest")

        return manifest

    async def _collection(
        self, progress: BackupManifest, name: str, collection: str
    ) -> BackupManifest:
        if progress.part(name) is not None:
            return progress
        writer = PartWriter(self._folder.path / name)
        count = 0
        try:
            async for row in self._export.every(collection):
                writer.add(CopyRecord(collection, "", row.data))
                count += 1
            written = writer.finish()
        finally:
            writer.close()
        part = BackupPart(
            name=name,
            bytes=written.bytes,
            sha256=written.sha256,
            counts={collection: count},
        )
        progress = msgspec.structs.replace(progress, parts=(*progress.parts, part))
        self._note(progress)

        return progress

    def _note(self, progress: BackupManifest) -> None:
        self._fail("backup_part")
        self._folder.note(progress)
        self._fail("backup_noted")


class _SessionsPart:
    """
    The next part of sessions.
    """

    def __init__(
        self,
        export: Export,
        archives: ArchiveCopies,
        folder: BackupFolder,
        progress: BackupManifest,
    ) -> None:
        self._export = export
        self._archives = archives
        self._progress = progress
        self._after = progress.parts[-1].after if progress.parts else ""
        self._name = f"sessions-{len(progress.parts):05}.part"
        self._writer = PartWriter(folder.path / self._name)
        self._counts: Counts = Counter()
        self._unsettled: list[NamedSession] = []
        self._lineage = progress.lineage
        self._done = False

    async def run(self, fail: FailPoint, advance: Advance) -> BackupManifest:
        """
        Read sessions until the part is full, or none is left.
        """
        try:
            while not self._done and not self._is_full():
                page = await self._export.page(self._after)
                await self._page(page)
                fail("backup_page")
                advance(len(page))
            return self._finished()
        finally:
            self._writer.close()

    def _is_full(self) -> bool:
        sessions = self._counts["sessions"] + self._counts["tombstones"]

        return self._writer.raw_bytes >= PART_BYTES or sessions >= PART_SESSIONS

    async def _page(self, page: Sequence[StoredRow]) -> None:
        if not page:
            self._done = True
            return
        self._after = page[-1].document["_id"]
        rows = [row for row in page if not is_placeholder(row.document)]
        for first in range(0, len(rows), SIDE_BY_SIDE):
            await self._side_by_side(rows[first : first + SIDE_BY_SIDE])

    async def _side_by_side(self, rows: Sequence[StoredRow]) -> None:
        """
        Read sessions into memory; large and moved ones again, each alone.
        """
        copies = [_Copy(row) for row in rows]
        async with asyncio.TaskGroup() as reading:
            tasks = [reading.create_task(self._small(copy)) for copy in copies]
        moved = await self._export.moved([row.document for row in rows])
        for copy, task in zip(copies, tasks, strict=True):
            records = task.result()
            if records is None or copy.trouble or copy.row.document["_id"] in moved:
                await self._alone(copy.row)
                continue
            for record in records:
                self._writer.add(record)
            self._keep(copy)

    async def _small(self, copy: _Copy) -> list[CopyRecord] | None:
        records: list[CopyRecord] = []
        size = 0
        async for record in copy.records(self._export, self._archives):
            records.append(record)
            size += len(record.data)
            if size > SMALL_BYTES:
                return None
        return records

    async def _alone(self, row: StoredRow | None) -> None:
        """
        Stream one session into the part; read it again if it moved, or lacks rows.
        """
        pause = Backoff(PAUSE_S)
        for left in reversed(range(TRIES)):
            if row is None:
                return  # deleted, and its tombstone is gone, too
            mark, copy = self._writer.mark(), _Copy(row)
            async for record in copy.records(self._export, self._archives):
                self._writer.add(record)
            session_id = row.document["_id"]
            has_moved = bool(await self._export.moved([row.document]))
            if not has_moved and not (left and copy.trouble):
                self._keep(copy)
                return
            self._writer.roll_back(mark)
            if left:
                await asyncio.sleep(pause.next_s())
                row = await self._export.session(session_id)
        reason = f"it moved between the tiers in each of {TRIES} reads: not in here"
        self._name_it(session_id, reason)

    def _keep(self, copy: _Copy) -> None:
        document = copy.row.document
        self._counts += copy.counts
        self._lineage = max(self._lineage, document.get("lineage", 0))
        if copy.trouble:
            self._name_it(document["_id"], copy.trouble)

    def _name_it(self, session_id: str, reason: str) -> None:
        self._counts["unsettled"] += 1
        self._unsettled.append(NamedSession(session_id, reason))

    def _finished(self) -> BackupManifest:
        written, progress = self._writer.finish(), self._progress
        part = BackupPart(
            name=self._name,
            bytes=written.bytes,
            sha256=written.sha256,
            counts=dict(self._counts),
            after=self._after,
        )
        return msgspec.structs.replace(
            progress,
            parts=(*progress.parts, part),
            sessions_done=self._done,
            lineage=self._lineage,
            unsettled=(*progress.unsettled, *self._unsettled)[:MOST_NAMED],
        )
