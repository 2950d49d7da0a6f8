"""
Who tells what is there after the load, and has it judged.

On anybody's bus it is the SDK: each session's state, and its timeline page by page,
for as long as that may take; a timeline that cannot be read is judged by its length.
On a stack of our own, where no archiver takes anything away, it is the outboxes: every
commit, in its order.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import msgspec

from bus import Mad
from bus.errors import Overloaded, Unavailable
from bus.messages import TimelineEntry, TimelinePage
from bus.wire import Wire
from compose.bench.books import SessionBook
from compose.bench.crew import each
from compose.bench.judge import (
    ChangesJudge,
    Present,
    TimelineJudge,
    judge_length,
    judge_state,
)
from compose.bench.verdict import Findings
from compose.patience import told
from compose.progress import Advance
from gateway.store import names
from gateway.store.outbox import VALUE_FIELD, Record, unpack_records

STATES_AT_ONCE = 64
TIMELINES_AT_ONCE = 8
PAGE_ENTRIES = 1_000
PAGE_RECORDS = 500
# How long timelines are read back, all together, and how long one may be away.
READ_BACK_S = 120.0
PAGE_PATIENCE_S = 10.0
RETRY_S = 0.2


class Seen(NamedTuple):
    """
    How the judgement was come by.

    Attributes:
        by: `sdk`, or `outboxes`.
        whole: sessions whose timelines were read; measured: judged by their length.
        why_not: why timelines were not read.
    """

    by: str
    whole: int
    measured: int = 0
    why_not: str = ""


class SdkWitness:
    """
    Reads what is there as any MAD does.
    """

    def __init__(self, mads: Sequence[Mad], findings: Findings) -> None:
        self._mads = cycle(mads)
        self._findings = findings
        self._until = time.monotonic() + READ_BACK_S
        self._patience_s = PAGE_PATIENCE_S
        self._whole = self._measured = 0
        self._why_not = ""

    async def judge(self, books: Sequence[SessionBook], advance: Advance) -> Seen:
        """
        Have every session judged.

        Raises:
            Unavailable: the managers do not answer.
        """
        self._until = time.monotonic() + READ_BACK_S

        async def one(book: SessionBook) -> None:
            present = await present_of(next(self._mads), book)
            judge_state(book, present, self._findings, changes_known=False)
            if await self._read(book):
                self._whole += 1
            else:
                judge_length(book, present, self._findings)
                self._measured += 1
            advance(1)

        await each(one, books, TIMELINES_AT_ONCE)

        return Seen("sdk", self._whole, self._measured, self._why_not)

    async def _read(self, book: SessionBook) -> bool:
        """
        Judge the session's timeline; False if it cannot be read to its end.
        """
        found = Findings()
        judge, after = TimelineJudge(book, found), 0
        while True:
            page = await self._page(book.id, after)
            if page is None:
                return False
            for entry in page.entries:
                judge.see(entry.seq, entry.entry)
            if page.next is None:
                break
            after = page.next
        judge.end()
        self._findings.add(found)

        return True

    async def _page(self, session: str, after: int) -> TimelinePage | None:
        until = min(self._until, time.monotonic() + self._patience_s)
        while time.monotonic() < self._until:
            try:
                return await next(self._mads).timeline(
                    session, after=after, limit=PAGE_ENTRIES
                )
            except (Unavailable, Overloaded) as error:
                self._why_not = error.message
                if time.monotonic() >= until:
                    # Where one cannot be read, the others are tried but once.
                    self._patience_s = 0.0
                    return None
            await asyncio.sleep(RETRY_S)
        self._why_not = self._why_not or f"it took longer than {READ_BACK_S:g} s"

        return None


class OutboxWitness:
    """
    Reads every commit from the outboxes, which nobody has trimmed.
    """

    def __init__(
        self, wire: Wire, partitions: int, mads: Sequence[Mad], findings: Findings
    ) -> None:
        self._wire = wire
        self._partitions = partitions
        self._mads = cycle(mads)
        self._findings = findings

    async def judge(self, books: Sequence[SessionBook], advance: Advance) -> Seen:
        """
        Have every session judged.

        Raises:
            Unavailable: the managers do not answer.
            WireFailed: the bus does not.
        """
        judges = {book.id: _Judges(book, self._findings) for book in books}
        for partition in range(self._partitions):
            await self._read(names.outbox(partition), judges)
        for both in judges.values():
            both.end()

        async def one(book: SessionBook) -> None:
            present = await present_of(next(self._mads), book)
            judge_state(book, present, self._findings, changes_known=True)
            judges[book.id].compare(present)
            advance(1)

        await each(one, books, STATES_AT_ONCE)

        return Seen("outboxes", len(books))

    async def _read(self, outbox: str, judges: Mapping[str, "_Judges"]) -> None:
        first = "-"
        while True:
            found = await self._wire.call(
                "XRANGE", outbox, first, "+", "COUNT", PAGE_RECORDS
            )
            for _, fields in found:
                value = dict(zip(fields[::2], fields[1::2], strict=True))
                for record in unpack_records(value.get(VALUE_FIELD, b"")):
                    if record.session in judges:
                        judges[record.session].see(record)
            if len(found) < PAGE_RECORDS:
                return
            first = f"({found[-1][0].decode()}"


class _Judges:
    """
    The two judges of one session: of its timeline and of its changes.
    """

    def __init__(self, book: SessionBook, findings: Findings) -> None:
        self._book = book
        self._findings = findings
        self._timeline = TimelineJudge(book, findings)
        self._changes = ChangesJudge(book, findings)

    def see(self, record: Record) -> None:
        for event in record.events:
            if event.kind == "session.updated" and event.version > self._book.version:
                patch: Any = event.patch or {}
                self._changes.see(event.version, patch.get("context_summary") or {})
        for packed in record.entries:
            entry = msgspec.msgpack.decode(packed, type=TimelineEntry)
            self._timeline.see(entry.seq, entry.entry)

    def end(self) -> None:
        self._timeline.end()
        self._changes.end()

    def compare(self, present: Present) -> None:
        """
        The state has to be where the commits led to.
        """
        led_to = self._changes.version, self._timeline.seq
        if led_to != (present.version, present.last_seq):
            detail = (
                f"commits led to version {led_to[0]}, seq {led_to[1]}; it is at "
                f"{present.version}, {present.last_seq}"
            )
            self._findings.note("strange", self._book.id, detail)


async def present_of(mad: Mad, book: SessionBook) -> Present:
    """
    The session as it is now.

    Raises:
        Unavailable: the managers do not answer.
    """
    found = await told(partial(mad.get_session, book.id))

    return Present(found.version, found.last_seq, found.context_summary)
