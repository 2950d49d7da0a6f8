"""
The vault: what is damaged is refused and alarmed; what is removed is gone for good.
"""

from datetime import timedelta

import msgspec
import pytest
from structlog.testing import capture_logs

from everbus.bus.errors import Unavailable
from everbus.gateway.store.cold import format
from everbus.gateway.store.cold.archives import Archive, Archives
from everbus.gateway.store.cold.format import seal_manifest
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.cold.manifest import key_of
from everbus.gateway.store.tiers import Corrupted
from tests.builders import NOW
from tests.unit.archives import (
    A_CHUNK,
    Cold,
    alarms,
    archived,
    held,
    opened,
    some_entries,
    spoil,
    spoilt,
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(format, "CHUNK_ENTRIES", A_CHUNK)


@pytest.fixture
def cold() -> Cold:
    return Cold()


@pytest.fixture
def vault(cold) -> Archives:
    return Archives(cold)


DAMAGES = (
    "missing",
    "empty",
    "truncated",
    "longer",
    "flipped first",
    "flipped middle",
    "flipped last",
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["manifest", "document", "chunk"])
async def test_a_damaged_object_is_refused_and_alarmed(part, damage, vault, cold):
    """
    Never served, logged at error level with its key, counted; each time.
    """
    archive = await archived(vault, held(35), some_entries(1, 35))
    manifest = await opened(vault, archive)
    reader = Archives(cold)
    key = {
        "manifest": archive.pointer,
        "document": manifest.key(manifest.document),
        "chunk": manifest.key(manifest.chunks[1]),
    }[part]
    spoil(cold, key, spoilt(damage, cold.objects[key]))
    reads = {
        "manifest": lambda: reader.open(archive.pointer, "s1", NOW),
        "document": lambda: reader.document(manifest),
        "chunk": lambda: reader.entries(manifest, 5, 15),
    }

    before = alarms()
    for _ in range(2):
        with capture_logs() as logs, pytest.raises(Corrupted) as refused:
            await reads[part]()
        assert refused.value.details == {"key": key, "cause": "corrupted"}
        assert [(e["event"], e["log_level"], e["key"]) for e in logs] == [
            ("cold.corrupted", "error", key)
        ]

    assert alarms() == before + 2
    # What is not damaged is still served.
    assert await reader.entries(manifest, 21, 35) == some_entries(21, 35)


async def test_a_chunk_at_hand_is_no_proof_that_it_is_there(vault, cold):
    """
    What is removed from the warm tier has to be in the cold one at that time.
    """
    manifest = await opened(vault, await archived(vault, held(15), some_entries(1, 15)))
    assert await vault.chunk(manifest, 0) == some_entries(1, 10)
    await vault.verify_chunk(manifest, 0)
    del cold.objects[manifest.key(manifest.chunks[0])]

    assert await vault.chunk(manifest, 0) == some_entries(1, 10)
    with pytest.raises(Corrupted, match="is missing"):
        await vault.verify_chunk(manifest, 0)


async def test_swapped_objects_are_refused(vault, cold):
    manifest = await opened(vault, await archived(vault, held(35), some_entries(1, 35)))
    one, two = (manifest.key(chunk) for chunk in manifest.chunks[:2])
    cold.objects[one], cold.objects[two] = cold.objects[two], cold.objects[one]
    reader = Archives(cold)

    for index in (0, 1):
        with pytest.raises(Corrupted):
            await reader.chunk(manifest, index)


async def test_an_older_object_under_the_key_is_refused(vault, cold):
    first = await archived(vault, held(15), some_entries(1, 15))
    grown = held(25, version=4, pointer=first.pointer)
    second = await archived(vault, grown, some_entries(1, 25))
    cold.objects[second.pointer] = cold.objects[first.pointer]

    with pytest.raises(Corrupted):
        await opened(Archives(cold), second)


@pytest.mark.parametrize("known", [True, False])
async def test_the_archive_of_another_session_or_life_is_refused(known, vault, cold):
    """
    Also if this very vault has just opened it for whom it belongs to.
    """
    archive = await archived(vault, held(15), some_entries(1, 15))
    reader = Archives(cold)
    if known:
        await opened(reader, archive)

    for session_id, life in (("s2", NOW), ("s1", NOW + timedelta(seconds=1))):
        before = alarms()
        with pytest.raises(Corrupted, match="is not of session"):
            await reader.open(archive.pointer, session_id, life)
        assert alarms() == before + 1


@pytest.mark.parametrize(
    "pointer", ["", "x", "../../etc/passwd", key_of("../s1", "0" * 64)]
)
async def test_a_pointer_that_is_none_asks_for_nothing(pointer, vault, cold):
    with pytest.raises(Corrupted):
        await vault.open(pointer, "s1", NOW)
    with pytest.raises(Corrupted):
        await vault.remove(pointer or "x")

    assert not cold.calls


async def test_an_absent_tier_is_no_damage(vault):
    class Away(MemoryCold):
        async def get(self, key: str, limit: int) -> bytes | None:
            raise Unavailable("away")

    archive = await archived(vault, held(5), some_entries(1, 5))
    before = alarms()

    with pytest.raises(Unavailable) as refused:
        await opened(Archives(Away()), archive)

    assert not isinstance(refused.value, Corrupted)
    assert alarms() == before


@pytest.mark.parametrize("nth", range(1, 7))
async def test_what_is_not_there_as_it_was_put_is_never_archived(nth):
    """
    A store that damages the nth object of six, the manifest among them, is found out
    before anybody relies on the archive.
    """

    class Lying(MemoryCold):
        puts = 0

        async def put(self, key: str, data: bytes) -> None:
            self.puts += 1
            if self.puts == nth:
                data = data[:-1] + bytes([data[-1] ^ 1])
            await super().put(key, data)

    with pytest.raises(Corrupted):
        await archived(Archives(Lying()), held(35), some_entries(1, 35))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("entries", [35, 40])
async def test_a_damaged_chunk_is_not_taken_over(entries, damage, vault, cold):
    first = await archived(vault, held(35), some_entries(1, 35))
    manifest = await opened(vault, first)
    key = manifest.key(manifest.chunks[1])
    spoil(cold, key, spoilt(damage, cold.objects[key]))
    again = held(entries, version=4, pointer=first.pointer)

    with pytest.raises(Corrupted):
        await archived(vault, again, some_entries(1, entries))


async def a_chain(cold: MemoryCold) -> Archive:
    """
    Three archives of `s1`, each with more in it, and the objects of another session.
    """
    cold.objects[key_of("s2", "0" * 64)] = b"of another session"
    cold.objects[key_of("s1x", "0" * 64)] = b"of a third"
    vault, archive = Archives(cold), None
    for version, entries in ((1, 5), (2, 25), (3, 25)):
        pointer = archive.pointer if archive else ""
        there = held(entries, version=version, pointer=pointer)
        archive = await archived(vault, there, some_entries(1, entries))
    assert archive is not None

    return archive


async def test_removing_an_archive_removes_all_before_it_and_nothing_else(cold):
    archive = await a_chain(cold)
    assert len(cold.objects) == 2 + 3 + 3 + (1 + 3)

    await Archives(cold).remove(archive.pointer)

    assert set(cold.objects) == {key_of("s2", "0" * 64), key_of("s1x", "0" * 64)}


async def test_a_removal_that_was_cut_short_is_finished_by_the_next():
    """
    After whichever deletion it ends, the pointer still leads to all that is left.
    """
    for done in range(13):
        cold = Cold()
        archive = await a_chain(cold)
        cold.deletes_left = done
        with pytest.raises(Unavailable):
            await Archives(cold).remove(archive.pointer)
        cold.deletes_left = 10**9

        await Archives(cold).remove(archive.pointer)

        assert len(cold.objects) == 2, done


async def test_removing_what_is_gone_does_nothing(vault, cold):
    archive = await a_chain(cold)
    await vault.remove(archive.pointer)

    await vault.remove(archive.pointer)

    assert len(cold.objects) == 2


async def test_nothing_is_removed_by_a_damaged_manifest(vault, cold):
    """
    It might name anything; and what it did name could not be found any more.
    """
    archive = await a_chain(cold)
    manifest = await opened(vault, archive)
    middle = await vault.open(manifest.previous, "s1", NOW)
    spoil(cold, manifest.previous, cold.objects[manifest.previous] + b"\0")
    objects = dict(cold.objects)

    with pytest.raises(Corrupted):
        await Archives(cold).remove(archive.pointer)

    assert cold.objects == objects
    assert middle.previous in objects


async def test_a_chain_without_end_is_given_up(cold, monkeypatch):
    monkeypatch.setattr("everbus.gateway.store.cold.archives.MAX_CHAIN", 2)
    archive = await a_chain(cold)

    with pytest.raises(Corrupted, match="over 2 archives"):
        await Archives(cold).remove(archive.pointer)


async def test_a_manifest_of_another_session_removes_nothing_of_it(cold):
    """
    Put under a key of ours with the right hash, it is still refused.
    """
    archive = await a_chain(cold)
    manifest = await opened(Archives(cold), archive)
    foreign = msgspec.structs.replace(manifest, session="s2")
    pointer, data = seal_manifest(foreign)
    ours = pointer.replace("/s2/", "/s1/")
    ours = key_of("s1", ours.rpartition("/")[2])
    cold.objects[ours] = data

    with pytest.raises(Corrupted):
        await Archives(cold).remove(ours)
