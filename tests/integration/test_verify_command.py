"""
`everbus verify` on real servers: clean where nothing is wrong, and each planted
corruption is found by its kind.
"""

import pytest
import pytest_asyncio

from everbus.bus.keys import partition_of
from everbus.bus.wire import Wire
from everbus.compose.verify.copies import CopyCheck
from everbus.compose.verify.hot_reader import HotReader
from everbus.compose.verify.violations import Violations
from everbus.compose.verify_command import _every
from everbus.gateway.failpoints import disarmed
from everbus.gateway.store import key_names
from everbus.gateway.store.cold import format
from tests.commandline import CommandLine, own_logs
from tests.hands import tiers_here
from tests.stack import CHUNK_ENTRIES, PARTITIONS

__all__ = ["own_logs"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(servers):
    """
    Servers, a MAD, an archiver's hands; everything is drained before a test begins.
    """
    await servers.empty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "CHUNK_ENTRIES", CHUNK_ENTRIES)
        async with servers.served() as (mad, hands), hands.draining():
            yield servers, mad, hands


async def a_hot_session(stack, mad):
    session = await mad.create_session("ada")
    for n in range(30):
        mad.append(session.id, {"n": n})
    await mad.update_session(session.id, {"context_summary": {"a": 1}})
    await mad.update_session(session.id, {"tags": ["sea"]})
    await mad.durable(session.id, wait=True)

    return session.id


async def verified(stack) -> Violations:
    violations = Violations(kept=100)
    warm, archives = tiers_here(stack.settings(), disarmed)
    wire = Wire(stack.bus.url)
    hot = HotReader(wire, PARTITIONS)
    try:
        await hot.load_windows(violations)
        check = CopyCheck(warm, archives, hot.read, hot.is_settled, violations)
        await _every(check, warm, stack.bus.url, lambda _: None)
    finally:
        await wire.close()
        warm.close()
        archives.close()
    return violations


def hot_key(session_id):
    return key_names.session(partition_of(session_id, PARTITIONS), session_id)


async def an_entry_is_gone(stack, hot, _):
    await stack.held["timeline"].delete_one({"session": hot, "seq": 5})


async def the_last_entry_is_gone(stack, hot, _):
    await stack.held["timeline"].delete_one({"session": hot, "seq": 30})


async def an_entry_is_edited(stack, hot, _):
    other = await stack.held["timeline"].find_one({"session": hot, "seq": 28})
    await stack.held["timeline"].update_one(
        {"session": hot, "seq": 29}, {"$set": {"entry": other["entry"]}}
    )


async def one_command_stands_twice(stack, hot, _):
    other = await stack.held["timeline"].find_one({"session": hot, "seq": 3})
    await stack.held["timeline"].update_one(
        {"session": hot, "seq": 4}, {"$set": {"command": other["command"]}}
    )


async def an_event_is_gone(stack, hot, _):
    await stack.held["events"].delete_one({"session": hot, "version": 2})


async def the_document_went_back(stack, hot, _):
    await stack.held["sessions"].update_one({"_id": hot}, {"$set": {"version": 2}})


async def the_document_is_gone(stack, hot, _):
    await stack.held["sessions"].delete_one({"_id": hot})


async def the_hot_copy_went_back(stack, hot, _):
    await stack.client.hset(hot_key(hot), mapping={"version": 2, "durable_version": 2})


async def a_hot_field_is_edited(stack, hot, _):
    await stack.client.hset(hot_key(hot), "tags", b"\x91\xa3sky")


async def the_hot_copy_is_rubbish(stack, hot, _):
    await stack.client.hset(hot_key(hot), "created_at", b"\xc1")


async def it_is_noted_as_deleted(stack, hot, _):
    p = partition_of(hot, PARTITIONS)
    await stack.client.set(key_names.tombstone(p, hot), "deleted:1.1")


async def a_producers_number_is_open(stack, hot, _):
    key = key_names.publishers(partition_of(hot, PARTITIONS))
    for publisher in await stack.client.hkeys(key):
        await stack.client.hset(key, publisher, "0,1")


async def a_producers_record_is_rubbish(stack, hot, _):
    key = key_names.publishers(partition_of(hot, PARTITIONS))
    await stack.client.hset(key, "fiedler:x", "rubbish")


async def a_cold_object_is_damaged(stack, _, cold):
    await _spoil(
        stack, cold, lambda path: path.write_bytes(b"x" + path.read_bytes()[1:])
    )


async def a_cold_object_is_gone(stack, _, cold):
    await _spoil(stack, cold, lambda path: path.unlink())


async def _spoil(stack, cold, spoil):
    (manifest,) = {(await stack.held["sessions"].find_one({"_id": cold}))["s3_pointer"]}
    folder = manifest.rpartition("/")[0]
    paths = [p for p in stack.folder.rglob("*") if p.is_file() and folder in str(p)]
    spoil(max(paths, key=lambda path: path.stat().st_size))


