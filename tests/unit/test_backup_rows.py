"""
Which rows are a session's own, and how a backup's session stands to one that is there.
"""

from datetime import UTC, datetime, timedelta

import pytest

from everbus.bus.messages import pack
from everbus.compose.backup.archive_copies import ListedArchive
from everbus.compose.backup.format import CopyRecord
from everbus.compose.backup.refilling import RestoreRun, _PartRestore
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store.claims import NO_LENGTH, Branch
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.mongo.deletions import Head
from everbus.gateway.store.mongo.export import PAGE_BYTES, Export, bson_of
from everbus.gateway.store.mongo.refill import standing

AT = datetime(2026, 11, 29, tzinfo=UTC)
LATER = AT + timedelta(days=1)
OURS = 1_000


def a_document(session_id="s1", **fields):
    known = {"created_at": AT, "version": 3, "last_seq": 5, "last_active": AT}
    known |= {"archival_status": "ACTIVE", "through": 0, "moves": 0}
    return {"_id": session_id, **known, **fields}


class FakeMongo:
    """
    Rows in memory; notes how many each question had as its answer.
    """

    def __init__(self, **rows):
        self.rows = rows
        self.sizes = []

    async def find(self, collection, where, fields=None, *, sort=(), limit=0):
        if collection == "sessions":
            return self.rows[collection]
        [(number, step)] = sort
        bounds = where.get(number, {"$gt": 0, "$lt": 2**53})
        found = [
            row
            for row in self.rows.get(collection, ())
            if bounds["$gt"] < row[number] < bounds["$lt"]
        ]
        found.sort(key=lambda row: row[number] * step)
        self.sizes.append(sum(len(bson_of(row)) for row in found))
        return found[:limit] if limit else found


async def rows_of(document, **rows):
    return [row.document async for row in Export(FakeMongo(**rows)).rows(document)]


async def test_only_rows_that_the_document_counts_are_its_own():
    found = await rows_of(
        a_document(),
        timeline=[{"seq": n} for n in range(1, 9)],
        events=[{"version": n, "kind": "x"} for n in range(1, 9)],
    )

    assert [one["seq"] for one in found if "seq" in one] == [1, 2, 3, 4, 5]
    assert [one["version"] for one in found if "version" in one] == [1, 2, 3]


async def test_of_a_stub_the_archive_has_the_timeline():
    stub = a_document(archival_status="S3", through=5, moves=1)

    found = await rows_of(
        stub, timeline=[{"seq": 1}], events=[{"version": 1, "kind": "x"}]
    )

    assert found == [{"version": 1, "kind": "x"}]


async def test_a_checkpoint_made_after_the_document_was_read_is_left_out():
    """
    One that is older than notices is not.
    """
    notice = {"notices": 1, "kind": "checkpoint.created", "command": "told"}
    checkpoints = [
        {"n": 1, "id": "old", "at": AT - timedelta(days=9)},
        {"n": 2, "id": "told", "at": LATER},
        {"n": 3, "id": "new", "at": LATER},
    ]

    found = await rows_of(
        a_document(notices=1), notices=[notice], checkpoints=checkpoints
    )

    assert [one["id"] for one in found if "n" in one] == ["old", "told"]


async def test_large_rows_are_read_a_few_at_a_time():
    """
    However long the timeline is.
    """
    large = [{"seq": n, "entry": "x" * 250_000} for n in range(1, 101)]
    mongo = FakeMongo(timeline=large)

    found = [r async for r in Export(mongo).rows(a_document(last_seq=100))]

    assert len(found) == 100
    assert max(mongo.sizes) <= 16 * 260_000
    assert sorted(mongo.sizes)[-2] <= PAGE_BYTES + 260_000


@pytest.mark.parametrize(
    ("now", "has_moved"),
    [
        ({}, False),
        ({"version": 4, "last_seq": 9}, False),
        ({"archival_status": "S3", "moves": 1}, True),
        ({"moves": 2}, True),
        ({"deleted_at": LATER}, True),
        ({"created_at": LATER}, True),
        ({"_id": "s2"}, True),
    ],
)
async def test_a_session_has_moved_if_its_tier_or_generation_is_another(now, has_moved):
    """
    Not if it only went on: its rows up to the counts that were read are the same.
    """
    mongo = FakeMongo(sessions=[a_document() | now])

    assert await Export(mongo).moved([a_document()]) == ({"s1"} if has_moved else set())


