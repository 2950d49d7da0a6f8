"""
The bench's marks, in timeline entries and in context summaries.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from everbus.compose.verify.session_checks import Mark

# The field of an entry, and the prefix of the fields of a context summary.
MARK = "bench"


def field_of(client: int) -> str:
    """
    The field of the context summary with the last mark of a client.
    """
    return f"{MARK}{client}"


def mark_in_entry(entry: Any) -> Mark | None:  # JSON value
    """
    The mark in a timeline entry; None if the bench did not send it.
    """
    found = entry.get(MARK) if isinstance(entry, dict) else None
    if not (isinstance(found, list | tuple) and len(found) == 2):
        return None
    client, n = found

    return (client, n) if isinstance(client, int) and isinstance(n, int) else None


def mark_in_patch(summary: Mapping[str, Any]) -> Mark | None:
    """
    The mark in one update of a context summary; None if the bench did not send it.
    """
    return next(_marks(summary), None)


def marks_in_state(summary: Mapping[str, Any]) -> dict[int | str, Any]:
    """
    Client → the mark of its last update in a session's whole context summary.
    """
    return {
        int(name.removeprefix(MARK)): value
        for name, value in summary.items()
        if _is_field(name)
    }


def _marks(summary: Mapping[str, Any]) -> Iterator[Mark]:
    for name, n in summary.items():
        if _is_field(name) and isinstance(n, int):
            yield int(name.removeprefix(MARK)), n


def _is_field(name: str) -> bool:
    number = name.removeprefix(MARK)

    return name != number and number.isdecimal()
