"""
Pages of a timeline: where one ends, and where the next begins.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from bus.messages import TimelinePage


class Cut(NamedTuple):
    """
    One page's part of a range of seqs; empty if *last* is below *first*.

    Attributes:
        next: as in TimelinePage.
    """

    first: int
    last: int
    next: int | None


def cut(first: int, last: int, limit: int, newest_first: bool) -> Cut:
    """
    The first page of the entries *first* to *last*: the lowest *limit* of them, or
    the highest if *newest_first*.

    *first* and *last* are what all bounds leave, of seq and of time, and *last* is
    at most the timeline's end: so `next` tells exactly whether there is more.
    """
    if newest_first:
        lowest = max(first, last - limit + 1)
        return Cut(lowest, last, lowest if lowest > first else None)
    highest = min(last, first + limit - 1)

    return Cut(first, highest, highest if highest < last else None)


def page_of(encoded: Sequence[bytes], next_: int | None) -> TimelinePage:
    """
    A page of *encoded* entries, in the order in which they are to be seen.
    """
    entries: tuple[Any, ...] = tuple(msgspec.Raw(entry) for entry in encoded)

    return TimelinePage(entries, next_)
