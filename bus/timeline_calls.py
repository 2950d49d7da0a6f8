"""
The calls for timelines: append entries, read pages.
"""

from datetime import datetime
from typing import Any

from everbus.bus.arguments import (
    check_flag,
    check_integer,
    check_limit,
    check_optional_integers,
    check_optional_time,
)
from everbus.bus.mad_calls import DEFAULT_TIMEOUT_S, MadCalls, without_none
from everbus.bus.messages import Durability, TimelinePage, check_json, unpack


class TimelineCalls(MadCalls):
    """
    Append to timelines and read them.
    """

    def append(
        self,
        session_id: str,
        entry: Any,
        *,
        expected_last_seq: int | None = None,
        durability: Durability = "hot",
    ) -> str:
        """
        Append *entry* to the timeline without waiting; return the command's id.

        Entries of this instance keep their order. An entry that cannot be applied
        later (no such session, no right, another last seq) becomes a dead letter.

        Args:
            entry: any JSON value of at most about 256 KiB.
            expected_last_seq: the entry is refused unless this is the session's last
                seq then; 0: the timeline is empty.
            durability: when the outcome of this id is available to `outcome`.

        Raises:
            Overloaded: 10,000 commands or 32 MiB wait already: await flush(). Or the
                spool, or its disk, is full.
            Invalid: not a JSON value, for example NaN, or no seq.
        """
        return self._requests.publish(
            "timeline.append",
            session_id,
            _appended(entry, expected_last_seq),
            durability=durability,
        )

    async def append_and_wait(
        self,
        session_id: str,
        entry: Any,
        *,
        expected_last_seq: int | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> int:
        """
        Append *entry* to the timeline; return its seq after the commit.

        Args:
            expected_last_seq: the entry is refused unless this is the session's last
                seq; 0: the timeline is empty.

        Raises:
            VersionConflict: it has another last seq; see `.current_last_seq`.
        """
        reply = await self._ask(
            "timeline.append",
            session_id,
            _appended(entry, expected_last_seq),
            timeout,
            command_id=command_id,
            durability=durability,
        )
        return int(unpack(reply.body, dict)["seq"])

    async def flush(
        self, *, settled: bool = False, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """
        Wait until all commands published so far are on the bus.

        Args:
            settled: wait until the managers have applied or refused them as well.

        Raises:
            Unavailable: *timeout* seconds have passed; sending goes on. Or no manager
                answers; the commands stay on the bus.
            EverbusError: an append or `update_later` was refused since the last
                flush: the code of the first one; the detail `refused` lists them.
        """
        await self._requests.flush(timeout, settled=check_flag(settled, "settled"))

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

        A page also ends at about 4 MiB (the manager's EVERBUS_PAGE_MAX_BYTES): read on
        from `next` until it is None.

        Args:
            after: only entries behind this seq; 0 for the beginning. None, without any
                other bound, for the newest *limit* entries.
            before: only entries before this seq.
            since: only entries at this time or later, with time zone.
            until: only entries earlier than this time, with time zone.
            newest_first: descending seq; the page's `next` is then the `before` of
                the next page, else its `after`.
            limit: 1 to 1,000.
        """
        check_optional_integers(after=after, before=before)
        body = without_none(
            after=after,
            before=before,
            since=check_optional_time(since, "since"),
            until=check_optional_time(until, "until"),
            newest_first=check_flag(newest_first, "newest_first"),
            limit=check_limit(limit),
        )
        reply = await self._ask("timeline.read", session_id, body, timeout)
        page: TimelinePage = unpack(reply.body, TimelinePage)

        return page


def _appended(entry: Any, expected_last_seq: int | None) -> dict[str, Any]:
    check_json(entry, "entry")
    if expected_last_seq is None:
        return {"entry": entry}
    seq = check_integer(expected_last_seq, "expected_last_seq")

    return {"entry": entry, "expected_last_seq": seq}
