"""
Readers: fetch an observation from the SDK, the outboxes or MongoDB, page by page.

Each takes the call that fetches one page, so that its user decides on patience,
connection and tier.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from everbus.bus.messages import TimelineEntry, TimelinePage
from everbus.bus.wire import Wire
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import VALUE_FIELD, Record, unpack_records
from everbus.gateway.store.sealed_copies import SealedCopies

PAGE_RECORDS = 500
# The most that a warm tier is asked for at once.
PAGE_STORED = 1_000

_entry = msgspec.msgpack.Decoder(TimelineEntry)


async def timeline_entries(
    page: Callable[[int], Awaitable[TimelinePage]],
) -> AsyncIterator[TimelineEntry]:
    """
    All entries of a timeline by the SDK.

    Args:
        page: fetches the page after a seq.
    """
    after: int | None = 0
    while after is not None:
        found = await page(after)
        for entry in found.entries:
            yield entry
        after = found.next


async def outbox_records(
    wire: Wire, partition: int, sealed: SealedCopies | None = None
) -> AsyncIterator[Record]:
    """
    All records that an outbox holds, in the order of their commits; *sealed* opens
    them, None without encryption.

    Raises:
        WireFailed: the bus does not answer.
    """
    first, outbox = "-", key_names.outbox(partition)
    while True:
        found = await wire.call("XRANGE", outbox, first, "+", "COUNT", PAGE_RECORDS)
        for _, fields in found:
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            value = named.get(VALUE_FIELD, b"")
            if sealed is not None:
                value = await sealed.open_records(value)
            for record in unpack_records(value):
                yield record
        if len(found) < PAGE_RECORDS:
            return
        first = f"({found[-1][0].decode()}"


async def stored_entries(
    stored: Callable[[int, int], Awaitable[Sequence[Any]]], last: int
) -> AsyncIterator[TimelineEntry]:
    """
    The timeline entries that MongoDB holds, up to the seq *last*.

    Args:
        stored: fetches the packed entries of a first and a last seq, as
            `WarmTier.entries` of one session does.
    """
    for first in range(1, last + 1, PAGE_STORED):
        through = min(first + PAGE_STORED - 1, last)
        for packed in await stored(first, through):
            yield _entry.decode(packed)
