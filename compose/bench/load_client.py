"""
One client of the load: a MAD that makes the calls and records their answers.

It uses the public SDK: `connect` and the methods of a Mad.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from everbus.bus import Mad
from everbus.bus.errors import (
    Defect,
    EverbusError,
    ReplyTimeout,
    Unavailable,
    VersionConflict,
)
from everbus.compose.bench.marks import MARK, field_of
from everbus.compose.bench.plan import BenchPlan
from everbus.compose.retried_calls import read_retrying
from everbus.compose.verify.expectation import ClientMarks, SessionExpectation
from everbus.compose.verify.violations import Kind, Violation, Violations

# So many unanswered commands of one MAD may be ahead of the managers.
AHEAD = 5_000
TAIL_ENTRIES = 20


class LoadClient:
    """
    Client number *number*.
    """

    def __init__(
        self, mad: Mad, number: int, plan: BenchPlan, violations: Violations
    ) -> None:
        self.mad = mad
        self._number = number
        self._field = field_of(number)
        self._violations = violations
        self._text = "x" * plan.bytes
        self._expect = plan.expect
        self._durability = plan.durability
        self._timeout_s = plan.timeout_s
        self._ahead = 0
        self._calls: dict[str, Callable[[SessionExpectation], Awaitable[None]]] = {
            "append": self._append,
            "append_and_wait": self._append_and_wait,
            "get_session": self._get,
            "timeline": self._timeline,
            "update_later": self._update_later,
            "update_session": self._update,
        }

    async def call(self, name: str, expectation: SessionExpectation) -> None:
        """
        Make one call on one session.

        Raises:
            EverbusError: the call failed; the expectation already knows its meaning.
        """
        await self._calls[name](expectation)

    async def catch_up(self, expectation: SessionExpectation) -> None:
        """
        After AHEAD unanswered commands, wait until the managers have applied them.
        """
        self._ahead += 1
        if self._ahead >= AHEAD:
            self._ahead = 0
            with suppress(Unavailable):
                await self.mad.get_session(expectation.id, timeout=self._timeout_s)

    async def settle(self, expectation: SessionExpectation) -> None:
        """
        Return when the managers have applied all that this client has published.

        Raises:
            Unavailable: the managers do not answer.
        """
        await read_retrying(
            partial(self.mad.get_session, expectation.id, timeout=self._timeout_s)
        )

    async def _update(self, expectation: SessionExpectation) -> None:
        marks = expectation.updates_of(self._number)
        n, expected = marks.give(), expectation.highest if self._expect else None
        try:
            after = await self.mad.update_session(
                expectation.id,
                self._patch(n),
                expected_version=expected,
                durability=self._durability,
                timeout=self._timeout_s,
            )
        except EverbusError as error:
            _not_done(marks, n, error)
            if isinstance(error, VersionConflict):
                self._conflict(expectation, n, expected, error.current_version)
            raise
        marks.acknowledge(n)
        if not expectation.answer(after.version):
            twice = f"two updates were answered version {after.version}"
            self._note("forked", expectation, twice, after.version)
        found = after.context_summary.get(self._field)
        if found != n:
            detail = f"update {n} of client {self._number} got {found!a:.20} in reply"
            self._note("out_of_order", expectation, detail, after.version)

    async def _update_later(self, expectation: SessionExpectation) -> None:
        marks = expectation.updates_of(self._number)
        await self._published(
            expectation,
            marks,
            partial(self.mad.update_later, expectation.id),
            self._patch,
        )

    async def _append(self, expectation: SessionExpectation) -> None:
        marks = expectation.appends_of(self._number)
        await self._published(
            expectation, marks, partial(self.mad.append, expectation.id), self._entry
        )

    async def _append_and_wait(self, expectation: SessionExpectation) -> None:
        marks = expectation.appends_of(self._number)
        n = marks.give()
        try:
            seq = await self.mad.append_and_wait(
                expectation.id,
                self._entry(n),
                durability=self._durability,
                timeout=self._timeout_s,
            )
        except EverbusError as error:
            _not_done(marks, n, error)
            raise
        marks.acknowledge(n)
        expectation.highest_seq = max(expectation.highest_seq, seq)

    async def _get(self, expectation: SessionExpectation) -> None:
        version, seq = expectation.highest, expectation.highest_seq
        found = await self.mad.get_session(expectation.id, timeout=self._timeout_s)
        if found.version < version or found.last_seq < seq:
            detail = (
                f"version {found.version}, seq {found.last_seq} were read after "
                f"version {version}, seq {seq} were answered"
            )
            self._note("stale", expectation, detail, found.version)

    async def _timeline(self, expectation: SessionExpectation) -> None:
        seq = expectation.highest_seq
        page = await self.mad.timeline(
            expectation.id, after=None, limit=TAIL_ENTRIES, timeout=self._timeout_s
        )
        seqs = [entry.seq for entry in page.entries]
        last = seqs[-1] if seqs else 0
        if last < seq:
            detail = f"the last seq of a page is {last}, after {seq} was answered"
            self._note("stale", expectation, detail, last)
        if seqs != list(range(last - len(seqs) + 1, last + 1)):
            self._note("gap", expectation, f"a page has the seqs {seqs}", last)

    async def _published(
        self,
        expectation: SessionExpectation,
        marks: ClientMarks,
        publish: Callable[..., str],
        body: Callable[[int], dict[str, Any]],
    ) -> None:
        """
        Publish, and return when the command is on the bus; no reply is requested.
        """
        n = marks.give()
        try:
            publish(body(n), durability=self._durability)
        except EverbusError as error:
            _not_done(marks, n, error)
            raise
        expectation.unsettled.add(self._number)
        await self.mad.flush(timeout=self._timeout_s)
        marks.acknowledge(n)

    def _conflict(
        self,
        expectation: SessionExpectation,
        n: int,
        expected: int | None,
        current: int,
    ) -> None:
        expectation.highest = max(expectation.highest, current)
        if expected is not None and current > expected:
            expectation.refuse_expecting(expected)
            return
        detail = f"update {n} of client {self._number} expected the current version"
        self._note("false_refusal", expectation, detail, current)

    def _note(
        self, kind: Kind, expectation: SessionExpectation, detail: str, number: int
    ) -> None:
        self._violations.note(Violation(kind, expectation.id, detail, number))

    def _patch(self, n: int) -> dict[str, Any]:
        return {"context_summary": {self._field: n, "text": self._text}}

    def _entry(self, n: int) -> dict[str, Any]:
        return {MARK: [self._number, n], "text": self._text}


def _not_done(marks: ClientMarks, n: int, error: EverbusError) -> None:
    """
    Record the effect that an error stands for: none, or unknown.
    """
    unknown = isinstance(error, ReplyTimeout | Defect) or error.details.get("applied")
    if not unknown:
        marks.refuse(n)
