"""
Cold tiers without a server: objects in memory, for tests, and files in a folder.

Both hold objects under keys of one form, four parts deep, and refuse any other: no
key can name a file outside the folder, or a folder where another key has a file.
"""

import asyncio
import errno
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from everbus.bus.errors import TooLarge, Unavailable

DEPTH = 4
# A part begins with a letter or digit: neither `..` nor a hidden file.
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_KEY = re.compile(rf"{_PART}(?:/{_PART}){{{DEPTH - 1}}}")
# Removing the last object of a folder removes the folder; a put that has just found
# it there then makes it again.
_TRIES = 5
_REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "raise the quota, or free space",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.EROFS: "mount that disk for writing",
}

T = TypeVar("T")


def check_key(key: str) -> str:
    """
    *key*, if it has DEPTH parts of letters, digits, `_`, `.` and `-`.

    Raises:
        ValueError: it has not; no key of ours is such.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {ascii(key)[:200]}; wanted {_KEY.pattern}")
    return key


def check_size(key: str, size: int, limit: int) -> None:
    """
    Accept an object of *size* bytes where *limit* are wanted at most.

    Raises:
        TooLarge: it has more.
    """
    if size > limit:
        raise TooLarge(
            f"object {key} has {size} bytes or more; at most {limit} were expected",
            size=size,
            limit=limit,
        )


class MemoryCold:
    """
    Objects in this process, gone with it.

    Attributes:
        objects: key → bytes, for tests to look at and to spoil.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        """
        Keep *data* under *key*.
        """
        self.objects[check_key(key)] = bytes(data)

    async def get(self, key: str, limit: int) -> bytes | None:
        """
        The object; None if there is none.

        Raises:
            TooLarge: it has more than *limit* bytes.
        """
        found = self.objects.get(check_key(key))
        if found is not None:
            check_size(key, len(found), limit)
        return found

    async def size(self, key: str) -> int | None:
        """
        Its length in bytes; None if there is no such object.
        """
        found = self.objects.get(check_key(key))

        return None if found is None else len(found)

    async def delete(self, key: str) -> None:
        """
        Remove it; nothing happens if there is none.
        """
        self.objects.pop(check_key(key), None)

    def close(self) -> None:
        """
        Do nothing: there are no connections.
        """


class FolderCold:
    """
    Objects as files below *folder*, which is made at the first call.

    A file appears whole or not at all, and is on the disk when put() returns. A
    process that is killed while it writes may leave a hidden file `.part-*` behind.
    All methods raise Unavailable, with path and remedy, when the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = False

    async def put(self, key: str, data: bytes) -> None:
        """
        Keep *data* under *key*, on the disk when this returns.
        """
        path = self._path(key)
        await self._run(path, lambda: _put(path, data, self._folder))

    async def get(self, key: str, limit: int) -> bytes | None:
        """
        The object; None if there is none.

        Raises:
            TooLarge: it has more than *limit* bytes.
        """
        path = self._path(key)

        def found() -> bytes:
            with path.open("rb") as file:
                # One byte more tells that there is more, and is all that is read.
                data = file.read(limit + 1)
            check_size(key, len(data), limit)
            return data

        return await self._run(path, found)

    async def size(self, key: str) -> int | None:
        """
        Its length in bytes; None if there is no such object.
        """
        path = self._path(key)

        return await self._run(path, lambda: path.stat().st_size)

    async def delete(self, key: str) -> None:
        """
        Remove it, and folders that are empty then; nothing happens if there is none.
        """
        path = self._path(key)
        await self._run(path, lambda: _delete(path))

    def close(self) -> None:
        """
        Do nothing: no file stays open.
        """

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    async def _run(self, path: Path, call: Callable[[], T]) -> T | None:
        """
        What *call* returns, in a thread; None if there is no such file.
        """
        return await asyncio.to_thread(self._called, path, call)

    def _called(self, path: Path, call: Callable[[], T]) -> T | None:
        try:
            self._check_folder()
            return call()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from error

    def _check_folder(self) -> None:
        """
        Make the folder once. A folder missing later means an unmounted disk, which must
        not pass for a folder without objects.
        """
        if not self._made:
            _make_folder(self._folder)
            self._made = True
        elif not self._folder.is_dir():
            raise Unavailable(
                f"the cold tier's folder {self._folder} is gone; "
                "mount its disk, or put it back"
            )


def _put(path: Path, data: bytes, root: Path) -> None:
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            _make_folder(path.parent)
            _write(path, data)
            return
        if not root.is_dir():
            break
    raise Unavailable(f"{path}: its folder is gone, again and again; try again later")


def _write(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _delete(path: Path) -> None:
    path.unlink()
    _sync_folder(path.parent)
    # Not empty, or made anew meanwhile: it stays.
    with suppress(OSError):
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _make_folder(folder: Path) -> None:
    """
    Make *folder* and those above it, each on the disk before what is in it.
    """
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError) -> Unavailable:
    remedy = _REMEDIES.get(error.errno or 0, "look at that disk, then try again")

    return Unavailable(f"cold tier: {path}: {error.strerror}; {remedy}")
