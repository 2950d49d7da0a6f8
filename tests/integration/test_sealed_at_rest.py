"""
Encryption at rest on real servers: what lies in Redis, MongoDB and S3 is read past all
of our code, and a run without encryption proves that the same look finds it there.
"""

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import Unavailable
from everbus.bus.messages import Session
from everbus.compose import backup_command
from everbus.compose.archive_command import archive_once
from everbus.compose.backup.format import read_part
from everbus.compose.sealing_settings import sealing_of
from everbus.compose.tier_settings import archives_of, warm_tier
from everbus.compose.verify.copies import CopyCheck
from everbus.compose.verify.hot_reader import HotReader
from everbus.compose.verify.violations import Violations
from everbus.gateway.store.cold.format import zstd
from everbus.gateway.store.mongo.resealing import Resealing
from everbus.gateway.store.sealed_copies import SealedCopies
from tests.commandline import CommandLine, own_logs
from tests.replicas import until
from tests.stack import PARTITIONS

__all__ = ["own_logs"]
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

CANARY = "canary-in-a-coal-mine"
KEK = "first:" + base64.b64encode(b"k" * 32).decode()
SEALED = {"sealing_kek": KEK}
SECRET = {"said": CANARY}
# What a MAD and a manager say to each other; the SDK does not seal it.
SPOKEN = (":in:", ":reply:")
# The first bytes of a zstd frame.
FRAME = b"\x28\xb5\x2f\xfd"


async def in_redis(client: Any) -> dict[str, bytes]:
    """
    Key → all bytes of its value.
    """
    reads = {
        "string": client.get,
        "hash": client.hgetall,
        "list": lambda key: client.lrange(key, 0, -1),
        "stream": client.xrange,
        "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1),
    }
    found = {}
    for key in await client.keys("*"):
        # One that expired in between is of type `none`.
        if read := reads.get((await client.type(key)).decode()):
            found[key.decode()] = repr(await read(key)).encode()
    return found


async def in_mongo(held: Any) -> dict[str, bytes]:
    """
    Collection → all bytes of its documents.
    """
    names = await held.list_collection_names()

    return {
        name: repr(await held[name].find().to_list(None)).encode() for name in names
    }


