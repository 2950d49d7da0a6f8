"""
Archiving: sessions that were idle for long move to the cold tier.

The cold tier has the whole archive, read back and verified, before the lane is asked
to let go of the session; and the lane refuses if anything changed meanwhile. So a
crash at any point leaves the session where it was, or whole in the cold tier, and
what two archivers do at once is done once.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec
import structlog

from archiver.commands import Send
from bus.errors import Rejection, Unavailable
from bus.messages import Session
from gateway import metrics
from gateway.store.cold.vault import Archive, Vault
from gateway.store.tiers import Corrupted, Held, WarmTier
from handlers.commands import ArchiveSession

log = structlog.get_logger()

PAGE = 100
# So many failures of a tier in a row end a pass: it is away.
MOST_FAILURES = 3


class Incomplete(Unavailable):
    """
    A timeline entry is missing that no archive has.
    """


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """
    What one pass did.

    Attributes:
        archived: sessions that are in the cold tier now (in a dry run: would be).
        skipped: sessions that are hot, or were used meanwhile.
        failed: sessions that could not be archived; the log tells why.
        entries: timeline entries of the archived ones.
        bytes: what their archives take in the cold tier; 0 in a dry run.
        ended: why the pass ended before it was through; empty if it was not.
    """

    archived: int = 0
    skipped: int = 0
    failed: int = 0
    entries: int = 0
    bytes: int = 0
    ended: str = ""


class Progress:
    """
    Where a pass is, for somebody who watches; does nothing here.
    """

    def began(self, held: Held) -> None:
        """
        A session is taken up.
        """

    def reached(self, seq: int) -> None:
        """
        Its entries up to *seq* are in the cold tier.
        """


class Archiving:
    """
    Moves idle sessions from the warm tier to the cold one.
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Vault,
        send: Send,
        hot_exists: Callable[[str], Awaitable[bool]],
        fail: Callable[[str], None],
    ) -> None:
        self._warm = warm
        self._vault = vault
        self._send = send
        self._hot_exists = hot_exists
        self._fail = fail

    async def run(
        self,
        idle_before: datetime,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """
        Archive what was last active earlier than *idle_before*, longest idle first.

        One session's failure does not end the pass; a tier that is away does.

        Args:
            limit: take up so many sessions at most; None: all.
            dry_run: only tell what there is to do.

        Raises:
            Unavailable: the warm tier cannot say which sessions are idle.
        """
        one_pass = _Pass(self, idle_before, dry_run, progress or Progress())
        after: tuple[datetime, str] | None = None
        while True:
            page = await self._warm.idle(idle_before, after, PAGE)
            for held in page:
                if one_pass.is_over(limit):
                    return one_pass.report
                await one_pass.take(held)
            if len(page) < PAGE or one_pass.is_over(limit):
                return one_pass.report
            after = (page[-1].session.last_active, page[-1].session.id)

    async def is_hot(self, session_id: str) -> bool:
        """
        Whether somebody uses it now.
        """
        return await self._hot_exists(session_id)

    async def archive(
        self, session_id: str, idle_before: datetime, progress: Progress
    ) -> Archive | None:
        """
        Archive one session; None if it was used meanwhile, or is archived.

        Raises:
            Corrupted: an older archive of it, or what was just put, is damaged.
            Unavailable: a tier is away, or nobody knows what the lane did.
        """
        held = await self._idle(session_id, idle_before)
        if held is None:
            return None
        read = _reader(self._warm, held.session)
        archive = await self._vault.archive(held, read, progress.reached)
        # Uploading takes long, and asking brings a session back that is archived.
        again = await self._idle(session_id, idle_before)
        if again is None or again.moves != held.moves:
            return None
        session = held.session
        body = ArchiveSession(
            version=session.version,
            last_seq=session.last_seq,
            notices=session.notices,
            idle_since=idle_before,
            pointer=archive.pointer,
            bytes=archive.bytes,
            moves=held.moves,
        )
        try:
            await self._send(session_id, body)
        except Rejection as error:
            log.info("session.not_archived", session=session_id, code=error.code)
            return None
        self._fail("archive_sent")

        return archive

    async def _idle(self, session_id: str, idle_before: datetime) -> Held | None:
        found = await self._warm.sessions([session_id], context=True)
        held = found.get(session_id)
        if held is None or held.archival_status != "ACTIVE":
            return None
        return held if held.session.last_active < idle_before else None


class _Pass:
    """
    One pass, and what it has done so far.
    """

    def __init__(
        self, archiving: Archiving, idle_before: datetime, dry: bool, watch: Progress
    ) -> None:
        self.report = Report()
        self._archiving = archiving
        self._idle_before = idle_before
        self._dry = dry
        self._watch = watch
        self._away = 0

    def is_over(self, limit: int | None) -> bool:
        """
        Whether nothing more is to be taken up.
        """
        taken = self.report.archived + self.report.failed
        return bool(self.report.ended) or (limit is not None and taken >= limit)

    async def take(self, held: Held) -> None:
        """
        Archive one candidate, and count what comes of it.
        """
        session_id = held.session.id
        try:
            if await self._archiving.is_hot(session_id):
                self._count(skipped=1)
            elif self._dry:
                self._count(archived=1, entries=held.session.last_seq)
            else:
                self._watch.began(held)
                await self._archive(session_id)
            self._away = 0
        except Unavailable as error:
            self._failed(session_id, error)

    async def _archive(self, session_id: str) -> None:
        archive = await self._archiving.archive(
            session_id, self._idle_before, self._watch
        )
        if archive is None:
            self._count(skipped=1)
            return
        metrics.ARCHIVED.inc()
        log.info(
            "session.archived",
            session=session_id,
            entries=archive.entries,
            bytes=archive.bytes,
        )
        self._count(archived=1, entries=archive.entries, bytes=archive.bytes)

    def _failed(self, session_id: str, error: Unavailable) -> None:
        own = isinstance(error, Corrupted | Incomplete)
        self._away = 0 if own else self._away + 1
        tell = log.error if own else log.warning
        tell("session.not_archived", session=session_id, error=error.message)
        self._count(failed=1)
        if self._away >= MOST_FAILURES:
            ended = f"{self._away} failures in a row, the last: {error.message}"
            self.report = msgspec.structs.replace(self.report, ended=ended)

    def _count(self, **more: int) -> None:
        sums = {name: getattr(self.report, name) + n for name, n in more.items()}
        self.report = msgspec.structs.replace(self.report, **sums)


def _reader(
    warm: WarmTier, session: Session
) -> Callable[[int, int], Awaitable[Sequence[bytes]]]:
    """
    What gives the entries *first* to *last* of its timeline, from the warm tier.

    Those that an earlier archive has are not asked for, see `Vault.archive`.
    """

    async def read(first: int, last: int) -> Sequence[bytes]:
        found = await warm.entries(session.id, session.created_at, first, last)
        if len(found) != last - first + 1:
            raise Incomplete(
                f"MongoDB has {len(found)} of {last - first + 1} entries from {first} "
                f"of {session.id}; it stays there. Look for them in the dead letters"
            )
        return found

    return read
