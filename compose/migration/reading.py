"""
What an old conversation becomes, page by page, and the rows that cannot.

The n-th message that can be copied is the session's seq n. Rows are refused by their
content alone, so every reader of the same rows counts alike.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec

from everbus.compose.migration.mapping import MigrationMapping, SessionPlan
from everbus.compose.migration.source import OldConversation, OldStore
from everbus.compose.migration.values import RowProblem

PAGE_MESSAGES = 100

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class RefusedRow(msgspec.Struct, frozen=True):
    """
    A row that cannot be copied as it is, and why.

    Attributes:
        where: the row in the old store.
        conversation: id of its conversation, as text.
    """

    where: str
    conversation: str
    field: str
    reason: str


OnRefusedRow = Callable[[RefusedRow], None]


class ReadPlace(NamedTuple):
    """
    How far a conversation was read: rows of the old store, and entries made of them.
    """

    rows: int = 0
    seq: int = 0


BEGIN = ReadPlace()


class MappedPage(NamedTuple):
    """
    Entries in their order; the first has the seq *first*.
    """

    first: int
    entries: list[Any]  # JSON values
    end: ReadPlace


class ConversationReader:
    """
    Reads an old store by a mapping.
    """

    def __init__(
        self, store: OldStore, mapping: MigrationMapping, on_refused: OnRefusedRow
    ) -> None:
        self.store = store
        self.mapping = mapping
        self._on_refused = on_refused

    def plan(self, conversation: OldConversation) -> SessionPlan | None:
        """
        The session that it becomes; None if the row was refused.
        """
        try:
            if conversation.problem:
                raise RowProblem("row", conversation.problem)  # noqa: TRY301 - one way
            return self.mapping.session(conversation.fields)
        except RowProblem as problem:
            self.refuse(conversation, problem)
            return None

    async def pages(
        self, conversation: OldConversation, start: ReadPlace = BEGIN
    ) -> AsyncIterator[MappedPage]:
        """
        Its entries behind *start*, in pages of PAGE_MESSAGES rows.
        """
        place = start
        while True:
            rows = await asyncio.to_thread(
                self.store.messages, conversation, place.rows, PAGE_MESSAGES
            )
            entries = []
            for row in rows:
                try:
                    if row.problem:
                        raise RowProblem("row", row.problem)  # noqa: TRY301 - one way
                    entries.append(self.mapping.entry(row.fields))
                except RowProblem as problem:
                    self.refuse(conversation, problem, row.where)
            end = ReadPlace(place.rows + len(rows), place.seq + len(entries))
            if rows:
                yield MappedPage(place.seq + 1, entries, end)
            if len(rows) < PAGE_MESSAGES:
                return
            place = end

    def refuse(
        self, conversation: OldConversation, problem: RowProblem, where: str = ""
    ) -> None:
        """
        Report a row that cannot be copied.
        """
        self._on_refused(
            RefusedRow(
                where or conversation.where,
                str(conversation.key),
                problem.field,
                problem.reason,
            )
        )


def same_json(one: Any, other: Any) -> bool:
    """
    Whether two JSON values are equal; 1, 1.0 and true are three.
    """
    return _encode(one) == _encode(other)
