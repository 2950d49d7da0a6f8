"""
Timelines at any length: pages over hot tail, warm tier and cold tier.

An entry is looked for in the hot tail that came with the question, then in the warm
tier, then in the archive of the session's first entries. What is nowhere is on its
way through the archiver, and waited for: a page never has a hole.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import msgspec

from bus.errors import Unavailable
from bus.messages import Session, TimelinePage
from gateway.store.catchup import CatchUp
from gateway.store.cold.archive import Manifest
from gateway.store.cold.vault import Vault
from gateway.store.tiers import Held, WarmTier
from handlers.pages import cut, page_of
from handlers.wanted import WarmPage

NO_VAULT = "this manager has no cold tier; set EVERBUS_S3_ENDPOINT"


class _Place(msgspec.Struct, gc=False):
    """
    Where an entry lies in its timeline; the rest of it is not decoded.
    """

    seq: int
    at: datetime


_place = msgspec.msgpack.Decoder(_Place)


class Opened(NamedTuple):
    """
    The archive of a session's entries 1 to *through*, open.
    """

    manifest: Manifest
    through: int


class Tail:
    """
    The newest entries, as the hot tier has them.
    """

    def __init__(self, wanted: WarmPage) -> None:
        self.end = wanted.end
        self.first = wanted.end - len(wanted.tail) + 1
        self._entries = wanted.tail

    def entries(self, first: int, last: int) -> tuple[bytes, ...]:
        """
        Those of the entries *first* to *last* that are in it, ascending.
        """
        begin = max(0, first - self.first)

        return self._entries[begin : max(begin, last - self.first + 1)]

    def first_since(self, at: datetime) -> int:
        """
        The lowest seq in it at *at* or later; the one behind its end if none is.
        """
        for entry in self._entries:
            place = _place.decode(entry)
            if place.at >= at:
                return place.seq
        return self.end + 1

    def tells(self, at: datetime) -> bool:
        """
        Whether no entry ahead of it can be at *at* or later.
        """
        # Time never goes back within a session.
        return self.first <= 1 or self.first_since(at) > self.first


class Timeline:
    """
    The timelines of all sessions, from whichever tier has them.
    """

    def __init__(self, warm: WarmTier, vault: Vault | None) -> None:
        self._warm = warm
        self._vault = vault

    async def page(
        self, session: Session, wanted: WarmPage, catch_up: CatchUp
    ) -> TimelinePage:
        """
        The page that is wanted, whole.

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
        first, last, following = cut(first, last, wanted.limit, wanted.newest_first)
        if first > last:
            return _page(wanted, (), following)
        below = await self._read(session, first, min(last, tail.first - 1), catch_up)
        return _page(wanted, (*below, *tail.entries(first, last)), following)

    async def tail(
        self, session: Session, first: int, catch_up: CatchUp, known: Opened | None
    ) -> list[bytes]:
        """
        The entries from *first* to the session's last, packed; *known* is its
        archive, if the caller has that open.

        Raises: as `page`.
        """
        return await self._read(session, first, session.last_seq, catch_up, known)

    async def held(self, session: Session, first: int, last: int) -> list[bytes] | None:
        """
        The entries *first* to *last*, packed; None if one is in neither tier.

        Raises: as `page`.
        """
        return await self._held(session, first, last, None)

    async def _read(
        self,
        session: Session,
        first: int,
        last: int,
        catch_up: CatchUp,
        known: Opened | None = None,
    ) -> list[bytes]:
        if first > last:
            return []
        found = await catch_up.first(lambda: self._held(session, first, last, known))
        if found is None:
            raise _behind(f"entries {first} to {last}", session)
        return found

    async def _held(
        self, session: Session, first: int, last: int, known: Opened | None
    ) -> list[bytes] | None:
        """
        The entries *first* to *last*; None if one is in neither tier.
        """
        found = _by_seq(
            await self._warm.entries(session.id, session.created_at, first, last)
        )
        missing = [seq for seq in range(first, last + 1) if seq not in found]
        if missing:
            # Looked at after the entries: what a purge had taken away by then is
            # in an archive that the session told of before.
            archive = known or await self._archive(session)
            if archive is None or self._vault is None or missing[-1] > archive.through:
                return None
            found |= _by_seq(
                await self._vault.entries(archive.manifest, missing[0], missing[-1])
            )
        whole = [found[seq] for seq in range(first, last + 1) if seq in found]

        return whole if len(whole) == last - first + 1 else None

    async def _since(
        self, session: Session, tail: Tail, at: datetime, catch_up: CatchUp
    ) -> int:
        """
        The lowest seq at *at* or later; the one behind the end if none is.
        """
        if tail.tells(at):
            return tail.first_since(at)
        found = await catch_up.first(lambda: self._first_since(session, tail, at))
        if found is None:
            raise _behind("entries", session)
        return found

    async def _first_since(
        self, session: Session, tail: Tail, at: datetime
    ) -> int | None:
        """
        As `_since`; None if entries that may be it are in neither tier.
        """
        life = session.created_at
        archive = await self._archive(session, only_needed=True)
        if archive is not None and self._vault is not None:
            found = await self._vault.first_since(archive.manifest, at)
            if found is not None:
                return found
        found = await self._warm.first_since(session.id, life, at)
        if found is None or found >= tail.first:
            found = tail.first_since(at)
        # The entry before it, if it is held, is earlier than *at*, or it had been
        # found itself; then all before that one are earlier, too.
        before = found - 1
        if before <= (archive.through if archive else 0):
            return found
        held = await self._warm.entries(session.id, life, before, before)

        return found if held else None

    async def _archive(
        self, session: Session, *, only_needed: bool = False
    ) -> Opened | None:
        """
        The session's archive; None if it has none.

        *only_needed*: none either, if the warm tier has all of its entries again.
        """
        held = (await self._warm.sessions([session.id])).get(session.id)
        if held is None or held.session.created_at != session.created_at:
            return None
        if not held.through or (only_needed and _is_whole(held)):
            return None
        if self._vault is None:
            raise Unavailable(
                f"entries of {session.id} are in the cold tier, and {NO_VAULT}"
            )
        manifest = await self._vault.open(held.pointer, session.id, session.created_at)

        return Opened(manifest, held.through)


def _is_whole(held: Held) -> bool:
    return held.archival_status == "ACTIVE" and not held.unrestored


def _by_seq(entries: Iterable[bytes]) -> dict[int, bytes]:
    return {_place.decode(entry).seq: entry for entry in entries}


def _page(
    wanted: WarmPage, entries: tuple[bytes, ...], following: int | None
) -> TimelinePage:
    return page_of(entries[::-1] if wanted.newest_first else entries, following)


def _behind(what: str, session: Session) -> Unavailable:
    return Unavailable(
        f"not all {what} of {session.id} are in the warm tier yet: the archiver is "
        "behind. Try again later"
    )
