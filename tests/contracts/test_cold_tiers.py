"""
Every cold tier keeps the contract: memory, a folder, and real S3. The provider of
`docs/examples` runs the same suite by tests of its own.
"""

import asyncio
import errno
import os
import resource
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from everbus.bus.errors import Unavailable
from everbus.compose.testing.contracts.cold import CHECKS, check_cold_tier
from everbus.gateway.store.cold.local import FolderCold, MemoryCold
from everbus.gateway.store.cold.s3 import S3Cold
from tests.servers import S3_KEYS, RealServer, nanio

pytestmark = pytest.mark.asyncio(loop_scope="module")

A_KEY, ANOTHER_KEY = (f"sessions/00/s1/{digit * 64}" for digit in "ab")
A_CHECK = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory) -> AsyncIterator[RealServer]:
    async with nanio(tmp_path_factory.mktemp("cold")) as real:
        yield real


@A_CHECK
async def test_memory_keeps_the_contract(check):
    tier = MemoryCold()

    await check(lambda: tier)

    assert tier.objects == {}


@A_CHECK
async def test_a_folder_keeps_the_contract(check, tmp_path):
    await check(lambda: FolderCold(tmp_path / "cold"))

    assert [p for p in (tmp_path / "cold").rglob("*") if p.is_file()] == []


@A_CHECK
async def test_s3_keeps_the_contract(check, server):
    await check(lambda: S3Cold(server.url, "everbus", *S3_KEYS))


async def test_the_whole_suite_runs_at_once():
    tier = MemoryCold()

    await check_cold_tier(lambda: tier)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a",
        "a/b/c",
        "a/b/c/d/e",
        "../b/c/d",
        "a/../c/d",
        "a/b/c/..",
        "a/b/./d",
        "a/b//d",
        "/a/b/c/d",
        "a/b/c/d/",
        "a/b/c/.part-d",
        "a/b/c/d\0",
        "a/b/c/d\n",
        "a/b/c/" + "d" * 129,
        "ä/b/c/d",
    ],
)
async def test_no_key_leaves_the_tier_or_its_depth(key, tmp_path, server):
    folder = FolderCold(tmp_path / "cold")
    s3 = S3Cold(server.url, "everbus", *S3_KEYS)

    for tier in (MemoryCold(), folder, s3):
        for call in (tier.put(key, b""), tier.get(key, 1), tier.size(key)):
            with pytest.raises(ValueError, match="wanted"):
                await call
        with pytest.raises(ValueError, match="wanted"):
            await tier.delete(key)

    assert list(tmp_path.iterdir()) == []
    s3.close()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EFBIG, "ulimit"),
        (errno.EACCES, "let this user write"),
        (errno.EIO, "look at that disk"),
    ],
)
async def test_a_disk_that_refuses_is_unavailable_with_the_remedy(
    number, remedy, tmp_path, monkeypatch
):
    """
    And nothing is left of the attempt: neither an object nor a part of one.
    """
    tier = FolderCold(tmp_path)

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    await tier.put(A_KEY, b"there")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Unavailable, match=remedy) as refused:
        await tier.put(ANOTHER_KEY, b"new")

    assert str(tmp_path / ANOTHER_KEY) in str(refused.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / A_KEY]


async def test_a_file_that_becomes_too_large_is_unavailable(tmp_path):
    tier = FolderCold(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(Unavailable, match="ulimit"):
            await tier.put(A_KEY, b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    await tier.put(A_KEY, b"x" * 200_000)


async def test_an_object_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """
    Its bytes first, then its name, then the folder in which the name is; and each
    folder before what is in it. A power cut in between leaves all or nothing.
    """
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        steps.append(f"sync {'part' if name.startswith('.part-') else name}")
        sync(descriptor)

    def renamed(source: str, target: str) -> None:
        steps.append(f"name {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    await FolderCold(tmp_path).put("a/b/c/d", b"there")

    root = tmp_path.name
    wanted = [f"sync {root}", "sync a", "sync b", "sync part", "name d", "sync c"]
    assert steps == wanted


async def test_a_folder_that_has_gone_is_not_taken_for_an_empty_one(tmp_path):
    """
    Else an unmounted disk would look like the loss of every archive.
    """
    tier = FolderCold(tmp_path / "cold")
    await tier.put(A_KEY, b"there")
    (tmp_path / "cold").rename(tmp_path / "elsewhere")

    for call in (tier.get(A_KEY, 10), tier.size(A_KEY), tier.put(A_KEY, b"there")):
        with pytest.raises(Unavailable, match="mount its disk"):
            await call
    (tmp_path / "elsewhere").rename(tmp_path / "cold")
    assert await tier.get(A_KEY, 10) == b"there"


async def test_a_put_is_not_lost_to_a_delete_beside_it(tmp_path, monkeypatch):
    """
    The last object of a folder takes the folder with it, under a put's nose.
    """
    tier = FolderCold(tmp_path)
    await tier.put(A_KEY, b"there")
    make_part, deletes = tempfile.mkstemp, 3

    def delete_before(prefix: str, dir: Path) -> tuple[int, str]:
        nonlocal deletes
        if deletes:
            deletes -= 1
            (tmp_path / A_KEY).unlink(missing_ok=True)
            dir.rmdir()
            dir.parent.rmdir()
        return make_part(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", delete_before)
    await tier.put(ANOTHER_KEY, b"new")

    assert deletes == 0
    assert await tier.get(ANOTHER_KEY, 10) == b"new"
    assert await tier.get(A_KEY, 10) is None


async def test_folders_go_with_their_last_object(tmp_path):
    tier = FolderCold(tmp_path)
    await tier.put(A_KEY, b"there")
    await tier.put(ANOTHER_KEY, b"there")

    await tier.delete(A_KEY)
    assert await tier.get(ANOTHER_KEY, 10) == b"there"
    await tier.delete(ANOTHER_KEY)

    assert [path.name for path in tmp_path.rglob("*")] == ["sessions"]


class Forgetful(MemoryCold):
    async def put(self, key, data):
        """Keep nothing."""


class Careless(MemoryCold):
    async def get(self, key, limit):
        return self.objects.get(key)


class Truncating(MemoryCold):
    async def put(self, key, data):
        self.objects[key] = data[: 2**20]


class Sticky(MemoryCold):
    async def delete(self, key):
        """Remove nothing."""


class Keeping(MemoryCold):
    async def put(self, key, data):
        self.objects.setdefault(key, data)


class Raising(MemoryCold):
    async def delete(self, key):
        del self.objects[key]


class Folding(MemoryCold):
    async def put(self, key, data):
        await super().put(key[:60], data)

    async def get(self, key, limit):
        return await super().get(key[:60], limit)

    async def size(self, key):
        return await super().size(key[:60])


class Tearing(MemoryCold):
    async def put(self, key, data):
        for end in (len(data) // 2, len(data)):
            self.objects[key] = data[:end]
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "kind",
    [Forgetful, Careless, Truncating, Sticky, Keeping, Raising, Folding, Tearing],
)
async def test_the_suite_finds_what_a_bad_tier_does(kind):
    """
    Each of these breaks one promise, and no check may pass for want of looking.
    """
    tier = kind()

    with pytest.raises((AssertionError, KeyError)):
        await check_cold_tier(lambda: tier)


async def test_each_instance_of_its_own_is_found():
    """
    A tier whose instances do not share a place would lose archives at each restart.
    """
    with pytest.raises(AssertionError, match="another_of_the_same_place_sees_it"):
        await check_cold_tier(MemoryCold)
