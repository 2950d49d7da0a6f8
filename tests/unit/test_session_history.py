"""
What a reader answers of the past: versions, differences, checkpoints.
"""

import asyncio

import msgspec
import pytest

from everbus.bus.errors import Invalid, NotFound, Unavailable
from everbus.gateway.store.tiers import Corrupted
from everbus.handlers.fetch_requests import (
    ChangesBetween,
    CheckpointsOf,
    CheckpointState,
    FullContext,
    StateAt,
)
from everbus.handlers.history import difference, digest, with_state
from everbus.handlers.patches import merge
from tests.lineages import loaded
from tests.unit.below import World, document, with_history


async def test_every_version_is_as_it_was():
    world = await with_history(40)

    for version in range(1, 41):
        found = await world.reader().answer(
            world.session, StateAt(version=version, current=40)
        )
        assert (found.version, found.last_seq) == (version, version - 1)
        assert found == with_state(found, world.states[version])
        assert found.created_at == world.session.created_at


async def test_a_version_far_from_any_kept_state_is_read_in_steps():
    world = await with_history(2300)
    asked = []
    changes = world.warm.changes

    async def noted(session_id, life, after, through, bound):
        asked.append(through - after)
        return await changes(session_id, life, after, through, bound)

    async def nothing_kept(*_):
        return None

    world.warm.changes, world.warm.snapshot = noted, nothing_kept

    found = await world.reader().answer(
        world.session, StateAt(version=2200, current=2300)
    )

    assert found.work_in_progress == world.states[2200]["work_in_progress"]
    assert asked == [1000, 1000, 200]


async def test_history_is_not_touched_by_archive_and_return():
    world = await with_history(12)
    await world.archive(purged=12)
    await loaded(world.reader(), [world.id])

    for version in range(1, 13):
        found = await world.reader().answer(
            world.session, StateAt(version=version, current=12)
        )
        assert found == with_state(found, world.states[version])


@pytest.mark.parametrize("version", [0, -1, 6])
async def test_a_version_that_never_was_is_refused(version):
    world = await with_history(5)

    with pytest.raises(Invalid):
        await world.reader().answer(world.session, StateAt(version=version, current=5))


async def test_a_version_that_is_not_in_mongodb_yet_is_waited_for():
    world = await with_history(5)
    late = world.changed(work_in_progress={"late": 1})
    reader = world.reader(catch_up_s=30.0)
    snapshot, asked = world.warm.snapshot, asyncio.Event()

    async def noted(*asked_for):
        asked.set()
        return await snapshot(*asked_for)

    world.warm.snapshot = noted
    reading = asyncio.create_task(
        reader.answer(world.session, StateAt(version=6, current=6))
    )
    await asked.wait()

    await world.warm.write([late])

    assert (await reading).work_in_progress == {"late": 1}


async def test_the_changes_of_a_difference_end_in_bytes_and_go_on():
    world = await with_history(20)
    reader = world.reader(page_bytes=700)
    versions, to = [], 20

    while to is not None:
        wanted = ChangesBetween(from_version=3, to_version=to, current=20)
        found = await reader.answer(world.session, wanted)
        versions = [change.version for change in found.changes] + versions
        assert len(found.changes) < 8
        to = found.next

    assert versions == list(range(4, 21))


@pytest.mark.parametrize(("one", "other"), [(2, 9), (9, 2), (4, 4)])
async def test_a_difference_leads_from_the_one_version_to_the_other(one, other):
    world = await with_history(10)

    found = await world.reader().answer(
        world.session, ChangesBetween(from_version=one, to_version=other, current=10)
    )

    assert (found.from_version, found.to_version) == (one, other)
    assert merge(world.states[one], found.patch) == world.states[other]
    low, high = sorted((one, other))
    assert [change.version for change in found.changes] == list(
        range(low + 1, high + 1)
    )
    assert all(change.principal == "ada" for change in found.changes)


async def test_a_difference_shows_the_newest_thousand_steps():
    world = await with_history(1105)

    found = await world.reader().answer(
        world.session, ChangesBetween(from_version=1, to_version=1105, current=1105)
    )

    assert [found.changes[0].version, found.changes[-1].version] == [106, 1105]
    assert found.patch == difference(world.states[1], world.states[1105])


async def test_the_full_context_is_what_the_patches_made_of_it():
    world = await with_history(10)

    found = await world.reader().answer(world.session, FullContext(version=10))

    assert found == {"secret": 9}


