"""
What archiving and returning leave to be done: purging, bringing back, removing.

All of it is marked in the warm tier, done in bounded steps and finished by whoever
finds the mark next; done twice, or late, it does no harm. Whoever reads looks into
both tiers, so nothing waits for it.
"""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from gateway import metrics
from gateway.store.cold.vault import Manifest, Vault
from gateway.store.tiers import Corrupted, Held, WarmTier

log = structlog.get_logger()

SESSIONS = 200
REMOVALS = 100
STEP_ENTRIES = 1_000
# Between two steps, so that the drain has the warm tier to itself in between.
REST_S = 0.01
# A session in use changes between reading and swapping.
SWAP_TRIES = 5


class Upkeep:
    """
    Finishes what was begun between the warm tier and the cold one.
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Vault,
        fail: Callable[[str], None],
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
            Unavailable: a tier is away; what is left has its mark.
        """
        for held in await self._warm.unfinished("unpurged", SESSIONS):
            try:
                await self._purge(held)
            except Corrupted as error:
                _alert("session.not_purged", held, error)

    async def restore(self) -> None:
        """
        Bring the entries of returned sessions back into the warm tier.

        Raises:
            Unavailable: a tier is away; what is left has its mark.
        """
        for held in await self._warm.unfinished("unrestored", SESSIONS):
            try:
                await self._restore(held)
            except Corrupted as error:
                _alert("session.not_restored", held, error)

    async def remove(self) -> None:
        """
        Remove the archives of deleted sessions from the cold tier.

        Raises:
            Unavailable: a tier is away; what is left is still noted.
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

    async def _purge(self, held: Held) -> None:
        manifest = await self._open(held)
        for chunk, told in enumerate(manifest.chunks):
            # Read once more: what is removed here has to be there now, also where
            # the chunk is that of an older archive.
            await self._vault.chunk(manifest, chunk)
            if not await self._purge_through(held, told.last):
                return
        await self._finish(held, unpurged=False)

    async def _purge_through(self, held: Held, last: int) -> bool:
        """
        Remove the entries up to *last* in steps; False if the session moved.
        """
        session = held.session
        while await self._still(held):
            count = await self._warm.purge(
                session.id, session.created_at, last, STEP_ENTRIES
            )
            self._fail("purge_step")
            if count == 0:
                return True
            metrics.PURGED_ENTRIES.inc(count)
            await asyncio.sleep(self._rest_s)
        return False

    async def _restore(self, held: Held) -> None:
        manifest = await self._open(held)
        for chunk in range(len(manifest.chunks)):
            if not await self._still(held):
                return
            await self._restore_chunk(held, manifest, chunk)
            self._fail("restore_chunk")
        await self._finish(held, unrestored=False)

    async def _restore_chunk(self, held: Held, manifest: Manifest, chunk: int) -> None:
        told = manifest.chunks[chunk]
        if await self._holds(held, told.first, told.last):
            return
        session = held.session
        entries = await self._vault.chunk(manifest, chunk)
        for first in range(0, len(entries), STEP_ENTRIES):
            some = entries[first : first + STEP_ENTRIES]
            await self._warm.put_entries(session.id, session.created_at, some)
            metrics.RETURNED_ENTRIES.inc(len(some))
            await asyncio.sleep(self._rest_s)

    async def _holds(self, held: Held, first: int, last: int) -> bool:
        """
        Whether the warm tier has all the entries *first* to *last*.
        """
        session = held.session
        for step in range(first, last + 1, STEP_ENTRIES):
            end = min(last, step + STEP_ENTRIES - 1)
            found = await self._warm.entries(session.id, session.created_at, step, end)
            if len(found) != end - step + 1:
                return False
        return True

    async def _open(self, held: Held) -> Manifest:
        session = held.session
        return await self._vault.open(held.pointer, session.id, session.created_at)

    async def _still(self, held: Held, *, context: bool = False) -> Held | None:
        """
        What is held of the session, if it did not move since.
        """
        session = held.session
        found = await self._warm.sessions([session.id], context=context)
        now = found.get(session.id)
        if now is None or now.session.created_at != session.created_at:
            return None
        return now if now.moves == held.moves else None

    async def _finish(self, held: Held, **marks: bool) -> None:
        """
        Clear a mark; whoever uses the session meanwhile is not disturbed.

        If it is in use too much, the mark stays for the next time.
        """
        for _ in range(SWAP_TRIES):
            # With its context, which else would be gone from the document.
            now = await self._still(held, context=True)
            if now is None:
                return
            after = msgspec.structs.replace(now, **marks)
            if await self._warm.swap(now, after):
                return
            await asyncio.sleep(self._rest_s)
        log.info("session.not_finished", session=held.session.id, **marks)


def _alert(event: str, held: Held, error: Corrupted) -> None:
    log.error(event, session=held.session.id, error=error.message)
