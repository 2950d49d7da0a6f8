"""
The SDK's calls that reach below Redis, on real servers: what each gives.
"""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

import everbus as sdk
from everbus.bus.connection import connect
from tests.replicas import a_token, until
from tests.stack import Stack, a_stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    """
    All servers and a manager.
    """
    async with a_stack(tmp_path_factory.mktemp("stack")) as made:
        await made.empty()
        async with made.manager():
            yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hands(stack: Stack):
    async with stack.hands() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def draining(hands):
    """
    Write-behind for as long as the test runs.
    """
    async with hands.draining():
        yield


@pytest_asyncio.fixture(loop_scope="module")
async def mad(stack: Stack):
    async with stack.mad() as made:
        yield made


@asynccontextmanager
async def user(stack: Stack, name: str, role: str = "user"):
    """
    A connection of somebody with that role.
    """
    token = a_token(name, role)
    async with connect(stack.bus.url, mad=f"desk-{name}", token=token) as made:
        yield made


async def test_a_warm_write_is_replied_to_when_mongodb_has_it(stack, hands, mad):
    writing = asyncio.create_task(
        mad.create_session("ada", session_id="warm-1", durability="warm", timeout=30)
    )

    async def committed() -> bool:
        return await stack.is_hot("warm-1")

    await until(committed, 10, "committed in Redis")
    assert not writing.done()
    async with hands.draining():
        session = await writing

    assert session.version == 1
    assert (await stack.document("warm-1")) is not None


async def test_durable_tells_and_waits(stack, hands, mad):
    session = await mad.create_session("ada")
    await mad.append_and_wait(session.id, "hi")

    before = await mad.durable(session.id)
    async with hands.draining():
        after = await mad.durable(session.id, wait=True, timeout=30)
        told = await mad.durable(session.id)

    assert before == sdk.Durable(0, 0)
    assert after == told == sdk.Durable(1, 1)


@pytest.mark.usefixtures("draining")
async def test_a_suspended_session_comes_back_whole(stack, mad):
    session = await mad.create_session("ada")
    patch = {"fields": {"current_model": "small"}, "full_context": {"deep": [1, None]}}
    await mad.update_session(session.id, patch)
    await mad.append_and_wait(session.id, {"text": "hi"})

    rested = await mad.suspend_session(session.id, timeout=30)
    await stack.until_cold(session.id)
    found = await mad.get_session(session.id, full=True)
    woken = await mad.resume_session(session.id)

    assert (rested.state, rested.version) == ("dormant", 3)
    assert (found.state, found.version) == ("dormant", 3)
    assert found.fields == {"current_model": "small"}
    assert found.full_context == {"deep": [1, None]}
    assert [entry.entry for entry in found.recent_timeline] == [{"text": "hi"}]
    assert (woken.state, woken.version) == ("active", 4)


@pytest.mark.usefixtures("draining")
async def test_an_append_wakes_a_suspended_session(stack, mad):
    session = await mad.create_session("ada")
    await mad.suspend_session(session.id, timeout=30)
    await stack.until_cold(session.id)

    seq = await mad.append_and_wait(session.id, "morning")
    found = await mad.get_session(session.id)

    assert seq == 1
    assert (found.state, found.version, found.last_seq) == ("active", 3, 1)


@pytest.mark.usefixtures("draining")
async def test_a_timeline_is_read_within_all_bounds(mad):
    session = await mad.create_session("ada")
    for n in range(50):
        mad.append(session.id, n)
    await mad.durable(session.id, wait=True, timeout=30)

    async def entries(**bounds):
        found, cursor = [], "before" if bounds.get("newest_first") else "after"
        while True:
            page = await mad.timeline(session.id, **bounds)
            found += [entry.entry for entry in page.entries]
            if page.next is None:
                return found
            bounds[cursor] = page.next

    everything = await mad.timeline(session.id)
    middle = everything.entries[30].at
    aside = [entry.entry for entry in everything.entries if entry.at >= middle]

    assert [entry.entry for entry in everything.entries] == [*range(50)]
    assert await entries(limit=7) == [*range(50)]
    assert await entries(limit=7, newest_first=True) == [*range(49, -1, -1)]
    assert await entries(after=5, before=9) == [5, 6, 7]
    assert await entries(since=middle) == aside
    assert await entries(until=middle, limit=3) == [*range(50 - len(aside))]
    assert await entries(since=middle, newest_first=True, limit=9) == aside[::-1]
    newest = await mad.timeline(session.id, after=None, limit=3)
    assert [entry.entry for entry in newest.entries] == [47, 48, 49]


