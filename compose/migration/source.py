"""
Where old conversations come from: the protocol of old stores.

Readers block, so callers give them a thread. None of them writes to the old store.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol


class OldMessage(NamedTuple):
    """
    One message of the old store, and where it stands.
    """

    where: str
    fields: Mapping[str, Any]
    problem: str = ""


class OldConversation(NamedTuple):
    """
    One conversation of the old store.

    Attributes:
        where: the row, for people.
        position: JSON value; `conversations` goes on behind it.
        key: its id as the store has it.
        problem: why the row cannot be read; empty if it can.
        embedded: its messages, if the row holds them.
    """

    where: str
    position: Any  # JSON value
    key: Any
    fields: Mapping[str, Any]
    problem: str = ""
    embedded: list[Any] | None = None


class OldStore(Protocol):
    """
    An old store, read only; several threads may call it, one at a time.
    """

    def conversations(self, after: Any = None) -> Iterator[OldConversation]:
        """
        All conversations in a lasting order, those behind the position *after*.
        """
        ...

    def conversation(self, key: str) -> OldConversation | None:
        """
        One conversation by its id; None if there is none, or none can be looked up.
        """
        ...

    def messages(
        self, conversation: OldConversation, skip: int, limit: int
    ) -> list[OldMessage]:
        """
        At most *limit* messages in their order, behind the first *skip*.
        """
        ...

    def count(self) -> int:
        """
        Number of conversations; 0 if that is not cheap.
        """
        ...

    def close(self) -> None:
        """
        Close the store's connections.
        """
        ...


def embedded_messages(
    conversation: OldConversation, skip: int, limit: int
) -> list[OldMessage]:
    """
    Messages that the conversation's own row holds.
    """
    found = (conversation.embedded or [])[skip : skip + limit]

    return [
        OldMessage(f"{conversation.where}, message {n}", row)
        if isinstance(row, dict)
        else OldMessage(f"{conversation.where}, message {n}", {}, "wanted an object")
        for n, row in enumerate(found, skip + 1)
    ]


def in_batches(
    found: Iterator[OldConversation], size: int
) -> Iterator[list[OldConversation]]:
    """
    The conversations, *size* at a time.
    """
    while batch := list(islice(found, size)):
        yield batch
