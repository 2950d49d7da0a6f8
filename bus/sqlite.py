"""
A SQLite file of our own: recognised, held by one process, written in whole steps.

What is not ours is never written to; every error of SQLite becomes one of ours,
which names the file and what to do.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from bus.errors import EverbusError, Invalid, Overloaded, Unavailable

# One page of the smallest size there is.
SMALLEST_BYTES = 512

Value = str | bytes | int | None


class SqliteFile:
    """
    An open file that no other process, and nobody else in this one, can open.

    The file has to be on a local disk: network file systems do not lock well.

    Attributes:
        path: where it is.
    """

    def __init__(
        self,
        path: Path,
        application_id: int,
        make: Callable[["SqliteFile"], None],
    ) -> None:
        """
        Open the file; if there is none, or an empty one, *make* what belongs in it.

        Args:
            application_id: by which it is recognised (SQLite, PRAGMA application_id).
            make: called in the one step in which the file becomes ours; its mode is
                0600.

        Raises:
            Unavailable: another process uses it.
            Invalid: it is damaged, or something else; then nothing in it is changed.
                Or it cannot be made there.
            Overloaded: the disk is full.
        """
        self.path = path
        _touch(path)
        with self.meaning():
            self._db = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            self._take(application_id, make)
        except BaseException:
            self._db.close()
            raise

    def write_ahead(self, synchronous: Literal["NORMAL", "FULL"]) -> None:
        """
        Write to a log first: what was written survives SIGKILL of this process; with
        FULL, which waits for the disk each time, loss of power, too.
        """
        with self.meaning():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {synchronous}")

    def execute(self, statement: str, *values: Value) -> sqlite3.Cursor:
        """
        One statement; outside of `together` a transaction of its own.
        """
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._meant(error) from error

    def execute_each(self, statement: str, values: Iterable[tuple[Value, ...]]) -> None:
        """
        One statement for each of *values*; to be called in `together`.
        """
        self._db.executemany(statement, values)

    def rows(self, statement: str, *values: Value) -> list[Any]:
        """
        All rows that a statement finds.
        """
        with self.meaning():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        All that the block writes, or nothing of it.
        """
        with self.meaning():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk may have ended it already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def meaning(self) -> Iterator[None]:
        """
        SQLite's errors as ours.
        """
        try:
            yield
        except sqlite3.Error as error:
            raise self._meant(error) from error

    def refused(self, why: str) -> Invalid:
        """
        The error that this file cannot be used, and *why*.
        """
        return _refused(self.path, why)

    def close(self) -> None:
        """
        Let go of the file.
        """
        self._db.close()

    def _take(self, application_id: int, make: Callable[["SqliteFile"], None]) -> None:
        # Held until the connection ends, by SIGKILL as well.
        self.execute("PRAGMA locking_mode = EXCLUSIVE")
        with self.together():
            [[found]] = self.rows("PRAGMA application_id")
            [[count]] = self.rows("SELECT count(*) FROM sqlite_master")
            if not (found or count):
                make(self)
                self.execute(f"PRAGMA application_id = {application_id}")
            elif found != application_id:
                raise self.refused("is a database of something else. Name another file")
        [[problem]] = self.rows("PRAGMA quick_check(1)")
        if problem != "ok":
            raise self._damaged(problem)
        self.path.chmod(0o600)

    def _meant(self, error: sqlite3.Error) -> EverbusError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return Unavailable(
                f"{self.path} is in use by another process, or by another connection "
                "of this one. End that one, or give each a file of its own"
            )
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return self._damaged(str(error))
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return Overloaded(
                f"{self.path} cannot be written: {error} ({name}); is the disk full? "
                "Nothing of this was kept. Make room and do it again"
            )
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")):
            return self.refused(f"cannot be used: {error}. Name a file that can")
        return Unavailable(f"{self.path} cannot be used: {error}")

    def _damaged(self, why: str) -> Invalid:
        return self.refused(
            f"is damaged, or no spool: {why}. Nothing was changed. Move it away to go "
            "on without it; `sqlite3 FILE .recover` may read what is left"
        )


def _touch(path: Path) -> None:
    """
    Make an empty file that only its owner reads; one that is there stays as it is.

    Raises:
        Invalid: it cannot be made, or is too small for what it should be.
    """
    # Never opened if it exists: closing it would drop the locks that another
    # connection of this process holds on it (fcntl(2)).
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        # SQLite takes a file of one byte for an empty one, and would overwrite it.
        if 0 < path.stat().st_size < SMALLEST_BYTES:
            raise _refused(path, "is no database. Name another file") from None
    except OSError as error:
        raise _refused(
            path, f"cannot be made: {error.strerror}. Name a file that can"
        ) from error


def _refused(path: Path, why: str) -> Invalid:
    return Invalid(f"{path} {why}", field="spool")
