"""
Conversations that are led through the tiers, and the plain truth about them.

Whatever tier a session comes from, it can be compared with what went in.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from bus import Mad, Session, TimelineEntry
from bus.errors import Defect
from compose.patience import settled, told

PAGE = 100
# A reply that comes late, since servers die, is none that was lost.
READ_S = 60.0
# How often a read may be given up over the deaths of its replicas.
GIVEN_UP = 3
T = TypeVar("T")


class Conversation:
    """
    One session, and the plain truth about it.

    Attributes:
        entries: what was appended, in its order.
        version: what the session's has to be.
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
        await settled(self.mad, partial(self.mad.append_and_wait, self.id, entry))
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
        await settled(self.mad, partial(self.mad.update_session, self.id, patch))
        self.summary |= summary
        self.context |= context
        self.state = "active"
        self.version += 1
        self._digest = ""

    async def suspend(self, **options: Any) -> None:
        """
        Let it rest, and what was read of it before count from now on.
        """
        await settled(self.mad, partial(self.mad.suspend_session, self.id, **options))
        self.state = "dormant"
        self.version += 1
        self._digest = ""

    async def check(self) -> None:
        """
        Read all of it, and compare it with what went in and with every reading
        since the last change.
        """
        get = partial(self.mad.get_session, self.id, full=True, timeout=READ_S)
        session = await _asked(get)
        entries = await self.timeline()

        assert [e.entry for e in entries] == self.entries
        assert [e.seq for e in entries] == list(range(1, len(self.entries) + 1))
        assert {e.author for e in entries} <= {self.mad.name}
        assert (session.version, session.last_seq) == (self.version, len(entries))
        assert session.state == self.state
        assert session.context_summary == self.summary
        assert session.full_context == self.context
        assert tuple(entries[-20:]) == session.recent_timeline
        digest = digest_of(session, entries)
        assert self._digest in ("", digest), "not byte for byte"
        self._digest = digest

    async def timeline(self, limit: int = PAGE) -> list[TimelineEntry]:
        """
        All of it, page by page.
        """
        entries: list[TimelineEntry] = []
        after: int | None = 0
        while after is not None:
            read = partial(
                self.mad.timeline, self.id, after=after, limit=limit, timeout=READ_S
            )
            page = await _asked(read)
            entries += page.entries
            after = page.next
        return entries

    def _next(self) -> dict[str, Any]:
        n = len(self.entries) + 1
        entry = {"n": n, "text": f"ünï {n} " * (n % 7), "deep": [{"a": None}, 2**53]}
        self.entries.append(entry)

        return entry


async def _asked(read: Callable[[], Awaitable[T]]) -> T:
    """
    What *read* tells, through outages, and through being suspected itself.

    A campaign kills a replica at every return; a read that five of them died over is
    given up, as it should be. It is known here to be innocent, so it is made anew.
    """
    for _ in range(GIVEN_UP):
        with suppress(Defect):
            return await told(read)
    return await told(read)


def digest_of(session: Session, entries: list[TimelineEntry]) -> str:
    """
    SHA-256 of everything that there is of a session.
    """
    bare = msgspec.structs.replace(session, recent_timeline=())
    whole = msgspec.msgpack.encode([bare, entries], order="deterministic")

    return hashlib.sha256(whole).hexdigest()
