"""
One conversation, brought up in everbus to what the old store holds.

Idempotent for ever, and safe beside any number of others that do the same: entry n is
appended only while the session's last seq is n - 1. A repetition, a late arrival or a
second writer finds its place taken, and compares what is there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from everbus.bus import Mad
from everbus.bus.errors import (
    AlreadyExists,
    Cancelled,
    EverbusError,
    Expired,
    NotFound,
    Overloaded,
    ReplyTimeout,
    Unavailable,
    VersionConflict,
)
from everbus.bus.messages import Session, pack
from everbus.compose.migration.mapping import SessionPlan
from everbus.compose.migration.reading import (
    BEGIN,
    ConversationReader,
    ReadPlace,
    same_json,
)
from everbus.compose.migration.source import OldConversation
from everbus.compose.retried_calls import GIVE_UP_AFTER_S, RETRY_S, read_retrying
from everbus.handlers.access_list import admits
from everbus.handlers.patches import merge

# Appends of one conversation that are under way at once.
WINDOW_ENTRIES = 64
WINDOW_BYTES = 1024 * 1024
# The position is what counts, so an unknown outcome is looked up, not asked for.
_LOOK_AGAIN = (Cancelled, Expired, Overloaded, ReplyTimeout, Unavailable)
_Numbered = list[tuple[int, Any]]  # seq, JSON value


class Diverged(Exception):
    """
    The session holds something else than the old store: somebody else writes to it.
    """

    def __init__(self, session_id: str, what: str) -> None:
        super().__init__(f"session {session_id}: {what}")
        self.what = what


class Copied(NamedTuple):
    """
    What one pass changed, and how far it read.
    """

    created: bool
    appended: int
    patched: bool
    place: ReadPlace


class Copier:
    """
    Copies conversations through one MAD.
    """

    def __init__(
        self,
        mad: Mad,
        reader: ConversationReader,
        paced: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._mad = mad
        self._reader = reader
        self._paced = paced

    async def copy(
        self, conversation: OldConversation, plan: SessionPlan, start: ReadPlace = BEGIN
    ) -> Copied:
        """
        Append what the session lacks behind *start*, then bring up its state.

        Raises:
            Diverged: it holds another entry, or belongs to another owner.
            EverbusError: a refusal, or the bus is away for GIVE_UP_AFTER_S.
        """
        session, created = await self._session(plan)
        if session.last_seq < start.seq:
            start = BEGIN  # the bus lost what was copied
        last, appended, place = session.last_seq, 0, start
        async for page in self._reader.pages(conversation, start):
            numbered = list(enumerate(page.entries, page.first))
            _check_recent(session, numbered)
            missing = [(seq, entry) for seq, entry in numbered if seq > last]
            await self._append(plan.session_id, missing)
            appended, place = appended + len(missing), page.end
        patched = await self._bring_up_state(session, plan)

        return Copied(created, appended, patched, place)

    async def _session(self, plan: SessionPlan) -> tuple[Session, bool]:
        created = False
        try:
            session = await self._read(plan.session_id)
        except NotFound:
            created = await self._create(plan)
            session = await self._read(plan.session_id)
        if session.owner_id != plan.owner:
            raise Diverged(session.id, "it belongs to another owner")
        # Later, a MAD that is not there was removed by somebody.
        for name in plan.mads if session.last_seq == 0 else ():
            if name != plan.owner and not admits(session.acl, name, is_mad=True):
                add = self._mad.add_participant
                await read_retrying(_call(add, plan.session_id, name))

        return session, created

    async def _create(self, plan: SessionPlan) -> bool:
        with suppress(AlreadyExists):
            await read_retrying(
                lambda: self._mad.create_session(plan.owner, session_id=plan.session_id)
            )
            return True
        return False

    async def _read(self, session_id: str) -> Session:
        full = self._reader.mapping.has_context
        return await read_retrying(lambda: self._mad.get_session(session_id, full=full))

    async def _append(self, session_id: str, missing: _Numbered) -> None:
        for window in _windows(missing):
            if self._paced is not None:
                for _ in window:
                    await self._paced()
            await self._append_window(session_id, window)

    async def _append_window(self, session_id: str, window: _Numbered) -> None:
        """
        Append all of *window*, or find each at its seq.
        """
        until = time.monotonic() + GIVE_UP_AFTER_S
        while window:
            results = await asyncio.gather(
                *(self._append_at(session_id, seq, entry) for seq, entry in window),
                return_exceptions=True,
            )
            errors = [one for one in results if isinstance(one, BaseException)]
            if not errors:
                return
            lasting = [e for e in errors if not isinstance(e, PASSING)]
            window = await self._still_missing(session_id, window)
            if window and (lasting or time.monotonic() > until):
                raise (lasting or errors)[0]
            if window:
                await asyncio.sleep(RETRY_S)

    async def _append_at(self, session_id: str, seq: int, entry: Any) -> int:
        return await self._mad.append_and_wait(
            session_id, entry, expected_last_seq=seq - 1
        )

    async def _still_missing(self, session_id: str, window: _Numbered) -> _Numbered:
        """
        Those of *window* that are not in the timeline.

        Raises:
            Diverged: another entry has the seq of one of them.
        """
        first = window[0][0]
        page = await read_retrying(
            lambda: self._mad.timeline(session_id, after=first - 1, limit=len(window))
        )
        there = {found.seq: found.entry for found in page.entries}
        for seq, entry in window:
            if seq in there and not same_json(there[seq], entry):
                raise Diverged(session_id, f"seq {seq} holds another entry")
        return [(seq, entry) for seq, entry in window if seq not in there]

    async def _bring_up_state(self, session: Session, plan: SessionPlan) -> bool:
        patch = {
            part: value
            for part, value in plan.state.items()
            if not has_state(session, part, value)
        }
        if not patch:
            return False
        await read_retrying(_call(self._mad.update_session, plan.session_id, patch))

        return True


PASSING: tuple[type[EverbusError], ...] = (VersionConflict, *_LOOK_AGAIN)


def has_state(session: Session, part: str, value: Any) -> bool:
    """
    Whether a patch of *part* by *value* would change nothing.
    """
    there = getattr(session, part)
    if part == "tags":
        return bool(list(there) == value)
    return same_json(merge(there or {}, value), there or {})


def _call(
    call: Callable[..., Awaitable[Any]], *arguments: Any
) -> Callable[[], Awaitable[Any]]:
    return lambda: call(*arguments)


def _check_recent(session: Session, numbered: _Numbered) -> None:
    """
    Compare the newest entries of the session, which came with it.

    So a mapping that was changed, or a key that stands twice, is noticed at once.
    """
    recent = {found.seq: found.entry for found in session.recent_timeline}
    for seq, entry in numbered:
        if seq in recent and not same_json(recent[seq], entry):
            raise Diverged(session.id, f"seq {seq} holds another entry")


def _windows(missing: _Numbered) -> Iterator[_Numbered]:
    """
    *missing* in order, in parts of bounded number and bytes.
    """
    window: _Numbered = []
    size = 0
    for seq, entry in missing:
        more = len(pack(entry))
        if window and (len(window) == WINDOW_ENTRIES or size + more > WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append((seq, entry))
        size += more
    if window:
        yield window
