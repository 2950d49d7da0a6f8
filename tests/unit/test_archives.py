"""
The vault: an archive gives back what went in, and shares what stayed as it was.
"""

import asyncio
import gc
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.errors import Unavailable
from everbus.gateway.store.cold import format, verified, writer
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.cache import ArchiveCache, Weighed
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.cold.manifest import key_of
from tests.builders import NOW
from tests.unit.archives import (
    A_CHUNK,
    FAIL_POINTS,
    Cold,
    Killed,
    Timeline,
    archived,
    everything,
    held,
    moment,
    opened,
    some_entries,
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


async def test_an_archive_gives_back_what_went_in(vault, cold):
    there, entries = held(35), some_entries(1, 35)

    archive = await archived(vault, there, entries)

    document, timeline = await everything(Archives(cold), archive)
    assert document == (there.session, there.full_context)
    assert timeline == entries
    assert archive[1:] == (35, sum(map(len, cold.objects.values())), 35, archive[4])
    assert archive.raw_bytes > sum(map(len, entries))
    assert all(key.startswith(key_of("s1", "")) for key in cold.objects)


async def test_a_session_without_entries_is_archived(vault):
    archive = await archived(vault, held(0), [])

    assert await everything(vault, archive) == (
        (held(0).session, held(0).full_context),
        [],
    )
    assert await vault.first_since(await opened(vault, archive), NOW) is None


async def test_progress_rises_to_the_last_entry(vault):
    told: list[int] = []

    await vault.archive(held(35), Timeline(some_entries(1, 35)).read, told.append)

    assert told == [0, 10, 20, 30, 35]


@pytest.mark.parametrize("point", FAIL_POINTS)
@pytest.mark.parametrize("nth", [1, 3])
async def test_whatever_ends_it_half_way_doing_it_again_has_the_same_pointer(
    point, nth, cold
):
    """
    Objects are named by what is in them, so the second attempt finds its own.
    """
    left = nth

    def fail(passed: str) -> None:
        nonlocal left
        left -= passed == point
        if left == 0:
            raise Killed(point)

    there, entries = held(35), some_entries(1, 35)
    wanted = await archived(Archives(MemoryCold()), there, entries)
    if nth == 1 or point == "archive_chunk":
        with pytest.raises(Killed):
            await archived(Archives(cold, fail=fail), there, entries)

    again = await archived(Archives(cold), there, entries)

    assert again == wanted
    assert len(cold.objects) == 4 + 1 + 1
    assert (await everything(Archives(cold), again))[1] == entries


async def test_the_manifest_is_put_last():
    order: list[str] = []

    class Ordered(MemoryCold):
        async def put(self, key: str, data: bytes) -> None:
            order.append(key)
            await super().put(key, data)

    passed: list[str] = []
    vault = Archives(Ordered(), fail=passed.append)

    archive = await archived(vault, held(15), some_entries(1, 15))

    assert order.index(archive.pointer) == len(order) - 1
    assert passed == ["archive_chunk", *FAIL_POINTS]


@pytest.mark.parametrize("before", [1, 9, 10, 15, 20, 34])
async def test_a_grown_timeline_is_cut_as_if_archived_at_once(before, cold):
    """
    What lies in the older archive is not asked for: it may be nowhere else.
    """
    entries = some_entries(1, 35)
    first = await archived(Archives(cold), held(before), entries[:before])
    behind = Timeline(entries[before:], first=before + 1)
    grown = held(35, version=4, pointer=first.pointer, through=before)

    second = await Archives(cold).archive(grown, behind.read, lambda seq: None)

    vault = Archives(cold)
    manifest = await opened(vault, second)
    at_once = Archives(MemoryCold())
    fresh = await archived(at_once, held(35, version=4), entries)
    assert manifest.chunks == (await opened(at_once, fresh)).chunks
    assert (await everything(vault, second))[1] == entries
    assert (second.through, second.entries) == (35, 35)
    assert manifest.previous == first.pointer
    # The last chunk may have had room, so it is looked at; those before are not.
    whole = [manifest.key(c) for c in manifest.chunks if c.last < before]
    assert [cold.calls["put", key] for key in whole] == [1] * len(whole)
    assert [cold.calls["get", key] for key in whole] == [1 + 1] * len(whole)


async def test_the_size_of_an_archive_counts_what_it_shares(vault, cold):
    first = await archived(vault, held(15), some_entries(1, 15))
    grown = held(25, version=4, pointer=first.pointer)
    second = await archived(vault, grown, some_entries(1, 25))

    manifest = await opened(vault, second)
    keys = [manifest.key(part) for part in (manifest.document, *manifest.chunks)]
    assert second.bytes == sum(len(cold.objects[k]) for k in (second.pointer, *keys))


async def test_a_session_that_stayed_as_it_was_keeps_its_archive(vault, cold):
    """
    It returned, was read, and rests again: nothing is added to the chain.
    """
    first = await archived(vault, held(15), some_entries(1, 15))
    objects = dict(cold.objects)
    gone = Timeline([], first=16)
    returned = held(15, pointer=first.pointer, through=15)

    again = await Archives(cold).archive(returned, gone.read, lambda seq: None)

    assert again == first
    assert gone.asked == []
    assert cold.objects == objects


async def test_a_changed_state_shares_all_chunks(vault, cold):
    first = await archived(vault, held(15), some_entries(1, 15))
    changed = held(15, version=4, pointer=first.pointer, through=15)

    second = await archived(vault, changed, [])

    manifest = await opened(vault, second)
    assert manifest.chunks == (await opened(vault, first)).chunks
    assert manifest.previous == first.pointer
    assert (await vault.document(manifest))[0].version == 4
    # The older archive is still whole.
    assert (await vault.document(await opened(vault, first)))[0].version == 3


async def test_what_is_older_than_its_archive_is_refused(vault):
    first = await archived(vault, held(15), some_entries(1, 15))

    with pytest.raises(Unavailable, match="read it again"):
        await archived(vault, held(14, pointer=first.pointer, through=14), [])


@pytest.mark.parametrize(
    "lacking",
    [
        pytest.param(some_entries(1, 14), id="the last"),
        pytest.param(some_entries(2, 15), id="the first"),
        pytest.param(some_entries(1, 6) + some_entries(8, 15), id="one in between"),
        pytest.param(some_entries(1, 6) * 3, id="others instead"),
        pytest.param([], id="all"),
    ],
)
async def test_a_timeline_with_a_hole_is_not_archived(lacking, vault, cold):
    with pytest.raises(Unavailable, match="archive it later"):
        await archived(vault, held(15), lacking)

    # Chunks ahead of the hole may lie there; nothing names them.
    chunks = {key for key in cold.objects if b"schema" in cold.objects[key]}
    assert chunks == set()


async def test_a_long_timeline_is_read_in_bounded_steps(vault, monkeypatch):
    """
    However large the entries, no more of them are read than make about a chunk.
    """
    monkeypatch.setattr(format, "CHUNK_BYTES", 50_000)
    monkeypatch.setattr(writer, "CHUNK_BYTES", 50_000)
    small = Timeline(some_entries(1, 3000))
    large = Timeline(some_entries(1, 40, text="x" * 10_000))

    await vault.archive(held(3000), small.read, lambda seq: None)
    await vault.archive(held(40), large.read, lambda seq: None)

    assert max(last - first + 1 for first, last in small.asked) == 256
    assert len(small.asked) < 20
    assert max(last - first + 1 for first, last in large.asked) == 4
    for asked, count in ((small.asked, 3000), (large.asked, 40)):
        flat = [seq for first, last in asked for seq in range(first, last + 1)]
        assert flat == list(range(1, count + 1))


async def test_a_chunk_ends_before_it_is_too_large(vault, monkeypatch):
    monkeypatch.setattr(format, "CHUNK_BYTES", 1000)
    entries = some_entries(1, 3, text="x" * 300)
    entries += some_entries(4, 4, text="x" * 2000) + some_entries(5, 5)

    archive = await archived(vault, held(5), entries)

    chunks = (await opened(vault, archive)).chunks
    assert [(c.first, c.last) for c in chunks] == [(1, 2), (3, 3), (4, 4), (5, 5)]
    assert (await everything(vault, archive))[1] == entries


@given(st.integers(-5, 45), st.integers(-5, 45))
def test_entries_are_those_in_the_range(first, last):
    entries = some_entries(1, 35)

    async def found() -> list[bytes]:
        vault = Archives(MemoryCold())
        archive = await archived(vault, held(35), entries)
        return await vault.entries(await opened(vault, archive), first, last)

    assert asyncio.run(found()) == entries[max(first, 1) - 1 : max(last, 0)]


@pytest.mark.parametrize("offset_s", [-1, 0, 1])
async def test_the_first_entry_since_a_time_is_found(offset_s, vault):
    entries = some_entries(1, 35)
    manifest = await opened(vault, await archived(vault, held(35), entries))

    for seq in range(1, 36):
        at = moment(seq) + timedelta(seconds=offset_s)
        wanted = next((s for s in range(1, 36) if moment(s) >= at), None)
        assert await vault.first_since(manifest, at) == wanted, (seq, at)


async def test_at_most_one_chunk_is_fetched_to_find_a_time(vault, cold):
    manifest = await opened(vault, await archived(vault, held(35), some_entries(1, 35)))
    cold.calls.clear()

    await vault.first_since(manifest, moment(15))

    assert sum(cold.calls.values()) <= 1


async def test_readers_at_once_fetch_a_chunk_once(vault, cold):
    entries = some_entries(1, 35)
    archive = await archived(vault, held(35), entries)
    cold.calls.clear()
    reader = Archives(cold)

    async def page() -> list[bytes]:
        return await reader.entries(await opened(reader, archive), 5, 15)

    pages = await asyncio.gather(*(page() for _ in range(50)))

    assert pages == [entries[4:15]] * 50
    assert len(cold.calls) == 3
    assert set(cold.calls.values()) == {1}


async def test_whoever_fetches_may_give_up_and_the_others_get_it(vault, cold):
    manifest = await opened(vault, await archived(vault, held(15), some_entries(1, 15)))
    cold.gate = asyncio.Event()
    async with asyncio.TaskGroup() as readers:
        tasks = [readers.create_task(vault.chunk(manifest, 0)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        cold.gate.set()

    assert tasks[0].cancelled()
    assert [task.result() for task in tasks[1:]] == [some_entries(1, 10)] * 2


async def test_what_went_wrong_is_told_to_all_and_not_kept():
    shelf: ArchiveCache[str] = ArchiveCache(100)
    gate = asyncio.Event()
    fetches = 0

    async def fails() -> Weighed[str]:
        nonlocal fetches
        fetches += 1
        await gate.wait()
        raise Unavailable("away")

    async def works() -> Weighed[str]:
        return Weighed("value", 10)

    asked = asyncio.gather(
        *(shelf.get("k", fails) for _ in range(3)), return_exceptions=True
    )
    await asyncio.sleep(0)
    gate.set()

    assert [type(error) for error in await asked] == [Unavailable] * 3
    assert fetches == 1
    assert await shelf.get("k", works) == "value"


async def test_an_error_that_nobody_else_waits_for_is_told_once():
    """
    Not once more by asyncio, when the fetch that failed is cleared away.
    """
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context)
    )

    async def fails() -> Weighed[str]:
        raise Unavailable("away")

    # Not by pytest.raises(), which would keep the error, and with it all of this.
    with suppress(Unavailable):
        await ArchiveCache[str](100).get("k", fails)
    gc.collect()
    await asyncio.sleep(0)

    assert complaints == []


async def test_a_shelf_keeps_what_was_asked_for_last_and_no_more():
    shelf: ArchiveCache[str] = ArchiveCache(30)
    fetched: list[str] = []

    async def get(key: str, size: int = 10) -> None:
        async def fetch() -> Weighed[str]:
            fetched.append(key)
            return Weighed(key, size)

        assert await shelf.get(key, fetch) == key

    for key in "abc":
        await get(key)
    await get("a")
    await get("d")
    await get("huge", 31)
    fetched.clear()
    for key in "acd":
        await get(key)
    assert fetched == []
    await get("b")
    assert fetched == ["b"]


async def test_closing_the_vault_closes_its_tier():
    class Closing(MemoryCold):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    cold = Closing()

    Archives(cold).close()

    assert cold.closed == 1


async def test_the_work_on_bytes_leaves_the_loop_alone(vault, monkeypatch):
    """
    Hashing and packing a chunk takes milliseconds in which no lane would go on.
    """
    threads: set[threading.Thread] = set()

    def watched(function: Any) -> Any:
        def call(*args: Any) -> Any:
            threads.add(threading.current_thread())
            return function(*args)

        return call

    for module, names in (
        (writer, ("seal_chunk", "seal_document", "seal_manifest")),
        (verified, ("open_chunk",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, watched(getattr(module, name)))

    archive = await archived(vault, held(15), some_entries(1, 15))
    await everything(vault, archive)

    assert threads
    assert threading.main_thread() not in threads
