"""
A load of MADs that wait for their replies, and its check.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from everbus.bus import Mad, Unavailable
from everbus.compose.retried_calls import read_retrying
from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.verify.session_checks import LogCheck
from everbus.compose.verify.violations import Violations
from tests.commit_log import CommitLog
from tests.replicas import POLL_S, until


class ClosedLoad:
    """
    Workers that append and update and wait for the replies, each in a loop.

    Closed, so that an outage is followed by a short replay, not by a long one.

    Attributes:
        sessions: their ids.
        answered: how many updates were acknowledged.
    """

    def __init__(self, mads: list[Mad], sessions: list[str]) -> None:
        self.answered = 0
        self._mads = mads
        self.sessions = sessions
        self._expectations: dict[str, SessionExpectation] = {}
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ClosedLoad"]:
        """
        Load while the block runs; at its end every worker has its last answer.
        """
        for session in self.sessions:
            found = await read_retrying(partial(self._mads[0].get_session, session))
            expectation = SessionExpectation(session, found.version, exact=True)
            self._expectations[session] = expectation
        async with asyncio.TaskGroup() as workers:
            for mad in self._mads:
                for expectation in self._expectations.values():
                    workers.create_task(self._work(mad, expectation))
            try:
                yield self
            finally:
                self.stop()

    def stop(self) -> None:
        """
        Begin nothing more.
        """
        self._stop.set()

    async def more(self, count: int = 20, within_s: float = 20.0) -> None:
        """
        Wait until *count* more updates are acknowledged.
        """
        goal = self.answered + count
        await until(lambda: self.answered >= goal, within_s, f"{count} more updates")

    def check(self, log: CommitLog) -> None:
        """
        Every append once and in order; every acknowledged update once, at the version
        of its answer.
        """
        log.check()
        assert self.answered
        for session in self.sessions:
            entries = log.entries[session]
            self.check_timeline(session, ((e.seq, e.author, e.entry) for e in entries))
            self.check_updates(
                session,
                (
                    (event.version, event.mad, event.patch or {})
                    for event in log.events[session]
                    if event.kind == "session.updated"
                ),
            )

    def check_timeline(
        self, session: str, entries: Iterable[tuple[int, str, Any]]
    ) -> None:
        """
        Check a timeline: seq, author and entry of each.
        """
        violations = Violations()
        check = LogCheck(self._expectations[session], violations, "append")
        for seq, author, entry in entries:
            check.see(seq, (author, entry["n"]))
        check.end()
        assert violations.clean, violations.first

    def check_updates(
        self, session: str, updates: Iterable[tuple[int, str, Mapping[str, Any]]]
    ) -> None:
        """
        Check the updates: version, MAD and patch of each.
        """
        violations = Violations()
        check = LogCheck(self._expectations[session], violations, "update")
        for version, mad, patch in updates:
            check.see(version, (mad, patch["context_summary"][mad]))
        check.end()
        assert violations.clean, violations.first

    async def _work(self, mad: Mad, expectation: SessionExpectation) -> None:
        appends = expectation.appends_of(mad.name)
        updates = expectation.updates_of(mad.name)
        while not self._stop.is_set():
            for _ in range(3):
                n = appends.give()
                mad.append(expectation.id, {"n": n})
                appends.acknowledge(n)
            n = updates.give()
            patch = {"context_summary": {mad.name: n}}
            try:
                after = await mad.update_session(expectation.id, patch, timeout=40)
            except Unavailable:
                pass  # it may have taken effect: it stays doubtful
            else:
                updates.acknowledge(n, after.version)
                assert expectation.answer(after.version), "two updates made a version"
                self.answered += 1
            # A pace, not a wait: leaves the cores to the processes under test.
            await asyncio.sleep(POLL_S)
