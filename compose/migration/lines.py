"""
A file of JSON lines as an old store.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from everbus.compose.migration.rules import MappingError
from everbus.compose.migration.source import (
    OldConversation,
    OldMessage,
    embedded_messages,
)


class JsonLines:
    """
    A file with one conversation a line, each with a list of its messages.
    """

    def __init__(self, path: Path, messages: str, key: str) -> None:
        self._path, self._messages, self._key = path, messages, key
        if not path.is_file():
            raise MappingError(f"{path}: no such file; source.path names it")

    def conversations(self, after: Any = None) -> Iterator[OldConversation]:
        """
        The lines behind the byte and line in *after*.
        """
        offset, number = after or (0, 0)
        with self._path.open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                offset, number = offset + len(line), number + 1
                if line.strip():
                    yield self._read(line, number, [offset, number])

    def conversation(self, key: str) -> OldConversation | None:
        """
        None: a file of lines has no index.
        """
        return None

    def messages(
        self, conversation: OldConversation, skip: int, limit: int
    ) -> list[OldMessage]:
        """
        Messages of the conversation's line.
        """
        return embedded_messages(conversation, skip, limit)

    def count(self) -> int:
        """
        Lines that are not empty.
        """
        with self._path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())

    def close(self) -> None:
        """
        Nothing stays open.
        """

    def _read(self, line: bytes, number: int, position: Any) -> OldConversation:
        where = f"line {number}"
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            return OldConversation(where, position, None, {}, f"unreadable: {error}")
        messages = row.pop(self._messages, None)
        if not isinstance(messages, list):
            problem = f"{self._messages} is no list of messages"
            return OldConversation(where, position, row.get(self._key), row, problem)
        return OldConversation(
            where, position, row.get(self._key), row, embedded=messages
        )
