"""
Pages of a timeline: the end of one page and the begin of the next.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from everbus.bus.messages import TimelinePage


class PageRange(NamedTuple):
    """
    Range of seqs on one page; empty if *last* is below *first*.

    Attributes:
        next: as in TimelinePage.
    """

    first: int
    last: int
    next: int | None


def page_range(first: int, last: int, limit: int, newest_first: bool) -> PageRange:
    """
    The first page of the entries *first* to *last*: the lowest *limit* of them, or
    the highest if *newest_first*.

    *first* and *last* satisfy all bounds of seq and time, and *last* is at most the
    timeline's end: so `next` says exactly whether more entries follow.
    """
    if newest_first:
        lowest = max(first, last - limit + 1)
        return PageRange(lowest, last, lowest if lowest > first else None)
    highest = min(last, first + limit - 1)

    return PageRange(first, highest, highest if highest < last else None)


def page_of(encoded: Sequence[bytes], next_: int | None) -> TimelinePage:
    """
    A page of *encoded* entries, in their order on the page.
    """
    entries: tuple[Any, ...] = tuple(msgspec.Raw(entry) for entry in encoded)

    return TimelinePage(entries, next_)