async def test_the_full_context_of_a_session_that_was_archived_meanwhile_is_whole():
    """
    A stub has none; taking that for the answer would show an empty context.
    """
    world = await with_history(10)
    await world.archive(purged=10)

    found = await world.reader().answer(world.session, FullContext(version=10))

    assert found == {"secret": 9}
    assert (await world.held()).archival_status == "S3"


async def test_a_full_context_older_than_asked_for_is_not_given():
    world = await with_history(10)
    world.changed(full_context={"secret": "new"})

    with pytest.raises(Unavailable, match="version 11"):
        await world.reader().answer(world.session, FullContext(version=11))


async def with_checkpoints(count):
    world = World()
    for n in range(count):
        await world.change(work_in_progress=document(n), fields={f"f{n % 5}": n})
        await world.keep(f"c.{n}", "incremental")
    return world


async def test_each_checkpoint_keeps_the_state_it_was_made_of():
    world = await with_checkpoints(50)

    for n in range(50):
        found = await world.reader().answer(
            world.session, CheckpointState(checkpoint_id=f"c.{n}")
        )
        assert found == world.states[n + 1]


@pytest.mark.parametrize("tampered", ["c.4", "c.3", "c.0"])
async def test_a_tampered_link_is_found_out_and_never_served(tampered):
    world = await with_checkpoints(5)
    kept = world.warm.checkpoint

    async def changed(session_id, life, checkpoint_id):
        checkpoint, state = await kept(session_id, life, checkpoint_id)
        if checkpoint_id == tampered:
            state = merge(state, {"work_in_progress": {"forged": True}})
        return checkpoint, state

    world.warm.checkpoint = changed

    with pytest.raises(Corrupted, match="is not what was kept"):
        await world.reader().answer(world.session, CheckpointState(checkpoint_id="c.4"))


@pytest.mark.parametrize("lost", ["c.3", "c.0"])
async def test_a_chain_that_has_lost_a_link_is_corrupted(lost):
    world = await with_checkpoints(5)
    kept = world.warm.checkpoint

    async def without(session_id, life, checkpoint_id):
        return (
            None
            if checkpoint_id == lost
            else await kept(session_id, life, checkpoint_id)
        )

    world.warm.checkpoint = without

    with pytest.raises(Corrupted, match=f"lost {lost}"):
        await world.reader().answer(world.session, CheckpointState(checkpoint_id="c.4"))


async def test_a_chain_that_leads_nowhere_ends():
    """
    Two links that name each other must not be followed for ever.
    """
    world = await with_checkpoints(1)
    kept = await world.warm.checkpoint("s1", world.session.created_at, "c.0")
    circle = msgspec.structs.replace(kept[0], kind="incremental", parent="c.0")

    async def forged(*_):
        asked.append(1)
        return circle, {}

    asked = []
    world.warm.checkpoint = forged

    with pytest.raises(Corrupted):
        await world.reader().answer(world.session, CheckpointState(checkpoint_id="c.0"))
    assert len(asked) <= 26


async def test_a_tampered_link_is_found_out_though_later_ones_hide_it():
    world = await with_checkpoints(10)
    kept = world.warm.checkpoint

    async def changed(session_id, life, checkpoint_id):
        checkpoint, state = await kept(session_id, life, checkpoint_id)
        if checkpoint_id == "c.0":
            state = merge(state, {"fields": {"f0": "forged"}})
        return checkpoint, state

    world.warm.checkpoint = changed
    assert "f0" not in world.states[10]["fields"]

    with pytest.raises(Corrupted, match="is not what was kept"):
        await world.reader().answer(world.session, CheckpointState(checkpoint_id="c.9"))


async def test_a_checkpoint_that_never_was_is_not_found():
    world = await with_checkpoints(1)

    with pytest.raises(NotFound, match="no checkpoint c"):
        await world.reader().answer(world.session, CheckpointState(checkpoint_id="c.9"))


async def test_checkpoints_are_listed_newest_first():
    world = await with_checkpoints(5)

    page = await world.reader().answer(
        world.session, CheckpointsOf(before=None, limit=3)
    )

    assert [checkpoint.id for checkpoint in page.checkpoints] == ["c.4", "c.3", "c.2"]
    assert page.checkpoints[0].sha256 == digest(world.states[5])
