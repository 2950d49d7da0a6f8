"""
A backup of sessions that move while they are read: whole as of one moment, or named.
"""

from datetime import UTC, datetime

import pytest
import pytest_asyncio

from everbus.compose.backup import taking
from everbus.compose.backup.archive_copies import ArchiveCopies
from everbus.compose.backup.folder import BackupFolder, BackupManifest
from everbus.compose.backup.format import read_part
from everbus.compose.backup.taking import BackupRun
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store.mongo.export import (
    StoredRow,
    bson_of,
    document_of,
)

AT = datetime(2026, 11, 29, tzinfo=UTC)


def a_document(session_id="s1", **fields):
    known = {"created_at": AT, "version": 1, "last_seq": 2, "moves": 0}
    known |= {"archival_status": "ACTIVE", "through": 0}
    return {"_id": session_id, **known, **fields}


def a_row(collection, **fields):
    document = {"session": "s1", "life": AT, **fields}
    return StoredRow(collection, document, bson_of(document))


class FakeExport:
    """
    One session, as scripted: each reading of its document and rows takes the next step.
    """

    def __init__(self, *readings, moves=()):
        self.readings = list(readings)
        self.moves = list(moves)
        self.reads = 0

    async def page(self, after):
        return [] if after else [await self.session("s1")]

    async def session(self, _):
        found = self.readings[min(self.reads, len(self.readings) - 1)]
        if found is None:
            return None
        document, _ = found
        return StoredRow("sessions", document, bson_of(document))

    async def rows(self, document):
        _, rows = self.readings[min(self.reads, len(self.readings) - 1)]
        self.reads += 1
        for row in rows:
            yield row

    async def moved(self, documents):
        return {"s1"} if self.moves and self.moves.pop(0) else set()

    async def every(self, _):
        for row in ():
            yield row


ROWS = [
    a_row("timeline", seq=1),
    a_row("timeline", seq=2),
    a_row("events", version=1, patch={}, kind="session.created"),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(taking, "PAUSE_S", 0.0)


@pytest_asyncio.fixture
async def taken(tmp_path):
    """
    Backs up what a scripted export has; returns manifest and session records.
    """

    async def run(export):
        folder = BackupFolder(tmp_path / "b")
        begun = folder.open_for_writing() or BackupManifest(
            id="b", everbus="1", database="d", begun="now"
        )
        archives = ArchiveCopies(None, whole=False)
        backup = BackupRun(export, archives, folder, disarmed, lambda _: None)
        manifest = await backup.run(begun)
        folder.close()
        names = [p.name for p in manifest.parts if p.name.startswith("sessions")]
        records = [r for name in names for r in read_part(folder.path / name)]
        return manifest, records

    return run


async def test_a_session_at_rest_is_read_once(taken):
    export = FakeExport((a_document(), ROWS))

    manifest, records = await taken(export)

    assert [record.kind for record in records] == [
        "sessions",
        *(["timeline"] * 2),
        "events",
    ]
    assert export.reads == 1
    assert not manifest.unsettled
    assert manifest.counts["timeline"] == 2


async def test_a_session_that_moved_is_read_again_and_only_that_reading_counts(taken):
    """
    It is archived between its document and the end of its rows.
    """
    stub = a_document(archival_status="S3", moves=1, through=2)
    export = FakeExport(
        (a_document(), ROWS[:1]),
        (a_document(), ROWS[:1]),
        (stub, ROWS[2:]),
        moves=[True, True, False],
    )

    manifest, records = await taken(export)

    assert [record.kind for record in records] == ["sessions", "events"]
    assert document_of(records[0].data)["archival_status"] == "S3"
    assert manifest.counts["sessions"] == 1
    assert "timeline" not in manifest.counts
    assert not manifest.unsettled


async def test_a_session_that_always_moves_is_named_and_left_out(taken):
    export = FakeExport((a_document(), ROWS), moves=[True] * 99)

    manifest, records = await taken(export)

    assert records == []
    [named] = manifest.unsettled
    assert named.session == "s1"
    assert "moved" in named.reason
    assert export.reads == taking.TRIES + 1


async def test_rows_that_came_late_are_read_again(taken):
    export = FakeExport((a_document(), ROWS[1:]), (a_document(), ROWS))

    manifest, records = await taken(export)

    assert len(records) == 4
    assert not manifest.unsettled


async def test_what_mongodb_lacks_is_named_and_the_rest_is_there(taken):
    export = FakeExport((a_document(), ROWS[1:]))

    manifest, records = await taken(export)

    assert len(records) == 3
    [named] = manifest.unsettled
    assert named.reason == "1 of 2 documents of timeline"


async def test_a_session_that_vanished_is_no_trouble(taken):
    export = FakeExport((a_document(), ROWS), None, moves=[True, True])
    export.readings = [(a_document(), ROWS), (a_document(), ROWS), None]

    manifest, records = await taken(export)

    assert records == []
    assert not manifest.unsettled


async def test_a_large_session_is_streamed_and_taken_back_as_a_whole(
    taken, monkeypatch
):
    monkeypatch.setattr(taking, "SMALL_BYTES", 10)
    export = FakeExport((a_document(), ROWS), moves=[False, True, False])

    manifest, records = await taken(export)

    assert [record.kind for record in records] == [
        "sessions",
        *(["timeline"] * 2),
        "events",
    ]
    assert manifest.counts["sessions"] == 1


async def test_a_checkpoint_that_its_notice_tells_of_is_waited_for(taken):
    """
    The drain writes checkpoints behind the document.
    """
    document = a_document(notices=1)
    notice = a_row("notices", notices=1, kind="checkpoint.created", command="c1")
    checkpoint = a_row("checkpoints", n=1, id="c1")
    export = FakeExport(
        (document, [*ROWS, notice]), (document, [*ROWS, notice, checkpoint])
    )

    manifest, records = await taken(export)

    assert records[-1].kind == "checkpoints"
    assert not manifest.unsettled


async def test_a_placeholder_of_a_claim_is_left_out(taken):
    epoch = datetime.fromtimestamp(0, UTC)
    export = FakeExport(({"_id": "s1", "created_at": epoch, "deleted_at": AT}, []))

    manifest, records = await taken(export)

    assert records == []
    assert not manifest.counts.get("tombstones")
