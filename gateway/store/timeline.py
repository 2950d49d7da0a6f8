"""
Timelines of any length: pages over hot tail, warm tier and cold tier.

A page looks for an entry in the hot tail of the request, then in the warm tier, then in
the session's archive. An entry in none of them is on its way through the archiver, and
the page waits for it: a page never has a hole.
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from everbus.bus.errors import Unavailable
from everbus.bus.messages import Session, TimelinePage
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.manifest import Manifest
from everbus.gateway.store.drain_wait import DrainWait
from everbus.gateway.store.read_bound import PAGE_BYTES, Meter, ReadBound, fitting
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import WarmSession
from everbus.gateway.store.warm_roles import WarmSessions
from everbus.gateway.telemetry import metrics
from everbus.handlers.fetch_requests import WarmPage
from everbus.handlers.timeline_pages import page_of, page_range

# First and last seq.
Span = tuple[int, int]
NO_VAULT = "this manager has no cold tier; set EVERBUS_S3_ENDPOINT"


class _PageStart(msgspec.Struct, gc=False):
    """
    The place of an entry in its timeline; the rest of it is not decoded.
    """

    seq: int
    at: datetime


_place = msgspec.msgpack.Decoder(_PageStart)


class Opened(NamedTuple):
    """
    The archive of a session's entries 1 to *through*, open.
    """

    manifest: Manifest
    through: int


class Tail:
    """
    The newest entries, from the hot tier.
    """

    def __init__(self, wanted: WarmPage) -> None:
        self.end = wanted.end
        self.first = wanted.end - len(wanted.tail) + 1
        self._entries = wanted.tail

    def entries(self, first: int, last: int) -> tuple[bytes, ...]:
        """
        Its entries between *first* and *last*, ascending.
        """
        begin = max(0, first - self.first)

        return self._entries[begin : max(begin, last - self.first + 1)]

    def first_since(self, at: datetime) -> int:
        """
        Its lowest seq at *at* or later; else the seq after its end.
        """
        for entry in self._entries:
            place = _place.decode(entry)
            if place.at >= at:
                return place.seq
        return self.end + 1

    def decides(self, at: datetime) -> bool:
        """
        Whether no entry before it can be at *at* or later.
        """
        # Time never goes back within a session.
        return self.first <= 1 or self.first_since(at) > self.first


class Timeline:
    """
    The timelines of all sessions, from all tiers.
    """

    def __init__(
        self,
        warm: WarmSessions,
        vault: Archives | None,
        page_bytes: int = PAGE_BYTES,
        sealed: SealedCopies | None = None,
    ) -> None:
        self._sealed = sealed
        self._warm = warm
        self._vault = vault
        self._page_bytes = page_bytes

    async def page(
        self, session: Session, wanted: WarmPage, catch_up: DrainWait
    ) -> TimelinePage:
        """
        The wanted page, complete up to its end in bytes.

        Raises:
            Unavailable: a tier is away, or the archiver is too far behind.
            Corrupted: a part of the archive is not what was put there.
        """
        tail = Tail(wanted)
        first, last = wanted.first, wanted.last
        if wanted.since is not None:
            since = await self._since(session, tail, wanted.since, catch_up)
            first = max(first, since)
        if wanted.until is not None:
            until = await self._since(session, tail, wanted.until, catch_up)
            last = min(last, until - 1)
        first, last, following = page_range(
            first, last, wanted.limit, wanted.newest_first
        )
        if first > last:
            return page_of((), following)
        below_tail = (first, min(last, tail.first - 1))
        bound = ReadBound(self._page_bytes, wanted.newest_first)
        below = await self._read(session, below_tail, catch_up, bound=bound)
        hot = tail.entries(first, last)
        if wanted.newest_first:
            ordered = [*hot[::-1], *below[::-1]]
        else:
            # Without the tail if the bytes end the page below it: no page has a hole.
            ordered = below if _is_cut(below, below_tail) else [*below, *hot]
        entries = fitting(ordered, len, self._page_bytes)
        if len(entries) < last - first + 1:
            metrics.BOUND_REACHED.labels("page_max_bytes").inc()
            following = first + len(entries) - 1
            if wanted.newest_first:
                following = last - len(entries) + 1

        return page_of(entries, following)

    async def tail(
        self, session: Session, first: int, catch_up: DrainWait, known: Opened | None
    ) -> list[bytes]:
        """
        The entries from *first* to the session's last, packed; *known* is its
        archive, if the caller has that open.

        Raises: as `page`.
        """
        return await self._read(session, (first, session.last_seq), catch_up, known)

    async def stored(
        self, session: Session, first: int, last: int, bound: ReadBound | None = None
    ) -> list[bytes] | None:
        """
        The entries *first* to *last*, packed; None if one is in neither tier.

        *bound*: it ends behind the entry that reaches so many bytes.

        Raises: as `page`.
        """
        return await self._stored(session, (first, last), None, bound)

    async def _read(
        self,
        session: Session,
        span: Span,
        catch_up: DrainWait,
        known: Opened | None = None,
        bound: ReadBound | None = None,
    ) -> list[bytes]:
        if span[0] > span[1]:
            return []
        found = await catch_up.first(lambda: self._stored(session, span, known, bound))
        if found is None:
            raise _behind(f"entries {span[0]} to {span[1]}", session)
        return found

    async def _stored(
        self,
        session: Session,
        span: Span,
        known: Opened | None,
        bound: ReadBound | None,
    ) -> list[bytes] | None:
        """
        The entries of *span*, ascending; None if one is in neither tier.
        """
        found = _by_seq(
            await self._warm.entries(session.id, session.created_at, *span, bound)
        )
        first, last = _reach(found, span, bound)
        missing = [seq for seq in range(first, last + 1) if seq not in found]
        if missing:
            # Looked at after the entries: what a purge had taken away by then is
            # in an archive that the session told of before.
            archive = known or await self._archive(session)
            if archive is None or self._vault is None or missing[-1] > archive.through:
                return None
            found |= _by_seq(
                await self._vault.entries(
                    archive.manifest, missing[0], missing[-1], bound
                )
            )
        whole = _without_hole(found, (first, last), bound)
        if whole is None or self._sealed is None:
            return whole
        return await self._sealed.open_entries(session, whole)

    async def _since(
        self, session: Session, tail: Tail, at: datetime, catch_up: DrainWait
    ) -> int:
        """
        The lowest seq at *at* or later; else the seq after the end.
        """
        if tail.decides(at):
            return tail.first_since(at)
        found = await catch_up.first(lambda: self._first_since(session, tail, at))
        if found is None:
            raise _behind("entries", session)
        return found

    async def _first_since(
        self, session: Session, tail: Tail, at: datetime
    ) -> int | None:
        """
        As `_since`; None if a candidate entry is in neither tier.
        """
        generation = session.created_at
        archive = await self._archive(session, only_needed=True)
        if archive is not None and self._vault is not None:
            found = await self._vault.first_since(archive.manifest, at)
            if found is not None:
                return found
        found = await self._warm.first_since(session.id, generation, at)
        if found is None or found >= tail.first:
            found = tail.first_since(at)
        # The entry before it, if it is held, is earlier than *at*, or it had been
        # found itself; then all before that one are earlier, too.
        before = found - 1
        if before <= (archive.through if archive else 0):
            return found
        warm_session = await self._warm.entries(session.id, generation, before, before)

        return found if warm_session else None

    async def _archive(
        self, session: Session, *, only_needed: bool = False
    ) -> Opened | None:
        """
        The session's archive; None if it has none.

        *only_needed*: none either, if the warm tier has all of its entries again.
        """
        warm_session = (await self._warm.sessions([session.id])).get(session.id)
        if (
            warm_session is None
            or warm_session.session.created_at != session.created_at
        ):
            return None
        if not warm_session.through or (only_needed and _is_whole(warm_session)):
            return None
        if self._vault is None:
            raise Unavailable(
                f"entries of {session.id} are in the cold tier, and {NO_VAULT}"
            )
        manifest = await self._vault.open(
            warm_session.pointer, session.id, session.created_at
        )

        return Opened(manifest, warm_session.through)


def _is_whole(warm_session: WarmSession) -> bool:
    return warm_session.archival_status == "ACTIVE" and not warm_session.unrestored


def _by_seq(entries: Iterable[bytes]) -> dict[int, bytes]:
    return {_place.decode(entry).seq: entry for entry in entries}


def _reach(found: dict[int, bytes], span: Span, bound: ReadBound | None) -> Span:
    """
    The part of *span* that a read has looked at: the bound may have ended it.
    """
    if bound is None or sum(map(len, found.values())) < bound.most_bytes:
        return span
    return (min(found), span[1]) if bound.newest_first else (span[0], max(found))


def _without_hole(
    found: dict[int, bytes], span: Span, bound: ReadBound | None
) -> list[bytes] | None:
    """
    The entries of *span* up to the bound, ascending; None if one is missing.
    """
    step = -1 if bound is not None and bound.newest_first else 1
    meter = Meter(sys.maxsize if bound is None else bound.most_bytes)
    whole: list[bytes] = []
    for seq in range(span[0], span[1] + 1)[::step]:
        if seq not in found:
            return None
        whole.append(found[seq])
        if not meter.add(len(whole[-1])):
            break
    return whole[::step]


def _is_cut(entries: Sequence[bytes], span: Span) -> bool:
    return len(entries) < span[1] - span[0] + 1


def _behind(what: str, session: Session) -> Unavailable:
    return Unavailable(
        f"not all {what} of {session.id} are in the warm tier yet: the archiver is "
        "behind. Try again later"
    )
