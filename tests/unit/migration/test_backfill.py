"""
Backfill: idempotent, resumable, and nothing that cannot be copied stops the rest.
"""

import asyncio
import json
import secrets
import sqlite3

import pytest

import everbus
from everbus.compose.exit_codes import Failed
from everbus.compose.migration import backfill as backfill_module
from everbus.compose.migration import comparison
from everbus.compose.migration.backfill import Backfill, BackfillFiles
from everbus.compose.migration.comparison import Comparison
from everbus.compose.migration.copying import Copier, Diverged
from everbus.compose.migration.cutover import CutoverPlan, Leads
from everbus.compose.migration.mapping import load_mapping
from everbus.compose.migration.opening import open_store
from everbus.compose.migration.preview import preview
from everbus.compose.migration.reading import ConversationReader
from everbus.handlers.access_list import admits
from tests.unit.migration.old_store import MAPPING, a_mapping_file


class Migration:
    """
    The parts of one migration, as the command puts them together.
    """

    def __init__(self, path, mad):
        self.path, self.mad = path, mad
        self.files = BackfillFiles(
            path.with_suffix(".position"), path.with_suffix(".refused")
        )
        self.mapping = load_mapping(path)
        self.store = open_store(self.mapping)

    async def mad_of(self, tenant):
        return self.mad

    def new(self, **options):
        return Backfill(self.store, self.mapping, self.mad_of, self.files, **options)

    async def fill(self, **options):
        return (await self.new(**options).run(lambda _: None)).tally

    async def compare(self, owner=""):
        comparison = Comparison(self.store, self.mapping, self.mad_of, owner)
        return await comparison.run(lambda _: None)

    def refused(self):
        path = self.files.report
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def migration(mapping_file, mad, monkeypatch):
    monkeypatch.setattr(comparison, "LOOK_AGAIN_S", 0)
    made = Migration(mapping_file, mad)
    yield made
    made.store.close()


async def entries(mad, session_id):
    page = await mad.timeline(session_id, limit=1000)
    return [found.entry["content"] for found in page.entries]


@pytest.fixture
def name():
    """
    Begin of the test's own ids: the bus is shared.
    """
    return f"t{secrets.token_hex(6)}"


async def test_a_second_run_changes_nothing(migration, old, mad, name):
    old.add(f"{name}-a", messages=110)
    old.add(f"{name}-b", user="bob")

    first = await migration.fill()
    session = await mad.get_session(f"{name}-a", full=True)
    second = await migration.fill()

    assert (first.created, first.appended, first.patched) == (2, 110, 2)
    assert (second.created, second.appended, second.patched) == (0, 0, 0)
    assert second.conversations == 2
    assert await entries(mad, f"{name}-a") == old.bodies(f"{name}-a")
    assert session == await mad.get_session(f"{name}-a", full=True)
    assert session.owner_id == "ada"
    assert (session.tags, session.context_summary) == (("a", "b"), {"title": "t"})
    assert session.full_context == {"notes": {"n": 1}}


async def test_a_killed_run_goes_on_behind_its_last_batch(
    migration, old, mad, name, monkeypatch
):
    """
    The report has each row once, those before the kill and those after it.
    """
    monkeypatch.setattr(backfill_module, "BATCH", 1)
    for key in "abc":
        old.add(f"{name}-{key}", messages=2)
        old.say(f"{name}-{key}", b"\xff")
    copied = []
    whole = Copier.copy

    async def dies_at_the_second(self, conversation, plan):
        done = await whole(self, conversation, plan)
        copied.append(conversation.key)
        if len(copied) == 2:
            raise everbus.Unavailable("killed")
        return done

    monkeypatch.setattr(Copier, "copy", dies_at_the_second)
    with pytest.raises(everbus.Unavailable):
        await migration.fill()
    tally = await migration.fill()

    assert copied == [f"{name}-{key}" for key in "abbc"]
    assert (tally.conversations, tally.refused) == (3, 3)
    assert [row["conversation"] for row in migration.refused()] == [
        f"{name}-{key}" for key in "abc"
    ]
    assert await entries(mad, f"{name}-b") == [f"{name}-b/0", f"{name}-b/1"]
    assert not migration.files.position.exists()


