"""
The steps after archiving, return and deletion: purge, restore, remove.

The warm tier marks unfinished work. An archiver does it in bounded steps; after a
crash the next archiver finds the mark and goes on. A step that runs twice, or late,
does no harm. Readers look into both tiers, so nothing waits for these jobs.
"""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from everbus.gateway.store.cold.archives import Archives, Manifest
from everbus.gateway.store.tiers import Corrupted, WarmSession
from everbus.gateway.store.warm_roles import WarmMovement
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

SESSIONS = 200
REMOVALS = 100
STEP_ENTRIES = 1_000
# Between two steps the drain has the warm tier for itself.
REST_S = 0.01
# A session in use changes between reading and swapping.
SWAP_TRIES = 5


class TierJobs:
    """
    Finishes moves between the warm tier and the cold one.
    """

    def __init__(
        self,
        warm: WarmMovement,
        vault: Archives,
        fail: Callable[[str], object],
        *,
        rest_s: float = REST_S,
    ) -> None:
        self._warm = warm
        self._vault = vault
        self._fail = fail
        self._rest_s = rest_s

    async def purge(self) -> None:
        """
        Remove archived entries of stubs from the warm tier.

        Raises:
            Unavailable: a tier is away; the marks of unfinished sessions stay.
        """
        for warm_session in await self._warm.unfinished("unpurged", SESSIONS):
            try:
                await self._purge(warm_session)
            except Corrupted as error:
                _alert("session.not_purged", warm_session, error)

    async def restore(self) -> None:
        """
        Bring the entries of returned sessions back into the warm tier.

        Raises:
            Unavailable: a tier is away; what is left has its mark.
        """
        for warm_session in await self._warm.unfinished("unrestored", SESSIONS):
            try:
                await self._restore(warm_session)
            except Corrupted as error:
                _alert("session.not_restored", warm_session, error)

    async def remove(self) -> None:
        """
        Remove the archives of deleted sessions from the cold tier.

        Raises:
            Unavailable: a tier is away; the other pointers stay noted.
        """
        for pointer in await self._warm.removals(REMOVALS):
            try:
                await self._vault.remove(pointer)
            except Corrupted as error:
                log.error("archive.not_removed", pointer=pointer, error=error.message)  # noqa: TRY400 - no defect of ours
                continue
            self._fail("removal")
            await self._warm.removed(pointer)
            log.info("archive.removed", pointer=pointer)

    async def _purge(self, warm_session: WarmSession) -> None:
        session = warm_session.session
        manifest = await self._vault.verify(
            warm_session.pointer, session.id, session.created_at
        )
        for index, chunk in enumerate(manifest.chunks):
            # Past the cache: this process may hold a sound copy of a chunk that is
            # damaged in the cold tier, and MongoDB then has the only other one.
            await self._vault.verify_chunk(manifest, index)
            if not await self._purge_through(warm_session, chunk.last):
                return
        await self._finish(warm_session, unpurged=False)

    async def _purge_through(self, warm_session: WarmSession, last: int) -> bool:
        """
        Remove the entries up to *last* in steps; False if the session moved.
        """
        session = warm_session.session
        while await self._still(warm_session):
            count = await self._warm.purge(
                session.id, session.created_at, last, STEP_ENTRIES
            )
            self._fail("purge_step")
            if count == 0:
                return True
            metrics.PURGED_ENTRIES.inc(count)
            await asyncio.sleep(self._rest_s)
        return False

    async def _restore(self, warm_session: WarmSession) -> None:
        manifest = await self._open(warm_session)
        for chunk in range(len(manifest.chunks)):
            if not await self._still(warm_session):
                return
            await self._restore_chunk(warm_session, manifest, chunk)
            self._fail("restore_chunk")
        await self._finish(warm_session, unrestored=False)

    async def _restore_chunk(
        self, warm_session: WarmSession, manifest: Manifest, chunk: int
    ) -> None:
        place = manifest.chunks[chunk]
        if await self._holds(warm_session, place.first, place.last):
            return
        session = warm_session.session
        entries = await self._vault.chunk(manifest, chunk)
        for first in range(0, len(entries), STEP_ENTRIES):
            some = entries[first : first + STEP_ENTRIES]
            await self._warm.put_entries(session.id, session.created_at, some)
            metrics.RETURNED_ENTRIES.inc(len(some))
            await asyncio.sleep(self._rest_s)

    async def _holds(self, warm_session: WarmSession, first: int, last: int) -> bool:
        """
        Whether the warm tier has all the entries *first* to *last*.
        """
        session = warm_session.session
        for step in range(first, last + 1, STEP_ENTRIES):
            end = min(last, step + STEP_ENTRIES - 1)
            found = await self._warm.entries(session.id, session.created_at, step, end)
            if len(found) != end - step + 1:
                return False
        return True

    async def _open(self, warm_session: WarmSession) -> Manifest:
        session = warm_session.session
        return await self._vault.open(
            warm_session.pointer, session.id, session.created_at
        )

    async def _still(
        self, warm_session: WarmSession, *, context: bool = False
    ) -> WarmSession | None:
        """
        The warm session, unless it moved since.
        """
        session = warm_session.session
        found = await self._warm.sessions([session.id], context=context)
        now = found.get(session.id)
        if now is None or now.session.created_at != session.created_at:
            return None
        return now if now.moves == warm_session.moves else None

    async def _finish(self, warm_session: WarmSession, **marks: bool) -> None:
        """
        Clear a mark without disturbing concurrent use of the session.

        A session in constant use keeps its mark for the next run.
        """
        for _ in range(SWAP_TRIES):
            # With its context: the swap would else remove that from the document.
            now = await self._still(warm_session, context=True)
            if now is None:
                return
            after = msgspec.structs.replace(now, **marks)
            if await self._warm.swap(now, after):
                return
            await asyncio.sleep(self._rest_s)
        log.info("session.not_finished", session=warm_session.session.id, **marks)


def _alert(event: str, warm_session: WarmSession, error: Corrupted) -> None:
    log.error(event, session=warm_session.session.id, error=error.message)
