"""
A storage provider of one's own: archives in an SQLite file, in place of S3.

It shows the five methods of a cold tier. An object is never changed, has a few MiB at
most, and is verified by everbus whenever it is read; what may pass is `Unavailable`.

Use it: put this file on the Python path of managers, archivers and edges, give each
    EVERBUS_COLD_STORE=sqlite_cold:SqliteCold
    SQLITE_COLD=/var/lib/everbus/cold.db
and check it before with the contract suite, as `test_sqlite_cold.py` does.
"""

import os
import sqlite3
from asyncio import to_thread
from contextlib import closing
from typing import Any

from everbus.bus.errors import TooLarge, Unavailable

TABLE = "CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, data BLOB)"


class SqliteCold:
    """
    Objects in one file, which several processes of one host may share.
    """

    def __init__(self, path: str | os.PathLike[str] = "") -> None:
        """
        Open the file; everbus makes the tier without arguments.
        """
        self.path = path or os.environ["SQLITE_COLD"]
        self._ask(TABLE)

    async def put(self, key: str, data: bytes) -> None:
        """
        Keep an object; when this returns, it is on the disk.
        """
        await to_thread(self._ask, "REPLACE INTO objects VALUES (?, ?)", key, data)

    async def get(self, key: str, limit: int) -> bytes | None:
        """
        An object; None if there is none.

        Raises:
            TooLarge: it has more than *limit* bytes.
        """
        if (await self.size(key) or 0) > limit:
            raise TooLarge(f"{key} has more than {limit} bytes")
        found: bytes | None = await to_thread(
            self._ask, "SELECT data FROM objects WHERE key=?", key
        )

        return found

    async def size(self, key: str) -> int | None:
        """
        The size of an object in bytes; None if there is none.
        """
        found: int | None = await to_thread(
            self._ask, "SELECT length(data) FROM objects WHERE key=?", key
        )

        return found

    async def delete(self, key: str) -> None:
        """
        Remove an object, if it is there.
        """
        await to_thread(self._ask, "DELETE FROM objects WHERE key=?", key)

    def close(self) -> None:
        """
        Keep nothing open: each call has a connection of its own.
        """

    def _ask(self, sql: str, *values: str | bytes) -> Any:
        try:
            # The inner `with` commits.
            with closing(sqlite3.connect(self.path, timeout=10)) as file, file:
                return (file.execute(sql, values).fetchone() or [None])[0]
        except sqlite3.Error as error:
            raise Unavailable(f"{self.path}: {error}; look at its disk") from error
