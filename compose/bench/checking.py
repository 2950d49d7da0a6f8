"""
The check after the load: fetch each session, and compare it with its expectation.

On a bus of the user's own the SDK is the reader: each session's state, and its
timeline page by page, within a time limit; a timeline that cannot be read is checked
by its length. On a stack of the bench's own, whose outboxes no archiver trims, the
outboxes are the reader: every commit, in its order.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import msgspec

from everbus.bus import Mad
from everbus.bus.errors import Overloaded, Unavailable
from everbus.bus.messages import TimelineEntry, TimelinePage
from everbus.bus.wire import Wire
from everbus.compose.bench.marks import mark_in_entry, mark_in_patch, marks_in_state
from everbus.compose.progress import Advance
from everbus.compose.retried_calls import read_retrying
from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.verify.readers import outbox_records, timeline_entries
from everbus.compose.verify.session_checks import (
    LogCheck,
    ObservedSession,
    check_length,
    check_log_end,
    check_state,
)
from everbus.compose.verify.violations import Violations
from everbus.compose.worker_pool import each
from everbus.gateway.store.hot_copy import Record

STATES_AT_ONCE = 64
TIMELINES_AT_ONCE = 8
PAGE_ENTRIES = 1_000
# The time limit for reading all timelines, and for the outage of one.
READ_BACK_S = 120.0
PAGE_PATIENCE_S = 10.0
RETRY_S = 0.2


class CheckMethod(NamedTuple):
    """
    The reader of a check, and its reach.

    Attributes:
        by: `sdk`, or `outboxes`.
        whole: sessions whose timelines were read; measured: checked by their length.
        why_not: why timelines were not read.
    """

    by: str
    whole: int
    measured: int = 0
    why_not: str = ""


class _Unreadable(Exception):
    """
    A timeline cannot be read to its end.
    """


class SdkCheck:
    """
    Checks sessions as any MAD reads them.
    """

    def __init__(self, mads: Sequence[Mad], violations: Violations) -> None:
        self._mads = cycle(mads)
        self._violations = violations
        self._until = 0.0
        self._patience_s = PAGE_PATIENCE_S
        self._whole = self._measured = 0
        self._why_not = ""

    async def run(
        self, expectations: Sequence[SessionExpectation], advance: Advance
    ) -> CheckMethod:
        """
        Check every session.

        Raises:
            Unavailable: the managers do not answer.
        """
        self._until = time.monotonic() + READ_BACK_S

        async def one(expectation: SessionExpectation) -> None:
            observed = await observed_session(next(self._mads), expectation.id)
            check_state(expectation, observed, self._violations, log_checked=False)
            try:
                await self._read(expectation)
                self._whole += 1
            except _Unreadable:
                check_length(expectation, observed, self._violations)
                self._measured += 1
            advance(1)

        await each(one, expectations, TIMELINES_AT_ONCE)

        return CheckMethod("sdk", self._whole, self._measured, self._why_not)

    async def _read(self, expectation: SessionExpectation) -> None:
        """
        Check a whole timeline; a timeline that ends too early leaves no violations.
        """
        found = Violations()
        check = LogCheck(expectation, found, "append")
        page = partial(self._page, expectation.id)
        async for entry in timeline_entries(page):
            check.see(entry.seq, mark_in_entry(entry.entry))
        check.end()
        self._violations.add(found)

    async def _page(self, session: str, after: int) -> TimelinePage:
        until = min(self._until, time.monotonic() + self._patience_s)
        while time.monotonic() < self._until:
            try:
                return await next(self._mads).timeline(
                    session, after=after, limit=PAGE_ENTRIES
                )
            except (Unavailable, Overloaded) as error:
                self._why_not = error.message
                if time.monotonic() >= until:
                    # After one unreadable timeline the others are tried once each.
                    self._patience_s = 0.0
                    raise _Unreadable from error
            await asyncio.sleep(RETRY_S)
        self._why_not = self._why_not or f"it took longer than {READ_BACK_S:g} s"
        raise _Unreadable


class OutboxCheck:
    """
    Checks every commit in the outboxes, which no archiver has trimmed.
    """

    def __init__(
        self, wire: Wire, partitions: int, mads: Sequence[Mad], violations: Violations
    ) -> None:
        self._wire = wire
        self._partitions = partitions
        self._mads = cycle(mads)
        self._violations = violations

    async def run(
        self, expectations: Sequence[SessionExpectation], advance: Advance
    ) -> CheckMethod:
        """
        Check every session.

        Raises:
            Unavailable: the managers do not answer.
            WireFailed: the bus does not.
        """
        logs = {one.id: _SessionLogs(one, self._violations) for one in expectations}
        async for record in self._records():
            if record.session in logs:
                logs[record.session].see(record)

        async def one(expectation: SessionExpectation) -> None:
            observed = await observed_session(next(self._mads), expectation.id)
            check_state(expectation, observed, self._violations, log_checked=True)
            logs[expectation.id].end(observed)
            advance(1)

        await each(one, expectations, STATES_AT_ONCE)

        return CheckMethod("outboxes", len(expectations))

    async def _records(self) -> AsyncIterator[Record]:
        for partition in range(self._partitions):
            async for record in outbox_records(self._wire, partition):
                yield record


class _SessionLogs:
    """
    The checks of one session's updates and of its timeline.
    """

    def __init__(self, expectation: SessionExpectation, violations: Violations) -> None:
        self._expectation = expectation
        self._violations = violations
        self._timeline = LogCheck(expectation, violations, "append")
        self._changes = LogCheck(expectation, violations, "update")

    def see(self, record: Record) -> None:
        for event in record.events:
            made_before = event.version <= self._expectation.version
            if event.kind == "session.updated" and not made_before:
                patch: Mapping[str, Any] = event.patch or {}
                mark = mark_in_patch(patch.get("context_summary") or {})
                self._changes.see(event.version, mark, event.command_id)
        for packed in record.entries:
            entry = msgspec.msgpack.decode(packed, type=TimelineEntry)
            self._timeline.see(entry.seq, mark_in_entry(entry.entry))

    def end(self, observed: ObservedSession) -> None:
        """
        The commits end here, and the state stands where they end.
        """
        self._timeline.end()
        self._changes.end()
        logs = self._changes, self._timeline
        check_log_end(self._expectation, observed, logs, self._violations)


async def observed_session(mad: Mad, session_id: str) -> ObservedSession:
    """
    The session as it is now.

    Raises:
        Unavailable: the managers do not answer.
    """
    found = await read_retrying(partial(mad.get_session, session_id))
    marks = marks_in_state(found.context_summary)

    return ObservedSession(found.version, found.last_seq, marks)