PLANTED = [
    (an_entry_is_gone, "gap"),
    (the_last_entry_is_gone, "gap"),
    (an_entry_is_edited, "unequal"),
    (one_command_stands_twice, "doubled"),
    (an_event_is_gone, "gap"),
    (the_document_went_back, "lost"),
    (the_document_is_gone, "lost"),
    (the_hot_copy_went_back, "stale"),
    (a_hot_field_is_edited, "unequal"),
    (the_hot_copy_is_rubbish, "damaged"),
    (it_is_noted_as_deleted, "unequal"),
    (a_cold_object_is_damaged, "damaged"),
    (a_cold_object_is_gone, "damaged"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found(served):
    """
    Each corruption planted into a session of its own, and what one pass finds.
    """
    stack, mad, hands = served
    assert (await verified(stack)).clean
    ids = {}
    for plant, _ in PLANTED:
        if "cold" in plant.__name__:
            ids[plant] = (await stack.archived(mad, hands)).id
        else:
            ids[plant] = await a_hot_session(stack, mad)
    await stack.drained()
    sound = await verified(stack)
    assert sound.clean, sound.first
    for plant, _ in PLANTED:
        await plant(stack, ids[plant], ids[plant])

    return await verified(stack), ids


async def test_an_append_that_resumes_its_session_is_one_command_with_two_effects(
    served,
):
    """
    A step of the version and an entry, of which each is there once.
    """
    stack, mad, _ = served
    session = await a_hot_session(stack, mad)
    await mad.suspend_session(session)
    await mad.append_and_wait(session, "back again")
    await stack.drained()

    named = [one for one in (await verified(stack)).first if one.session == session]

    assert named == []


@pytest.mark.parametrize(("plant", "kind"), PLANTED)
async def test_a_planted_corruption_is_found(plant, kind, found):
    violations, ids = found

    kinds = {one.kind for one in violations.first if one.session == ids[plant]}

    assert kind in kinds, violations.first


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (a_producers_number_is_open, "unequal"),
        (a_producers_record_is_rubbish, "damaged"),
    ],
)
async def test_a_producers_numbers_are_checked(plant, kind, served):
    stack, mad, _ = served
    session = await a_hot_session(stack, mad)
    key = key_names.publishers(partition_of(session, PARTITIONS))
    before = await stack.client.hgetall(key)
    await plant(stack, session, "")

    violations = await verified(stack)

    await stack.client.delete(key)
    await stack.client.hset(key, mapping=before)
    named = [one for one in violations.first if "producer" in one.detail]
    assert kind in {one.kind for one in named}


async def test_a_remnant_of_a_dead_branch_is_no_finding(served):
    """
    The drain writes events before the document; a claim in between leaves them.
    """
    stack, mad, _ = served
    session = await a_hot_session(stack, mad)
    events = stack.held["events"]
    event = await events.find_one({"session": session, "version": 2})
    await events.insert_one({**event, "_id": "remnant", "version": 1000})

    violations = await verified(stack)

    await events.delete_one({"_id": "remnant"})
    assert [one for one in violations.first if one.session == session] == []


async def test_a_producers_record_under_another_name_is_one_more(served):
    """
    An admission notes what MongoDB tells of under the gateway's names, too.
    """
    stack, mad, _ = served
    session = await a_hot_session(stack, mad)
    key = key_names.publishers(partition_of(session, PARTITIONS))
    mine = {k: v async for k, v in stack.client.hscan_iter(key, "fiedler:*")}
    others = {k.replace(b"fiedler", b"gateway"): b"1,1" for k in mine}
    await stack.client.hset(key, mapping=others)

    violations = await verified(stack)

    await stack.client.hdel(key, *others)
    assert others
    assert [one for one in violations.first if one.session == session] == []


async def test_the_command_tells_findings_and_what_to_do(served, own_logs):
    stack, mad, _ = served
    session = await a_hot_session(stack, mad)
    command = CommandLine(stack.bus.url)
    command._env |= stack.environment()
    sound = await command("verify", "--session", session, "-o", "json")
    await an_entry_is_gone(stack, session, "")

    found = await command("verify", "--session", session, "--repair-plan")

    assert (sound.code, sound.json["sessions"], sound.json["counts"]) == (0, 1, {})
    assert found.code == 1
    assert f"gap: session {session}" in found.said
    assert "restore the missing events or entries" in found.said


async def test_the_command_needs_one_of_both(own_logs):
    command = CommandLine("redis://127.0.0.1:1")

    assert (await command("verify")).code == 2
    assert (await command("verify", "--all", "--session", "x")).code == 2
