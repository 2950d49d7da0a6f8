"""
SQLite tables as an old store, opened read-only beside their living owner.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from everbus.compose.exit_codes import UNREACHABLE, Failed
from everbus.compose.migration.rules import MappingError, SourceRules
from everbus.compose.migration.source import OldConversation, OldMessage

PAGE_ROWS = 100
BUSY_S = 30.0


class Tables:
    """
    A table of conversations, and a table of messages.

    Pages by the conversations' ids, so each row is found once whatever is added.
    """

    def __init__(
        self,
        path: Path,
        rules: SourceRules,
        of_conversations: Iterable[str] = (),
        of_messages: Iterable[str] = (),
    ) -> None:
        """
        Open *path*; both tables must have the columns that the mapping reads. A wrong
        name would else read as a column without values.

        Raises:
            MappingError: the file, a table or a column is not there.
        """
        self._path, self._rules = path, rules
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro",
                uri=True,
                timeout=BUSY_S,
                check_same_thread=False,
            )
            # Text that is not UTF-8 becomes bytes, which the mapping refuses.
            self._db.text_factory = _text_or_bytes
            self._db.row_factory = sqlite3.Row
            self._check(rules.conversations, [rules.id, *sorted(of_conversations)])
            read = [rules.conversation, *rules.ordering, *sorted(of_messages)]
            self._check(rules.messages, read)
            self._check_unique()
        except sqlite3.Error as error:
            raise MappingError(f"{path}: {error}; wanted a SQLite file") from error

    def conversations(self, after: Any = None) -> Iterator[OldConversation]:
        """
        The rows in the order of their ids, those behind the id *after*.
        """
        table, key = _quote(self._rules.conversations), _quote(self._rules.id)
        while True:
            behind, values = (
                ("", ()) if after is None else (f"WHERE {key} > ?", (after,))
            )
            page = self._rows(
                f"SELECT * FROM {table} {behind} ORDER BY {key} LIMIT {PAGE_ROWS}",  # noqa: S608 - names are quoted
                values,
            )
            for row in page:
                yield self._conversation(row)
            if len(page) < PAGE_ROWS:
                return
            after = page[-1][self._rules.id]

    def conversation(self, key: str) -> OldConversation | None:
        """
        The row of that id; SQLite compares text with the column's type.
        """
        table, column = _quote(self._rules.conversations), _quote(self._rules.id)
        found = self._rows(
            f"SELECT * FROM {table} WHERE {column} = ?",  # noqa: S608 - as above
            (key,),
        )
        return self._conversation(found[0]) if found else None

    def messages(
        self, conversation: OldConversation, skip: int, limit: int
    ) -> list[OldMessage]:
        """
        Rows of the conversation in the order of the mapping.
        """
        rules = self._rules
        order = ", ".join(map(_quote, rules.ordering))
        found = self._rows(
            f"SELECT * FROM {_quote(rules.messages)} "  # noqa: S608 - as above
            f"WHERE {_quote(rules.conversation)} = ? ORDER BY {order} LIMIT ? OFFSET ?",
            (conversation.key, limit, skip),
        )
        name = rules.ordering[-1]
        return [
            OldMessage(f"{rules.messages}.{name} {row[name]}", dict(row))
            for row in found
        ]

    def count(self) -> int:
        """
        Rows of the conversations' table.
        """
        table = _quote(self._rules.conversations)

        return int(self._rows(f"SELECT COUNT(*) FROM {table}")[0][0])  # noqa: S608

    def close(self) -> None:
        """
        Close the file.
        """
        self._db.close()

    def _conversation(self, row: sqlite3.Row) -> OldConversation:
        key = row[self._rules.id]
        where = f"{self._rules.conversations}.{self._rules.id} {key!a}"

        return OldConversation(where, key, key, dict(row))

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Failed(f"{self._path}: {error}", UNREACHABLE) from error

    def _check(self, table: str, columns: list[str]) -> None:
        there = {
            row["name"] for row in self._rows(f"PRAGMA table_info({_quote(table)})")
        }
        if not there:
            raise MappingError(f"the old store has no table {table!r}")
        for column in columns:
            if there.isdisjoint({column, column.partition(".")[0]}):
                known = ", ".join(sorted(there))
                raise MappingError(
                    f"table {table!r} has no column {column!r}; it has {known}"
                )

    def _check_unique(self) -> None:
        table, key = _quote(self._rules.conversations), _quote(self._rules.id)
        kinds = f"SUM(typeof({key}) NOT IN ('text', 'integer'))"
        counts = f"COUNT(*), COUNT(DISTINCT {key}), {kinds}"
        found = self._rows(f"SELECT {counts} FROM {table}")  # noqa: S608 - as above
        rows, different, others = found[0]
        if rows != different or others:
            raise MappingError(
                f"column {self._rules.id!r} of {self._rules.conversations!r} must hold "
                f"a different text or integer in each row; {rows} rows, {different} "
                f"values, {others} of other types"
            )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
