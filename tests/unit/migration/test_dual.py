"""
Dual write: the leading store decides, the second one follows, in order and once.
"""

import asyncio
import secrets

import pytest

import everbus
from everbus.compose.migration import cutover, second_store
from everbus.compose.migration.cutover import CutoverFile, CutoverPlan, Leads
from everbus.migration import DualStore, MappingError
from tests.replicas import until
from tests.unit.migration.old_store import MAPPING, a_mapping_file

LEADS_FROM = CutoverPlan(next=Leads(100), at_s=1000.0)
PATIENCE_S = 20


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(second_store, "RETRY_S", 0.01)


@pytest.fixture
def name(old):
    key = f"t{secrets.token_hex(6)}"
    old.add(key)
    return key


class OldSide:
    """
    The author's own way to write the old store, which can be away.
    """

    def __init__(self, old):
        self.old, self.away = old, False
        self.written = asyncio.Event()

    async def __call__(self, key, message):
        if self.away:
            raise OSError("the old store is away")
        self.old.say(key, message["body"], message["role"], message["created"])
        self.written.set()


@pytest.fixture
def old_side(old):
    return OldSide(old)


def said(body):
    return {"role": "user", "body": body, "created": 1_700_000_000}


async def bodies(mad, session_id):
    page = await mad.timeline(session_id, limit=1000)
    return [found.entry["content"] for found in page.entries]


def dual(mapping_file, mad, old_side, **options):
    return DualStore(mapping_file, mad, old_side, wait_s=PATIENCE_S, **options)


@pytest.fixture
def leads(tmp_path):
    """
    A cut-over at 1000 for everybody, in a file.
    """
    file = CutoverFile(tmp_path / "cutover.json")
    file.save(LEADS_FROM)
    return file.path


async def test_everbus_follows_the_old_store(mapping_file, mad, old, old_side, name):
    async with dual(mapping_file, mad, old_side) as store:
        for n in range(3):
            await store.append(name, said(f"m{n}"), user="ada")
        assert await store.session_id(name) == name
        assert store.lead("ada") == "old"

    assert await bodies(mad, name) == old.bodies(name) == ["m0", "m1", "m2"]


async def test_what_was_there_before_comes_first(
    mapping_file, mad, old, old_side, name
):
    """
    No backfill has run; somebody else writes to the old store as well.
    """
    old.say(name, "before")
    async with dual(mapping_file, mad, old_side) as store:
        await store.append(name, said("m0"), user="ada")
        old.say(name, "somebody else")
        await store.append(name, said("m1"), user="ada")

    assert await bodies(mad, name) == ["before", "m0", "somebody else", "m1"]


async def test_a_failure_of_everbus_never_fails_the_old_store(
    mapping_file, mad, old, old_side, name, bus
):
    bus.fail_next("defect", kind="session.get", times=3)
    async with dual(mapping_file, mad, old_side) as store:
        await store.append(name, said("m0"), user="ada")
        await store.append(name, said("m1"), user="ada")
        await until(lambda: store.status.behind == 0)
        assert store.status.failures == 3
        assert store.status.last_error

    assert await bodies(mad, name) == old.bodies(name) == ["m0", "m1"]


async def test_a_failure_of_the_old_store_is_the_callers(
    mapping_file, mad, old_side, name
):
    old_side.away = True
    async with dual(mapping_file, mad, old_side) as store:
        with pytest.raises(OSError, match="away"):
            await store.append(name, said("m0"), user="ada")
        assert store.status.behind == 0


async def test_a_divergence_is_counted_and_not_repeated(
    mapping_file, mad, old_side, name
):
    await mad.create_session("ada", session_id=name)
    await mad.append_and_wait(name, {"content": "foreign"})
    async with dual(mapping_file, mad, old_side) as store:
        await store.append(name, said("m0"), user="ada")
        await until(lambda: store.status.behind == 0)
        status = store.status

    assert (status.diverged, status.behind) == (1, 0)
    assert "seq 1" in status.last_error
    assert await bodies(mad, name) == ["foreign"]


