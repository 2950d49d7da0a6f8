"""
A SQLite file of our own: recognised, locked by one process, written in transactions.

Foreign files are never written to; every error of SQLite becomes an EverbusError that
names the file and the remedy. A forked child does not touch the file of its parent:
SQLite's locks do not pass to it, and its close would take the log away.
"""

import ctypes
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from everbus.bus.errors import EverbusError, Invalid, Overloaded, Unavailable

# One page of the smallest size there is.
SMALLEST_BYTES = 512

Value = str | bytes | int | None


class SqliteFile:
    """
    An open file that no other connection, in any process, can open.

    The file must be on a local disk: network file systems do not lock well.

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
        Open the file; *make* fills a missing or empty one.

        Args:
            application_id: mark of our files (SQLite, PRAGMA application_id).
            make: called in the transaction that marks the file; its mode is 0600.

        Raises:
            Unavailable: another process uses it.
            Invalid: it is damaged, or another kind of file; then its content is not
                changed. Or it cannot be created there.
            Overloaded: the disk is full.
        """
        self.path = path
        self._forked = False
        _touch(path)
        with self.translating_errors():
            self._db = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            self._take(application_id, make)
        except BaseException:
            self._db.close()
            raise
        _open_files.add(self)

    def write_ahead(self, synchronous: Literal["NORMAL", "FULL"]) -> None:
        """
        Use a write-ahead log: a write survives SIGKILL of this process; with FULL,
        which waits for the disk each time, also loss of power.
        """
        with self.translating_errors():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {synchronous}")

    def execute(self, statement: str, *values: Value) -> sqlite3.Cursor:
        """
        Execute one statement; outside `transaction` it is its own transaction.
        """
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def execute_each(self, statement: str, values: Iterable[tuple[Value, ...]]) -> None:
        """
        Execute one statement for each of *values*; call it within `transaction`.
        """
        self._db.executemany(statement, values)

    def rows(self, statement: str, *values: Value) -> list[Any]:
        """
        All rows of a query.
        """
        with self.translating_errors():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """
        One transaction: all writes of the block, or none.
        """
        with self.translating_errors():
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
    def translating_errors(self) -> Iterator[None]:
        """
        Translate SQLite's errors into EverbusErrors.
        """
        try:
            yield
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def refused(self, why: str) -> Invalid:
        """
        Error: this file cannot be used, and *why*.
        """
        return _refused(self.path, why)

    def close(self) -> None:
        """
        Close the file.
        """
        self._db.close()

    def abandon(self) -> None:
        """
        Leave the file to the parent process; in a forked child only.

        Its connection must never be closed here, not even when the interpreter ends:
        one reference more keeps it for ever.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
        self._db = _CLOSED
        self._forked = True

    def _take(self, application_id: int, make: Callable[["SqliteFile"], None]) -> None:
        # Held until the connection ends, by SIGKILL as well.
        self.execute("PRAGMA locking_mode = EXCLUSIVE")
        # What is deleted leaves the file; the default depends on how SQLite was built.
        self.execute("PRAGMA secure_delete = ON")
        with self.transaction():
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

    def _translated(self, error: sqlite3.Error) -> EverbusError:
        if self._forked:
            return Unavailable(
                f"{self.path} belongs to the process that opened it, and this is a "
                "forked child. Give the child a file of its own"
            )
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


# Stands in for a connection that a forked child must not use. Made before any fork: in
# the child another thread may hold a lock of SQLite for ever.
_CLOSED = sqlite3.connect(":memory:", check_same_thread=False)
_CLOSED.close()
_open_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()


def _abandon_all() -> None:
    for file in tuple(_open_files):
        file.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def _touch(path: Path) -> None:
    """
    Create an empty file with mode 0600; an existing file is not changed.

    Raises:
        Invalid: it cannot be created, or is too small for a database.
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
