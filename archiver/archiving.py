"""
Archiving: moves idle sessions from the warm tier to the cold one.

The whole archive is in the cold tier, read back and verified, before the archiver asks
the lane to release the session; the lane refuses if anything changed meanwhile. So a
crash at any point leaves the session where it was, or whole in the cold tier, and two
archivers at once archive it once.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec
import structlog

from everbus.archiver.gateway_commands import Send
from everbus.bus.errors import Rejection, Unavailable
from everbus.bus.messages import Session
from everbus.gateway.store.cold.archives import Archive, Archives
from everbus.gateway.store.tiers import Corrupted, WarmSession
from everbus.gateway.store.warm_roles import WarmMovement
from everbus.gateway.telemetry import metrics
from everbus.handlers.commands import ArchiveSession

log = structlog.get_logger()

PAGE = 100
# This number of failures in a row ends a pass: the tier is away.
MOST_FAILURES = 3


class ArchivingIncomplete(Unavailable):
    """
    A timeline entry is neither in the warm tier nor in an archive.
    """


class ArchiveReport(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of one pass.

    Attributes:
        archived: sessions that are in the cold tier now (in a dry run: would be).
        skipped: sessions that are hot, or were used meanwhile.
        failed: sessions that could not be archived; the log has the reason.
        entries: timeline entries of the archived ones.
        bytes: size of their archives in the cold tier; 0 in a dry run.
        ended: reason of an early end; empty after a full pass.
    """

    archived: int = 0
    skipped: int = 0
    failed: int = 0
    entries: int = 0
    bytes: int = 0
    ended: str = ""


class ArchiveProgress:
    """
    Callbacks for the progress of a pass; these do nothing.
    """

    def began(self, warm_session: WarmSession) -> None:
        """
        The pass begins with a session.
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
        warm: WarmMovement,
        vault: Archives,
        send: Send,
        hot_exists: Callable[[str], Awaitable[bool]],
        fail: Callable[[str], object],
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
        progress: ArchiveProgress | None = None,
    ) -> ArchiveReport:
        """
        Archive sessions last active before *idle_before*, longest idle first.

        A failure of one session does not end the pass; an unavailable tier does.

        Args:
            limit: highest number of sessions; None: all.
            dry_run: only report what a pass would do.

        Raises:
            Unavailable: the warm tier cannot list the idle sessions.
        """
        one_pass = _Pass(self, idle_before, dry_run, progress or ArchiveProgress())
        after: tuple[datetime, str] | None = None
        while True:
            page = await self._warm.idle(idle_before, after, PAGE)
            for warm_session in page:
                if one_pass.is_over(limit):
                    return one_pass.report
                await one_pass.take(warm_session)
            if len(page) < PAGE or one_pass.is_over(limit):
                return one_pass.report
            after = (page[-1].session.last_active, page[-1].session.id)

    async def is_hot(self, session_id: str) -> bool:
        """
        Whether the session is hot now.
        """
        return await self._hot_exists(session_id)

    async def archive(
        self, session_id: str, idle_before: datetime, progress: ArchiveProgress
    ) -> Archive | None:
        """
        Archive one session; None if a command used it meanwhile, or it is archived.

        Raises:
            Corrupted: an older archive of it, or the new one, is damaged.
            Unavailable: a tier is away, or the lane's decision is unknown.
        """
        warm_session = await self._idle(session_id, idle_before)
        if warm_session is None:
            return None
        read = _reader(self._warm, warm_session.session)
        archive = await self._vault.archive(warm_session, read, progress.reached)
        # An upload takes long, and a command to an archived session brings it back.
        again = await self._idle(session_id, idle_before)
        if again is None or again.moves != warm_session.moves:
            return None
        session = warm_session.session
        body = ArchiveSession(
            version=session.version,
            last_seq=session.last_seq,
            notices=session.notices,
            idle_since=idle_before,
            pointer=archive.pointer,
            bytes=archive.bytes,
            moves=warm_session.moves,
        )
        try:
            await self._send(session_id, body)
        except Rejection as error:
            log.info("session.not_archived", session=session_id, code=error.code)
            return None
        self._fail("archive_sent")

        return archive

    async def _idle(self, session_id: str, idle_before: datetime) -> WarmSession | None:
        found = await self._warm.sessions([session_id], context=True)
        warm_session = found.get(session_id)
        if warm_session is None or warm_session.archival_status != "ACTIVE":
            return None
        return warm_session if warm_session.session.last_active < idle_before else None


class _Pass:
    """
    One pass and its result so far.
    """

    def __init__(
        self,
        archiving: Archiving,
        idle_before: datetime,
        dry: bool,
        watch: ArchiveProgress,
    ) -> None:
        self.report = ArchiveReport()
        self._archiving = archiving
        self._idle_before = idle_before
        self._dry = dry
        self._watch = watch
        self._away = 0

    def is_over(self, limit: int | None) -> bool:
        """
        Whether the pass ends here.
        """
        taken = self.report.archived + self.report.failed
        return bool(self.report.ended) or (limit is not None and taken >= limit)

    async def take(self, warm_session: WarmSession) -> None:
        """
        Archive one candidate and count the outcome.
        """
        session_id = warm_session.session.id
        try:
            if await self._archiving.is_hot(session_id):
                self._count(skipped=1)
            elif self._dry:
                self._count(archived=1, entries=warm_session.session.last_seq)
            else:
                self._watch.began(warm_session)
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
        own = isinstance(error, Corrupted | ArchivingIncomplete)
        self._away = 0 if own else self._away + 1
        report = log.error if own else log.warning
        report("session.not_archived", session=session_id, error=error.message)
        self._count(failed=1)
        if self._away >= MOST_FAILURES:
            ended = f"{self._away} failures in a row, the last: {error.message}"
            self.report = msgspec.structs.replace(self.report, ended=ended)

    def _count(self, **more: int) -> None:
        sums = {name: getattr(self.report, name) + n for name, n in more.items()}
        self.report = msgspec.structs.replace(self.report, **sums)


def _reader(
    warm: WarmMovement, session: Session
) -> Callable[[int, int], Awaitable[Sequence[bytes]]]:
    """
    A function that reads the entries *first* to *last* from the warm tier.

    `Archives.archive` does not ask for entries of an earlier archive.
    """

    async def read(first: int, last: int) -> Sequence[bytes]:
        found = await warm.entries(session.id, session.created_at, first, last)
        if len(found) != last - first + 1:
            raise ArchivingIncomplete(
                f"MongoDB has {len(found)} of {last - first + 1} entries from {first} "
                f"of {session.id}; it stays there. Look for them in the dead letters"
            )
        return found

    return read
