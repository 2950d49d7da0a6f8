"""
The calls for timelines: append entries, read pages.
"""

from datetime import datetime
from typing import Any

from bus.calls import DEFAULT_TIMEOUT_S, Calls, given
from bus.codec import unpack
from bus.messages import Durability, TimelinePage, check_json


class TimelineCalls(Calls):
    """
    Append to timelines, and read them.
    """

    def append(
        self, session_id: str, entry: Any, *, durability: Durability = "hot"
    ) -> str:
        """
        Add *entry* to the timeline, fire-and-forget; returns the command's id.

        Returns at once; entries of this instance keep their order. What cannot
        be applied later (no such session, no right) becomes a dead letter.

        Args:
            entry: any JSON value of at most about 256 KiB.
            durability: when the first reply to this id is there, if it is asked for.

        Raises:
            Overloaded: 10,000 commands or 32 MiB wait already, await flush(); or the
                spool, or its disk, is full.
            Invalid: not a JSON value, for example NaN.
        """
        return self._requests.publish(
            "timeline.append", session_id, _entry(entry), durability=durability
        )

    async def append_and_wait(
        self,
        session_id: str,
        entry: Any,
        *,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> int:
        """
        Add *entry* to the timeline; returns its seq once it is committed.
        """
        reply = await self._ask(
            "timeline.append",
            session_id,
            _entry(entry),
            timeout,
            durability=durability,
        )
        return int(unpack(reply.body, dict)["seq"])

    async def flush(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """
        Return when everything published so far is on the bus.

        Raises:
            Unavailable: it is not within *timeout*; it goes on trying.
        """
        await self._requests.flush(timeout)

    async def timeline(
        self,
        session_id: str,
        *,
        after: int | None = 0,
        before: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
        limit: int = 100,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> TimelinePage:
        """
        Entries within all bounds, at most *limit*, oldest or newest first.

        Args:
            after: only those behind this seq; 0 for the beginning. None, without
                any other bound, for the newest *limit* entries.
            before: only those ahead of this seq.
            since: only those at this time or later, with time zone.
            until: only those earlier than this time.
            newest_first: in descending seq; the page's `next` is then the `before`
                of the next one, else its `after`.
            limit: 1 to 1,000.
        """
        body = given(
            after=after,
            before=before,
            since=since,
            until=until,
            newest_first=newest_first,
            limit=limit,
        )
        reply = await self._ask("timeline.read", session_id, body, timeout)
        page: TimelinePage = unpack(reply.body, TimelinePage)

        return page


def _entry(entry: Any) -> dict[str, Any]:
    check_json(entry, "entry")
    return {"entry": entry}
