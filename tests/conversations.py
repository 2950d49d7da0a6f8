"""
Conversations that move through the tiers, and the check of each.

From any tier, a session is compared with the writes that made it.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from everbus.bus import Mad, TimelineEntry
from everbus.bus.errors import Defect
from everbus.bus.messages import TimelinePage
from everbus.compose.retried_calls import read_retrying, write_once
from everbus.compose.verify.contents import (
    ExpectedEntry,
    check_contents,
    check_equal,
    digest_of,
)
from everbus.compose.verify.readers import timeline_entries
from everbus.compose.verify.violations import Violations

PAGE = 100
# A reply that comes late, since servers die, is none that was lost.
READ_S = 60.0
# How often a read may be given up over the deaths of its replicas.
GIVEN_UP = 3
T = TypeVar("T")


class Conversation:
    """
    One session, and its expected content.

    Attributes:
        entries: the appended entries, in order.
        version: the expected version of the session.
    """

    def __init__(self, mad: Mad, session_id: str) -> None:
        self.id = session_id
        self.entries: list[dict[str, Any]] = []
        self.version = 1
        self.state = "active"
        self.context: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.mad = mad
        self._digest = ""

    @classmethod
    async def begin(cls, mad: Mad) -> "Conversation":
        session = await mad.create_session("ada")

        return cls(mad, session.id)

    async def say(self, count: int) -> None:
        """
        Append *count* entries and wait until the last one is committed.
        """
        for _ in range(count - 1):
            self.mad.append(self.id, self._next())
        # Its commands keep their order: with the last, all are committed.
        entry = self._next()
        await write_once(self.mad, partial(self.mad.append_and_wait, self.id, entry))
        if self.state == "dormant":
            self.state = "active"
            self.version += 1
        self._digest = ""

    async def change(self) -> None:
        """
        Change state and full context, once.
        """
        n = self.version + 1
        summary, context = {"mark": n, f"k{n}": "ä€😀"}, {f"v{n}": [n, None, 1.5]}
        patch = {"context_summary": summary, "full_context": context}
        await write_once(self.mad, partial(self.mad.update_session, self.id, patch))
        self.summary |= summary
        self.context |= context
        self.state = "active"
        self.version += 1
        self._digest = ""

    async def suspend(self, **options: Any) -> None:
        """
        Suspend it; readings before count no longer.
        """
        await write_once(
            self.mad, partial(self.mad.suspend_session, self.id, **options)
        )
        self.state = "dormant"
        self.version += 1
        self._digest = ""

    async def check(self) -> None:
        """
        Read the whole session, and compare it with the writes and with every earlier
        reading since the last change.
        """
        get = partial(self.mad.get_session, self.id, full=True, timeout=READ_S)
        session = await _retried(get)
        entries = await self.timeline()
        violations = Violations()
        sent = [ExpectedEntry(self.mad.name, entry) for entry in self.entries]
        check_contents(self.id, sent, entries, violations)
        found = msgspec.structs.asdict(session)
        wanted = self._state() | {"recent_timeline": tuple(entries[-20:])}
        check_equal(self.id, wanted, {name: found[name] for name in wanted}, violations)
        digest = digest_of(session, entries)
        earlier = {"digest": self._digest or digest}
        check_equal(self.id, earlier, {"digest": digest}, violations)

        assert violations.clean, violations.first
        self._digest = digest

    async def timeline(self, limit: int = PAGE) -> list[TimelineEntry]:
        """
        The whole timeline, read page by page.
        """

        async def page(after: int) -> TimelinePage:
            read = partial(
                self.mad.timeline, self.id, after=after, limit=limit, timeout=READ_S
            )
            return await _retried(read)

        return [entry async for entry in timeline_entries(page)]

    def _state(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "last_seq": len(self.entries),
            "state": self.state,
            "context_summary": self.summary,
            "full_context": self.context,
        }

    def _next(self) -> dict[str, Any]:
        n = len(self.entries) + 1
        entry = {"n": n, "text": f"ünï {n} " * (n % 7), "deep": [{"a": None}, 2**53]}
        self.entries.append(entry)

        return entry


async def _retried(read: Callable[[], Awaitable[T]]) -> T:
    """
    The result of *read*, through outages, and through its own quarantine.

    A campaign kills a replica at every return of a session. A read at which five
    replicas died becomes a dead letter, as it should; this one is known to be
    harmless, so it is sent again.
    """
    for _ in range(GIVEN_UP):
        with suppress(Defect):
            return await read_retrying(read)
    return await read_retrying(read)