def in_s3(folder: Path) -> dict[str, bytes]:
    """
    File → its bytes, decompressed where they are compressed.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            at = data.find(FRAME)
            whole = zstd.ZstdDecompressor().decompress(data[at:]) if at >= 0 else b""
            found[str(path)] = data + whole
    return found


def leaks(found: dict[str, bytes]) -> set[str]:
    return {
        name
        for name, data in found.items()
        if CANARY.encode() in data and not any(part in name for part in SPOKEN)
    }


async def conversation(mad: Any) -> str:
    """
    A session with the canary in every sensitive place.
    """
    session = await mad.create_session(user_id="ada")
    patch = {"context_summary": SECRET, "work_in_progress": SECRET}
    await mad.update_session(session.id, {**patch, "full_context": SECRET})
    for n in range(3):
        await mad.append_and_wait(session.id, {"text": CANARY, "n": n})
    await mad.broadcast(session.id, SECRET)
    await mad.create_checkpoint(session.id, name="before", durability="hot")
    await mad.update_session(session.id, {"context_summary": {"more": CANARY}})
    return session.id


async def drained(stack: Any) -> None:
    async def empty() -> bool:
        outboxes = [f"eb:{{{p}}}:outbox" for p in range(PARTITIONS)]
        return not any([await stack.client.xlen(one) for one in outboxes])

    await until(empty, 30, "the outboxes are drained")


async def check_whole(mad: Any, session_id: str) -> None:
    """
    The session as its users see it, from wherever it lies.
    """
    session: Session = await mad.get_session(session_id, full=True)
    assert session.context_summary == {"said": CANARY, "more": CANARY}
    assert session.work_in_progress == SECRET
    assert session.full_context == SECRET
    wanted = [{"text": CANARY, "n": n} for n in range(3)]
    assert [e.entry for e in (await mad.timeline(session_id)).entries] == wanted
    assert [msgspec.to_builtins(e)["entry"] for e in session.recent_timeline] == wanted
    before = await mad.session_at(session_id, version=2)
    assert before.context_summary == SECRET


async def violations_of(settings: Any, session_id: str) -> Violations:
    """
    What `everbus verify` finds.
    """
    violations = Violations(20)
    wire = wire_to(settings.redis_url, name="verify")
    async with sealing_of(settings) as sealing:
        warm, archives = warm_tier(settings, sealing), None
        archives = archives_of(settings, sealing=sealing)
        hot = HotReader(wire, PARTITIONS, sealing and SealedCopies(sealing))
        await hot.load_windows(violations)
        check = CopyCheck(
            *(warm, archives, hot.read, hot.is_settled, violations),
            opened=sealing and sealing.opened_entries,
        )
        await check.check(session_id)
        warm.close()
        archives.close()
    await wire.close()
    return violations


@pytest.mark.parametrize("settings", [SEALED, {}], ids=["sealed", "control"])
async def test_a_canary_lies_in_no_tier_and_comes_back_from_each(stack, settings):
    """
    The control without encryption proves that the look would find it.
    """
    chosen = stack.settings(**settings)
    async with stack.manager(**settings), stack.mad() as mad:
        session_id = await conversation(mad)
        hot = leaks(await in_redis(stack.client))
        await check_spoken(mad, session_id)
        async with stack.archiver(**settings):
            await drained(stack)
            warm = leaks(await in_mongo(stack.held))
            await check_whole(mad, session_id)
            violations = await violations_of(chosen, session_id)
            await mad.suspend_session(session_id)
            await stack.until_cold(session_id)
            report = await archive_once(chosen, -1)
            cold = leaks(in_s3(stack.folder / "nanio"))
            await check_whole(mad, session_id)

    assert report.archived == 1
    assert violations.clean, violations.first
    for found in (hot, warm, cold):
        assert bool(found) is (settings == {}), found


async def check_spoken(mad: Any, session_id: str) -> None:
    """
    Subscribers catch up from sealed records of the outbox.
    """
    kinds = []
    async for event in mad.watch(session_id, after="0"):
        kinds.append(event)
        if len(kinds) == 7:
            break
    assert sum(CANARY in repr(event) for event in kinds) >= 5


async def test_all_of_redis_may_be_lost(stack):
    """
    The keys come back from MongoDB.
    """
    async with stack.manager(**SEALED), stack.mad() as mad:
        async with stack.archiver(**SEALED):
            session_id = await conversation(mad)
            await drained(stack)
        await stack.client.flushall()
    async with stack.manager("m2", **SEALED), stack.mad() as mad:
        await check_whole(mad, session_id)


async def test_a_swapped_or_changed_value_is_refused(stack):
    """
    In Redis the hot copy is replaced by MongoDB's; in MongoDB the session is refused,
    and others go on.
    """
    async with (
        stack.manager(**SEALED) as manager,
        stack.mad() as mad,
        stack.archiver(**SEALED),
    ):
        one, other = await conversation(mad), await conversation(mad)
        await drained(stack)
        timeline, sessions = stack.held["timeline"], stack.held["sessions"]
        stolen = await timeline.find_one({"session": other, "seq": 2})
        await timeline.update_one(
            {"session": one, "seq": 2}, {"$set": {"entry": stolen["entry"]}}
        )
        found = await violations_of(stack.settings(**SEALED), one)
        assert found.counts["damaged"] >= 1
        await manager.end()
        async with stack.manager("m2", **SEALED) as second:
            # From the hot tail the timeline is still whole: it goes with the hot copy.
            for session_id in (one, other):
                await mad.suspend_session(session_id)
                await stack.until_cold(session_id)
            with pytest.raises(Unavailable):
                await mad.timeline(one, timeout=15)
            await check_whole(mad, other)
            await mad.update_session(other, {"tags": ["again"]})
            await mad.suspend_session(other)
            await stack.until_cold(other)
            document = await sessions.find_one({"_id": one})
            await sessions.update_one(
                {"_id": other}, {"$set": {"context_summary": document["full_context"]}}
            )
            with pytest.raises(Unavailable, match="does not open"):
                await mad.get_session(other, timeout=15)
            await second.end()


async def test_both_keys_rotate_while_everything_runs(stack):
    new = "second:" + base64.b64encode(b"n" * 32).decode()
    both = {"sealing_kek": f"{new} {KEK}"}
    known = {"sealing_kek": f"{KEK} {new}"}
    async with (
        stack.manager(**known),
        stack.mad() as mad,
        stack.archiver(**known),
    ):
        session_id = await conversation(mad)
        await drained(stack)
        async with sealing_of(stack.settings(**both)) as sealing:
            keyring = sealing.keyring
            for key in list(keyring.wrapped.values()):
                assert await keyring.rewrap(key)
            fresh = await keyring.rotate("")
            resealing = Resealing(stack.mongo.url, stack.database, sealing)
            assert await resealing.run(None, lambda _: None) > 0
            assert await resealing.run(None, lambda _: None) == 0
            resealing.close()
        raw = (await stack.held["sessions"].find_one({}))["context_summary"]
        assert raw[1:9].hex() == fresh.id
        await check_whole(mad, session_id)
    async with (
        stack.manager("m2", sealing_kek=new),
        stack.mad() as mad,
    ):
        await check_whole(mad, session_id)


async def test_a_wrong_key_encryption_key_ends_the_start_clearly(stack):
    async with stack.manager(**SEALED), stack.mad() as mad:
        await mad.create_session(user_id="ada")
    wrong = "first:" + base64.b64encode(b"w" * 32).decode()
    async with stack.manager("m2", sealing_kek=wrong) as part:
        code = await part.ended()

        assert code != 0
        assert "does not open" in part.output()


async def test_a_backup_holds_no_plaintext_and_needs_no_key(
    stack, tmp_path, own_logs, monkeypatch
):
    """
    It is taken and restored without the key; a fresh bus with the key opens it.
    """
    monkeypatch.setattr(backup_command, "configure_logs", lambda *_: None)
    command = CommandLine(stack.bus.url)
    command._env |= stack.environment()
    async with stack.manager(**SEALED), stack.archiver(**SEALED), stack.mad() as mad:
        session_id = await conversation(mad)
        await drained(stack)
    taken = await command("backup", str(tmp_path / "b"))
    records = [r for path in (tmp_path / "b").glob("*.part") for r in read_part(path)]
    await stack.empty()
    await stack.client.flushall()
    command._env |= stack.environment()

    restored = await command("restore", str(tmp_path / "b"))

    assert (taken.code, restored.code) == (0, 0), restored
    assert {"sessions", "timeline", "events", "notices", "checkpoints"} < {
        record.kind for record in records
    }
    assert not [r for r in records if CANARY.encode() in r.data]
    assert not leaks(await in_mongo(stack.held))
    async with stack.manager("m2", **SEALED), stack.mad() as mad:
        await check_whole(mad, session_id)
