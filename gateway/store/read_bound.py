"""
The end of a read in bytes: one reader cannot fill the memory of others.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

# Default of EVERBUS_PAGE_MAX_BYTES.
PAGE_BYTES = 4 * 1024 * 1024

Item = TypeVar("Item")


class ReadBound(NamedTuple):
    """
    The end of a read, and the side from which it reads.

    Attributes:
        most_bytes: the read may end with the item that reaches this size; a reader
            cuts the page itself.
        newest_first: the read begins with the newest item.
    """

    most_bytes: int
    newest_first: bool = False


class Meter:
    """
    Adds up the sizes of items until they reach *most_bytes*.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes

    def add(self, size: int) -> bool:
        """
        Add one item; whether there is room for another one.
        """
        self._left -= size
        return self._left > 0


def fitting(
    items: Iterable[Item], size_of: Callable[[Item], int], most_bytes: int
) -> list[Item]:
    """
    The first item, and the following ones that fit in *most_bytes*.
    """
    taken: list[Item] = []
    left = most_bytes
    for item in items:
        left -= size_of(item)
        if taken and left < 0:
            break
        taken.append(item)
    return taken


def until_full(
    items: Iterable[Item], size_of: Callable[[Item], int], bound: ReadBound | None
) -> list[Item]:
    """
    The *items* up to the bound, the last of which may reach it.
    """
    if bound is None:
        return list(items)
    meter, taken = Meter(bound.most_bytes), list[Item]()
    for item in items:
        taken.append(item)
        if not meter.add(size_of(item)):
            break
    return taken