async def test_refused_rows_are_reported_and_the_rest_is_copied(
    migration, old, mad, name
):
    old.add(f"{name}-a", user="*")
    old.add(f"{name}-b", messages=1)
    old.say(f"{name}-b", "x" * 300_000)
    old.say(f"{name}-b", "last")

    tally = await migration.fill()

    assert tally.refused == 2
    assert await entries(mad, f"{name}-b") == [f"{name}-b/0", "last"]
    (session, row) = migration.refused()
    assert (session["field"], row["field"]) == ("user_name", "body")
    assert row["where"].startswith("messages.id ")
    assert "262144 bytes" in row["reason"]


async def test_text_that_is_not_utf8_stops_nothing(migration, old, mad, name):
    old.add(f"{name}-a", messages=1)
    old.db.execute("UPDATE messages SET body = CAST(x'ff' AS TEXT)")
    old.say(f"{name}-a", "ä")

    await migration.fill()

    assert await entries(mad, f"{name}-a") == ["ä"]
    assert migration.refused()[0]["field"] == "body"


async def test_somebody_elses_entry_is_never_written_over_or_behind(
    migration, old, mad, name
):
    old.add(f"{name}-a", messages=2)
    await mad.create_session("ada", session_id=f"{name}-a")
    await mad.append_and_wait(f"{name}-a", {"content": "foreign"})

    tally = await migration.fill()

    assert (tally.appended, tally.refused) == (0, 1)
    assert "seq 1 holds another entry" in migration.refused()[0]["reason"]


async def test_a_session_of_another_owner_is_refused(migration, old, mad, name):
    old.add(f"{name}-a", messages=1)
    await mad.create_session("bob", session_id=f"{name}-a")

    await migration.fill()

    assert "another owner" in migration.refused()[0]["reason"]
    assert (await migration.compare()).counts == {"state": 4, "missing": 1}


async def test_a_session_that_a_killed_run_left_gets_its_mads(
    migration, old, mad, name
):
    old.add(f"{name}-a", messages=1)
    migration.mapping = load_mapping(
        a_mapping_file(migration.path.parent, MAPPING.replace("fiedler", "gunner"))
    )
    await mad.create_session("ada", session_id=f"{name}-a")

    await migration.fill()
    filled = await mad.get_session(f"{name}-a")
    removed = await mad.remove_participant(f"{name}-a", "gunner")
    await migration.fill()
    later = await mad.get_session(f"{name}-a")

    assert admits(filled.acl, "gunner", is_mad=True)
    assert (later.version, later.acl) == (removed.version, removed.acl)
    assert not admits(later.acl, "gunner", is_mad=True)


async def test_two_copiers_of_one_conversation_double_nothing(
    migration, old, mad, name
):
    """
    Each finds places that the other took, and goes on behind them.
    """
    old.add(f"{name}-a", messages=130)
    reader = ConversationReader(migration.store, migration.mapping, lambda _: None)
    conversation = migration.store.conversation(f"{name}-a")
    plan = reader.plan(conversation)

    await asyncio.gather(
        *(Copier(mad, reader).copy(conversation, plan) for _ in range(2))
    )

    assert await entries(mad, f"{name}-a") == old.bodies(f"{name}-a")


async def test_a_race_with_a_foreign_writer_is_noticed(migration, old, mad, name):
    """
    The place is taken after the session was read, by another entry.
    """
    old.add(f"{name}-a", messages=2)
    reader = ConversationReader(migration.store, migration.mapping, lambda _: None)
    conversation = migration.store.conversation(f"{name}-a")
    plan = reader.plan(conversation)
    await mad.create_session("ada", session_id=f"{name}-a")

    async def taken():
        if not (await mad.get_session(f"{name}-a")).last_seq:
            await mad.append_and_wait(f"{name}-a", {"content": "foreign"})

    with pytest.raises(Diverged, match="seq 1"):
        await Copier(mad, reader, taken).copy(conversation, plan)


async def test_faults_of_the_bus_lose_and_double_nothing(
    migration, old, mad, name, bus
):
    old.add(f"{name}-a", messages=80)
    bus.fail_next("overloaded", kind="timeline.append", times=3)
    bus.fail_next("timeout", kind="timeline.append", times=3, applied=True)

    await migration.fill()

    assert await entries(mad, f"{name}-a") == old.bodies(f"{name}-a")


async def test_what_was_cut_over_is_left_alone(migration, old, mad, name):
    old.add(f"{name}-a", messages=1)
    plan = CutoverPlan(next=Leads(users={"ada": "everbus"}), at_s=1e12)

    tally = await migration.fill(cutover=plan)

    assert (tally.cut_over, tally.created) == (1, 0)