@pytest.mark.usefixtures("draining")
async def test_the_past_can_be_read_and_brought_back(mad):
    session = await mad.create_session("ada")
    await mad.update_session(session.id, {"work_in_progress": {"draft": 1}})
    kept = await mad.create_checkpoint(session.id, name="first draft", timeout=30)
    await mad.update_session(session.id, {"work_in_progress": {"draft": 2, "x": 1}})
    more = await mad.create_checkpoint(session.id, kind="incremental", timeout=30)
    await mad.update_session(session.id, {"tags": ["late"], "work_in_progress": None})

    listed = await mad.checkpoints(session.id)
    then = await mad.session_at(session.id, 2, timeout=30)
    between = await mad.diff(session.id, 2, 4, timeout=30)
    drafted = await mad.restore_checkpoint(session.id, more.id, expected_version=4)
    back = await mad.restore_checkpoint(session.id, kept.id, expected_version=5)
    redone = await mad.session_at(session.id, 6, timeout=30)

    assert [c.id for c in listed.checkpoints] == [more.id, kept.id]
    assert [c.name for c in listed.checkpoints] == ["", "first draft"]
    assert (kept.version, kept.author) == (2, "fiedler")
    assert (then.version, then.work_in_progress) == (2, {"draft": 1})
    assert [step.version for step in between.changes] == [3, 4]
    assert {step.principal for step in between.changes} == {"ada"}
    assert between.patch == {"work_in_progress": {"draft": None}, "tags": ["late"]}
    assert (drafted.version, drafted.work_in_progress) == (5, {"draft": 2, "x": 1})
    assert (back.version, back.work_in_progress, back.tags) == (6, {"draft": 1}, ())
    assert redone.work_in_progress == {"draft": 1}
    with pytest.raises(sdk.NotFound):
        await mad.session_at(session.id, 7)
    with pytest.raises(sdk.NotFound):
        await mad.restore_checkpoint(session.id, "no.0.1")
    with pytest.raises(sdk.VersionConflict):
        await mad.restore_checkpoint(session.id, kept.id, expected_version=1)


@pytest.mark.usefixtures("draining")
async def test_everybody_finds_what_is_theirs_and_operators_find_all(stack, mad):
    eve = await mad.create_session("eve-7")
    shared = await mad.create_session("finn-7")
    await mad.update_session(shared.id, {"acl": ["eve-7"], "tags": ["tides"]})
    hidden = await mad.create_session("finn-7", durability="warm", timeout=30)
    await mad.durable(eve.id, wait=True, timeout=30)
    await mad.durable(shared.id, wait=True, timeout=30)

    async with user(stack, "eve-7") as desk, user(stack, "otto", "operator") as control:
        own = await desk.list_sessions()
        tagged = await desk.list_sessions(tag="tides")
        first = await control.list_sessions(owner="finn-7", limit=1)
        second = await control.list_sessions(owner="finn-7", cursor=first.next)
        recent = await control.list_sessions(
            active_since=datetime.now(UTC) + timedelta(hours=1)
        )
        stats = await control.stats()
        with pytest.raises(sdk.Forbidden):
            await desk.stats()

    assert {s.id for s in own.sessions} == {eve.id, shared.id}
    assert [s.id for s in tagged.sessions] == [shared.id]
    assert [s.id for s in (*first.sessions, *second.sessions)] == [hidden.id, shared.id]
    assert (second.next, recent.sessions) == (None, ())
    assert stats.sessions >= 3
    assert set(stats.tiers) == {"hot", "warm", "cold"}


async def test_what_only_the_gateway_may_do_nobody_else_can(stack, mad):
    """
    A MAD that could archive could make any session a stub without an archive.
    """
    session = await mad.create_session("ada")
    body = {
        "version": 1,
        "last_seq": 0,
        "idle_since": datetime.now(UTC) + timedelta(days=1),
        "pointer": "nowhere",
        "bytes": 0,
        "moves": 0,
    }

    with pytest.raises(sdk.Forbidden):
        await mad._ask("session.archive", session.id, body, 10)
    with pytest.raises(sdk.Invalid):
        async with connect(stack.bus.url, mad="gateway", token=a_token()):
            raise AssertionError("must not be entered")

    assert (await mad.get_session(session.id)).state == "active"


async def test_a_durability_that_is_none_is_refused(mad):
    session = await mad.create_session("ada")

    with pytest.raises(sdk.Invalid):
        await mad.update_session(session.id, {}, durability="cold")

    assert (await mad.get_session(session.id)).version == 1