async def test_once_everbus_leads_the_old_store_follows(
    mapping_file, mad, old, old_side, name, leads, clock
):
    old.say(name, "before")
    clock.now = 2000.0
    async with dual(mapping_file, mad, old_side, cutover=leads, clock=clock) as store:
        await store.append(name, said("m0"), user="ada")
        old_side.away = True
        await store.append(name, said("m1"), user="ada")
        await store.append(name, said("m2"), user="ada")
        assert await bodies(mad, name) == ["before", "m0", "m1", "m2"]
        await until(lambda: store.status.failures)
        assert store.status.owed == 2
        old_side.away = False
        await until(lambda: store.status.owed == 0)

    assert old.bodies(name) == ["before", "m0", "m1", "m2"]


async def test_the_way_back_loses_and_doubles_nothing(
    mapping_file, mad, old, old_side, name, leads, clock
):
    clock.now = 900.0
    async with dual(mapping_file, mad, old_side, cutover=leads, clock=clock) as store:
        await store.append(name, said("old leads"), user="ada")
        clock.now = 2000.0
        old_side.away = True
        await store.append(name, said("everbus leads"), user="ada")
        CutoverFile(leads).save(CutoverPlan(now=Leads(100), at_s=2100.0))
        clock.now = 2200.0
        assert store.lead("ada") == "old"
        old_side.away = False
        await store.append(name, said("back"), user="ada")

    everything = ["old leads", "everbus leads", "back"]
    assert old.bodies(name) == everything
    assert await bodies(mad, name) == everything


async def test_without_a_mirror_the_old_store_rests(
    mapping_file, mad, old, old_side, name, leads, clock
):
    clock.now = 2000.0
    options = {"cutover": leads, "clock": clock, "mirror": False}
    async with dual(mapping_file, mad, old_side, **options) as store:
        await store.append(name, said("m0"), user="ada")

    assert (await bodies(mad, name), old.bodies(name)) == (["m0"], [])


async def test_a_write_waits_while_its_user_changes_hands(
    mapping_file, mad, old, old_side, name, leads, clock, monkeypatch
):
    """
    At the moment of the cut-over nothing is written to either store.
    """
    waiting = []

    async def hold(seconds):
        waiting.append((seconds, old.bodies(name)))
        clock.now += seconds

    clock.now = 999.0
    async with dual(mapping_file, mad, old_side, cutover=leads, clock=clock) as store:
        monkeypatch.setattr("everbus.compose.migration.dual.sleep", hold)
        await store.append(name, said("m0"), user="ada")

        assert waiting == [(1 + cutover.HOLD_S, [])]
        assert store.lead("ada") == "everbus"


async def test_a_conversation_that_is_not_there_is_refused_once_everbus_leads(
    mapping_file, mad, old_side, leads, clock
):
    clock.now = 2000.0
    async with dual(mapping_file, mad, old_side, cutover=leads, clock=clock) as store:
        with pytest.raises(everbus.NotFound, match="no conversation 'nobody'"):
            await store.append("nobody", said("m0"), user="ada")


async def test_a_repetition_under_an_id_of_ones_own_is_one_message(
    mapping_file, mad, old_side, name, leads, clock
):
    clock.now = 2000.0
    async with dual(mapping_file, mad, old_side, cutover=leads, clock=clock) as store:
        for _ in range(2):
            await store.append(name, said("m0"), user="ada", command_id=f"{name}-1")

    assert await bodies(mad, name) == ["m0"]


def test_a_file_of_lines_is_refused(tmp_path, mad, old_side):
    text = MAPPING.replace('"sqlite"', '"jsonl"')

    with pytest.raises(MappingError, match="wanted a database"):
        DualStore(a_mapping_file(tmp_path, text), mad, old_side)


async def test_what_waits_is_bounded_and_counted(
    mapping_file, mad, old, old_side, name, monkeypatch, bus
):
    monkeypatch.setattr(second_store, "MAX_MARKED", 0)
    async with dual(mapping_file, mad, old_side) as store:
        await store.append(name, said("m0"), user="ada")

        assert store.status.dropped == 1
    assert old.bodies(name) == ["m0"]


async def test_many_writers_of_one_conversation_keep_one_order(
    mapping_file, mad, old, old_side, name, leads, clock
):
    """
    Two wrappers, as in two processes, while the old store leads.
    """
    async with (
        dual(mapping_file, mad, old_side) as one,
        dual(mapping_file, mad, old_side) as two,
    ):
        writers = (one, two) * 10
        await asyncio.gather(
            *(w.append(name, said(f"m{n}"), user="ada") for n, w in enumerate(writers))
        )

    assert len(old.bodies(name)) == 20
    assert await bodies(mad, name) == old.bodies(name)