async def test_a_position_of_another_mapping_is_refused(migration, mapping_file, mad):
    migration.files.position.write_text('{"mapping": "other"}')
    with pytest.raises(Failed, match="another version of the mapping"):
        migration.new()

    migration.files.position.write_text("{")
    with pytest.raises(Failed, match="wanted a position"):
        migration.new()


async def test_the_rate_bounds_entries(migration, old, mad, name, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    old.add(f"{name}-a", messages=4)
    run = migration.new(rate=2.0)
    run._pace._sleep, run._pace._now = sleep, lambda: run._pace._next - 0.5
    await run.run(lambda _: None)

    assert slept == [0.5] * 4


async def test_a_dry_run_shows_and_counts_and_writes_nothing(migration, old, mad, name):
    old.add(f"{name}-a", messages=5)
    old.add(f"{name}-b", user="*")
    old.say(f"{name}-a", b"\x00\xff")

    found = await preview(migration.store, migration.mapping, 1, lambda _: None)

    assert (found.conversations, found.entries, found.refused) == (1, 5, 2)
    assert found.sessions[0].session == f"{name}-a"
    assert len(found.sessions[0].entries) == 3
    assert {row.field for row in found.problems} == {"body", "user_name"}
    with pytest.raises(everbus.NotFound):
        await mad.get_session(f"{name}-a")
    assert not migration.files.position.exists()


class TestComparison:
    async def test_both_stores_alike_are_clean(self, migration, old, name):
        old.add(f"{name}-a", messages=5)
        await migration.fill()

        report = await migration.compare()

        assert report.clean
        assert (report.conversations, report.entries) == (1, 5)
        assert report.last_old_write.startswith("2023-11-14")

    async def test_each_kind_of_difference_is_named(
        self, migration, old, mad, name, monkeypatch
    ):
        for key in "abcd":
            old.add(f"{name}-{key}", user=f"u{key}", messages=2)
        await migration.fill()
        old.add(f"{name}-e")
        old.say(f"{name}-a", "more")
        await mad.append_and_wait(f"{name}-b", "extra")
        old.db.execute(
            "UPDATE messages SET body = 'edited' WHERE body = ?", (f"{name}-c/1",)
        )
        await mad.update_session(f"{name}-d", {"tags": ["other"]})

        report = await migration.compare()

        assert report.counts == dict.fromkeys(
            ("no_session", "missing", "extra", "unequal", "state"), 1
        )
        named = {(d.kind, d.session, d.seq) for d in report.differences}
        assert named == {
            ("no_session", f"{name}-e", 0),
            ("missing", f"{name}-a", 3),
            ("extra", f"{name}-b", 3),
            ("unequal", f"{name}-c", 2),
            ("state", f"{name}-d", 0),
        }
        assert (await migration.compare("ua")).counts == {"missing": 1}

    async def test_an_entry_on_its_way_is_no_difference(
        self, migration, old, name, monkeypatch
    ):
        """
        It arrives between two looks.
        """
        old.add(f"{name}-a", messages=1)
        await migration.fill()
        old.say(f"{name}-a", "more")
        reader = ConversationReader(migration.store, migration.mapping, lambda _: None)
        look = Comparison._look
        looks = []

        async def arrives_after_the_first(self, pair, reader_):
            found = await look(self, pair, reader_)
            looks.append(found.counts.total())
            await Copier(migration.mad, reader).copy(pair.conversation, pair.plan)
            return found

        monkeypatch.setattr(Comparison, "_look", arrives_after_the_first)

        assert (await migration.compare()).clean
        assert looks == [1, 0]


def test_the_old_store_may_be_written_meanwhile(old, mapping_file):
    """
    Reading holds no lock that a writer would meet.
    """
    old.add("a", messages=3)
    store = open_store(load_mapping(mapping_file))
    found = store.conversations()
    next(found)

    old.say("a", "more")
    assert isinstance(old.db, sqlite3.Connection)
    assert len(store.messages(store.conversation("a"), 0, 9)) == 4
    store.close()


def test_a_mapping_change_is_another_mapping(tmp_path, old):
    one = load_mapping(a_mapping_file(tmp_path)).digest

    assert one != load_mapping(a_mapping_file(tmp_path, MAPPING + "#")).digest
