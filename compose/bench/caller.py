"""
One MAD that makes the calls, and notes in the books what it is told.

It is the public SDK as everybody has it: `bus.connect` and the methods of a Mad.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from bus import Mad
from bus.errors import (
    Defect,
    EverbusError,
    ReplyTimeout,
    Unavailable,
    VersionConflict,
)
from compose.bench.books import Marks, SessionBook
from compose.bench.judge import MARK, field_of
from compose.bench.plan import Plan
from compose.bench.verdict import Findings
from compose.patience import told

# So many unanswered commands of one MAD may be ahead of the managers.
AHEAD = 5_000
TAIL_ENTRIES = 20


class Caller:
    """
    MAD number *number*.
    """

    def __init__(self, mad: Mad, number: int, plan: Plan, findings: Findings) -> None:
        self.mad = mad
        self._number = number
        self._field = field_of(number)
        self._findings = findings
        self._text = "x" * plan.bytes
        self._expect = plan.expect
        self._durability = plan.durability
        self._timeout_s = plan.timeout_s
        self._ahead = 0
        self._calls: dict[str, Callable[[SessionBook], Awaitable[None]]] = {
            "append": self._append,
            "append_and_wait": self._append_and_wait,
            "get_session": self._get,
            "timeline": self._timeline,
            "update_later": self._update_later,
            "update_session": self._update,
        }

    async def call(self, name: str, book: SessionBook) -> None:
        """
        Make one call on one session.

        Raises:
            EverbusError: how it ended, if not well; the books know what that means.
        """
        await self._calls[name](book)

    async def catch_up(self, book: SessionBook) -> None:
        """
        After AHEAD unanswered commands, wait until the managers have come so far.
        """
        self._ahead += 1
        if self._ahead >= AHEAD:
            self._ahead = 0
            with suppress(Unavailable):
                await self.mad.get_session(book.id, timeout=self._timeout_s)

    async def settle(self, book: SessionBook) -> None:
        """
        Return when all that this MAD has published to the session is applied.

        Raises:
            Unavailable: the managers do not answer.
        """
        await told(partial(self.mad.get_session, book.id, timeout=self._timeout_s))

    async def _update(self, book: SessionBook) -> None:
        marks = book.updates_of(self._number)
        n, expected = marks.give(), book.highest if self._expect else None
        try:
            after = await self.mad.update_session(
                book.id,
                self._patch(n),
                expected_version=expected,
                durability=self._durability,
                timeout=self._timeout_s,
            )
        except EverbusError as error:
            _not_done(marks, n, error)
            if isinstance(error, VersionConflict):
                self._conflict(book, n, expected, error.current_version)
            raise
        marks.keep(n)
        if not book.tell(after.version):
            twice = f"two updates were told that they made version {after.version}"
            self._findings.note("lost", book.id, twice)
        found = after.context_summary.get(self._field)
        if found != n:
            detail = f"update {n} of MAD {self._number} was told of {found!a:.20}"
            self._findings.note("out_of_order", book.id, detail)

    async def _update_later(self, book: SessionBook) -> None:
        marks = book.updates_of(self._number)
        await self._published(
            book, marks, partial(self.mad.update_later, book.id), self._patch
        )

    async def _append(self, book: SessionBook) -> None:
        marks = book.appends_of(self._number)
        await self._published(
            book, marks, partial(self.mad.append, book.id), self._entry
        )

    async def _append_and_wait(self, book: SessionBook) -> None:
        marks = book.appends_of(self._number)
        n = marks.give()
        try:
            seq = await self.mad.append_and_wait(
                book.id,
                self._entry(n),
                durability=self._durability,
                timeout=self._timeout_s,
            )
        except EverbusError as error:
            _not_done(marks, n, error)
            raise
        marks.keep(n)
        book.highest_seq = max(book.highest_seq, seq)

    async def _get(self, book: SessionBook) -> None:
        version, seq = book.highest, book.highest_seq
        found = await self.mad.get_session(book.id, timeout=self._timeout_s)
        if found.version < version or found.last_seq < seq:
            detail = (
                f"version {found.version}, seq {found.last_seq} were read after "
                f"version {version}, seq {seq} had been told"
            )
            self._findings.note("stale", book.id, detail)

    async def _timeline(self, book: SessionBook) -> None:
        seq = book.highest_seq
        page = await self.mad.timeline(
            book.id, after=None, limit=TAIL_ENTRIES, timeout=self._timeout_s
        )
        seqs = [entry.seq for entry in page.entries]
        last = seqs[-1] if seqs else 0
        if last < seq:
            detail = f"seq {last} was the last to be read after {seq} had been told"
            self._findings.note("stale", book.id, detail)
        if seqs != list(range(last - len(seqs) + 1, last + 1)):
            self._findings.note("strange", book.id, f"a page has the seqs {seqs}")

    async def _published(
        self,
        book: SessionBook,
        marks: Marks,
        publish: Callable[..., str],
        body: Callable[[int], dict[str, Any]],
    ) -> None:
        """
        Publish, and return when it is on the bus: no other answer is wanted.
        """
        n = marks.give()
        try:
            publish(body(n), durability=self._durability)
        except EverbusError as error:
            _not_done(marks, n, error)
            raise
        book.unsettled.add(self._number)
        await self.mad.flush(timeout=self._timeout_s)
        marks.keep(n)

    def _conflict(
        self, book: SessionBook, n: int, expected: int | None, current: int
    ) -> None:
        book.highest = max(book.highest, current)
        if expected is not None and current > expected:
            book.expect(expected)
            return
        detail = (
            f"update {n} of MAD {self._number} expected version {expected}, which was "
            f"current"
        )
        self._findings.note("false_conflicts", book.id, detail)

    def _patch(self, n: int) -> dict[str, Any]:
        return {"context_summary": {self._field: n, "text": self._text}}

    def _entry(self, n: int) -> dict[str, Any]:
        return {MARK: [self._number, n], "text": self._text}


def _not_done(marks: Marks, n: int, error: EverbusError) -> None:
    """
    Note what an error says of an effect: none, or nobody knows.
    """
    unknown = isinstance(error, ReplyTimeout | Defect) or error.details.get("applied")
    if not unknown:
        marks.refuse(n)