def a_head(**fields):
    known = {"generation": AT, "version": 3, "last_seq": 5}
    return Head(**known | fields)


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (None, "absent"),
        (a_head(generation=NO_LENGTH.generation, ended=True), "absent"),
        (a_head(generation=AT - timedelta(days=1), ended=True), "absent"),
        (a_head(ended=True), "newer"),
        (a_head(generation=LATER), "newer"),
        (a_head(generation=LATER, ended=True), "newer"),
        (a_head(), "newer"),
        (a_head(version=4), "newer"),
        (a_head(last_seq=6), "newer"),
        (a_head(branch=Branch(OURS)), "restored"),
        (a_head(branch=Branch(OURS), last_seq=6), "newer"),
        (a_head(version=2), "older"),
        (a_head(version=9, last_seq=4), "older"),
        (a_head(generation=AT - timedelta(days=1)), "older"),
    ],
)
def test_a_session_is_restored_only_where_nobody_has_it(head, wanted):
    assert standing(a_document(), head, (OURS,)) == wanted


class FakeRefill:
    """
    Takes what it is given; refuses as scripted.
    """

    def __init__(self, diverged=(), contended=()):
        self.diverged, self.contended = diverged, contended
        self.steps = []

    async def put_rows(self, collection, documents):
        self.steps.append((collection, len(documents)))
        return dict.fromkeys(self.diverged, "another command has seq 1")

    async def put_sessions(self, documents, lineage):
        self.steps.append(("sessions", [one["_id"] for one, _ in documents]))
        return list(self.contended)


async def restored(refill, records, *, heads=None, cold=None):
    run = RestoreRun(refill, cold, None, disarmed, lambda _: None)
    part = _PartRestore(run, heads or {}, (OURS,))
    for record in records:
        await part.take(record)
    await part.end()
    return run.report


def a_session(session_id, *records):
    row = {"session": session_id, "life": AT, "seq": 1}
    return [
        CopyRecord("sessions", session_id, bson_of(a_document(session_id))),
        CopyRecord("timeline", "", bson_of(row)),
        *records,
    ]


async def test_rows_come_before_the_documents():
    refill = FakeRefill()

    report = await restored(refill, [*a_session("s1"), *a_session("s2")])

    assert refill.steps == [("timeline", 2), ("sessions", ["s1", "s2"])]
    assert (report.sessions, report.rows) == (2, 2)


async def test_a_session_of_whose_rows_another_command_has_the_place_is_named():
    """
    Its document is not written: nothing is forked.
    """
    refill = FakeRefill(diverged=["s1"])

    report = await restored(refill, [*a_session("s1"), *a_session("s2")])

    assert refill.steps[-1] == ("sessions", ["s2"])
    [named] = report.not_restored
    assert (named.session, report.sessions) == ("s1", 1)


async def test_a_session_that_somebody_makes_meanwhile_is_named():
    report = await restored(FakeRefill(contended=["s1"]), a_session("s1"))

    assert [one.session for one in report.not_restored] == ["s1"]
    assert report.sessions == 0


async def test_archives_of_sessions_that_are_left_alone_are_nobodys_trouble():
    key = f"sessions/ab/s1/{'0' * 64}"
    listed = CopyRecord("archive", "", pack(ListedArchive(key, {key: 3})))
    records = a_session("s1", CopyRecord("object", key, b"abc"), listed)
    cold = MemoryCold()

    left = await restored(FakeRefill(), records, heads={"s1": a_head()}, cold=cold)

    assert (left.left_alone, left.troubles, cold.objects) == (1, 0, {})
    put = await restored(FakeRefill(), records, cold=cold)
    assert (put.objects, put.troubles, list(cold.objects)) == (1, 0, [key])
