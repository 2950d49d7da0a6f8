"""
Restores a backup: verifies each part, then writes what the deployment lacks of it.

Rows come before their session's document, so nobody reads a session that is not
whole; a restore that was killed finds its own rows and documents, and goes on.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from everbus.bus.errors import AlreadyExists
from everbus.bus.messages import unpack
from everbus.compose.backup.archive_copies import ListedArchive
from everbus.compose.backup.folder import (
    BackupFolder,
    BackupManifest,
    BackupPart,
)
from everbus.compose.backup.format import (
    CopyRecord,
    DamagedBackup,
    WrittenPart,
    check_part,
    read_part,
)
from everbus.compose.backup.restore_report import RestoreReport, damage_of
from everbus.compose.backup.taking import REMOVALS_PART
from everbus.compose.progress import Advance
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.store.cold.manifest import session_of
from everbus.gateway.store.mongo.deletions import Head
from everbus.gateway.store.mongo.documents import SESSIONS
from everbus.gateway.store.mongo.export import document_of
from everbus.gateway.store.mongo.operations import Document
from everbus.gateway.store.mongo.refill import Refill, RestoreJournal, standing
from everbus.gateway.store.tiers import ColdTier

# What waits for one write, at most about.
WAITING_BYTES, WAITING_SESSIONS = 4 * 2**20, 200
# Runs whose sessions are told from others that were there.
MOST_RUNS = 100


class RestoreRun:
    """
    One run of `everbus restore`, from where an earlier one ended.

    Args:
        cold: None: archives are not looked at.
        fail: passed at "restore_rows", "restore_documents", "restore_part" and
            "restore_noted".
        advance: called with the number of sessions read.
    """

    def __init__(
        self,
        refill: Refill,
        cold: ColdTier | None,
        folder: BackupFolder,
        fail: FailPoint,
        advance: Advance,
    ) -> None:
        self.refill, self.cold = refill, cold
        self.fail, self.advance = fail, advance
        self._folder = folder
        self.report = RestoreReport()

    async def run(self, manifest: BackupManifest, *, into_existing: bool) -> None:
        """
        Write what the database lacks of the backup.

        Raises:
            AlreadyExists: the database holds sessions already.
            Unavailable: a tier is away; the next run goes on.
        """
        journal = await self._begun(manifest, into_existing=into_existing)
        parts = sorted(manifest.parts, key=lambda part: part.name == REMOVALS_PART)
        for part in parts:
            if part.name in journal.parts:
                self.report.earlier_parts += 1
                self.advance(_sessions_in(part))
                continue
            if await self._part(part, journal):
                done = (*journal.parts, part.name)
                journal = msgspec.structs.replace(journal, parts=done)
                await self.refill.note(journal)
                self.fail("restore_noted")
        if self.report.is_clean and journal.finished is None:
            await self.refill.note(msgspec.structs.replace(journal, finished=_now()))

    async def _begun(
        self, manifest: BackupManifest, *, into_existing: bool
    ) -> RestoreJournal:
        journal = await self.refill.journal(manifest.id)
        if journal is None:
            there = "" if into_existing else await self.refill.holds()
            if there:
                raise AlreadyExists(
                    f"the database has documents in `{there}`, and a restore wants an "
                    "empty one: name another by --database, or restore only the "
                    "sessions that are not there, by --into-existing"
                )
            journal = RestoreJournal(id=manifest.id, lineages=(), begun=_now())
        elif journal.finished is not None and into_existing:
            journal = msgspec.structs.replace(journal, parts=(), finished=None)
        # A bus may have begun since the run before: this one claims after it.
        above = max(manifest.lineage, *journal.lineages, 0) + 1
        lineage = max(round(_now().timestamp() * 1000), above)
        lineages = (*journal.lineages, lineage)[-MOST_RUNS:]
        journal = msgspec.structs.replace(journal, lineages=lineages)
        await self.refill.prepare()
        await self.refill.note(journal)

        return journal

    async def _part(self, part: BackupPart, journal: RestoreJournal) -> bool:
        """
        Restore one part; whether all of it is there now.
        """
        path = self._folder.path / part.name
        written = WrittenPart(part.bytes, part.sha256)
        try:
            ids = await asyncio.to_thread(check_part, path, written, SESSIONS)
        except DamagedBackup as error:
            self.report.damaged.append(damage_of(error))
            return False
        troubles = self.report.troubles
        heads = await self.refill.heads(ids)
        writer = _PartRestore(self, heads, journal.lineages)
        for record in read_part(path):
            await writer.take(record)
        await writer.end()
        self.fail("restore_part")

        return self.report.troubles == troubles


class _PartRestore:
    """
    Writes the records of one part, in batches.
    """

    def __init__(
        self, run: RestoreRun, heads: dict[str, Head], lineages: Sequence[int]
    ) -> None:
        self._run = run
        self._report = run.report
        self._refill = run.refill
        self._heads = heads
        self._lineages = lineages
        self._rows: dict[str, list[Document]] = {}
        self._size = 0
        # The session whose rows come now; None: they are left out.
        self._session: Document | None = None
        # Whether its archive is to be there.
        self._ours = False
        self._documents: list[Document] = []
        self._refused: set[str] = set()

    async def take(self, record: CopyRecord) -> None:
        """
        Take the next record.
        """
        match record.kind:
            case "sessions":
                await self._begin(document_of(record.data))
            case "object":
                await self._object(record.name, record.data)
            case "archive":
                await self._archive(unpack(record.data, ListedArchive))
            case "data_keys":
                await self._refill.put_key(document_of(record.data))
            case "removals":
                await self._refill.put_removal(document_of(record.data))
            case _:
                await self._row(record)

    async def end(self) -> None:
        """
        Write what waits.
        """
        self._end_session()
        await self._flush()

    async def _begin(self, document: Document) -> None:
        self._end_session()
        if self._size > WAITING_BYTES or len(self._documents) >= WAITING_SESSIONS:
            await self._flush()
        self._run.advance(1)
        head = self._heads.get(document["_id"])
        found = standing(document, head, self._lineages)
        self._ours = found in {"absent", "restored"}
        match found:
            case "absent":
                self._session = document
            case "restored":
                self._report.sessions += 1
            case "newer":
                self._report.left_alone += 1
            case "older":
                reason = "the database has an older copy of it: delete that one first"
                self._report.name(document["_id"], reason)

    def _end_session(self) -> None:
        if self._session is not None:
            self._documents.append(self._session)
            self._session = None

    async def _row(self, record: CopyRecord) -> None:
        if self._session is None:
            return
        self._rows.setdefault(record.kind, []).append(document_of(record.data))
        self._size += len(record.data)
        if self._size > WAITING_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """
        Write rows, then the documents of the sessions that have all of them.
        """
        for collection, rows in self._rows.items():
            for session_id, reason in (
                await self._refill.put_rows(collection, rows)
            ).items():
                if session_id not in self._refused:
                    self._report.name(session_id, reason)
                self._refused.add(session_id)
            self._report.rows += len(rows)
        self._run.fail("restore_rows")
        whole = [
            (one, self._heads.get(one["_id"]))
            for one in self._documents
            if one["_id"] not in self._refused
        ]
        for session_id in await self._refill.put_sessions(whole, self._lineages[-1]):
            self._report.name(session_id, "somebody else made it meanwhile")
            self._report.sessions -= 1
        self._report.sessions += len(whole)
        self._run.fail("restore_documents")
        self._rows, self._documents, self._size = {}, [], 0

    async def _object(self, key: str, data: bytes) -> None:
        cold = self._run.cold
        if self._ours and cold is not None and await cold.size(key) != len(data):
            await cold.put(key, data)
            self._report.objects += 1

    async def _archive(self, listed: ListedArchive) -> None:
        cold = self._run.cold
        if not self._ours:
            return
        if cold is None:
            self._report.unchecked_archives += 1
            return
        for key, size in listed.objects.items():
            if await cold.size(key) != size:
                reason = f"cold object {key} is not there; copy it into the bucket"
                self._report.name(session_of(listed.pointer), reason)
                return


def _now() -> datetime:
    return datetime.now(UTC)


def _sessions_in(part: BackupPart) -> int:
    return part.counts.get("sessions", 0) + part.counts.get("tombstones", 0)
