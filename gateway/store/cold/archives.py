"""
Archives of sessions in the cold tier: putting them there, reading, removing them.

Every read is verified against its hash; a damaged object is logged, counted and never
served. An archive never changes: a session that returned and rests again gets another
one, which shares the unchanged chunks and names the archive before it.
"""

import sys
from bisect import bisect_left
from collections.abc import Callable
from datetime import datetime
from typing import Any

from everbus.bus.messages import Session
from everbus.gateway.failpoints import FailPoint, disarmed
from everbus.gateway.sealing.cipher import KeyMissing
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.cold.cache import ArchiveCache, Weighed
from everbus.gateway.store.cold.format import (
    MAX_MANIFEST_BYTES,
    open_document,
    open_manifest,
    place_of,
)
from everbus.gateway.store.cold.manifest import (
    Manifest,
    check_generation,
    corrupted,
    session_of,
)
from everbus.gateway.store.cold.verified import Verified, alarm
from everbus.gateway.store.cold.writer import Archive, ArchiveWriter, Read
from everbus.gateway.store.read_bound import Meter, ReadBound
from everbus.gateway.store.tiers import ColdTier, WarmSession

__all__ = ["Archive", "Archives", "Manifest"]

CHUNKS_BYTES = 16 * 2**20
MANIFESTS_BYTES = 8 * 2**20
# Archives of one session; one more is made each time that it rests for long.
MAX_CHAIN = 10_000


class Archives:
    """
    The archives in one cold tier, with a cache of recent reads.

    All methods raise Unavailable if the cold tier cannot be reached, and Corrupted
    if an object is missing or not what was put there.
    """

    def __init__(
        self,
        cold: ColdTier,
        *,
        fail: FailPoint = disarmed,
        sealing: Sealing | None = None,
    ) -> None:
        self._sealing = sealing
        self._objects = Verified(cold)
        self._fail = fail
        self._manifests: ArchiveCache[Manifest] = ArchiveCache(MANIFESTS_BYTES)
        self._chunks: ArchiveCache[list[bytes]] = ArchiveCache(CHUNKS_BYTES)

    async def archive(
        self, warm_session: WarmSession, read: Read, progress: Callable[[int], None]
    ) -> Archive:
        """
        Put the session and its whole timeline into the cold tier, read back.

        Doing it again changes nothing and has the same pointer; so does archiving a
        session that has returned and stayed as it was.

        Args:
            warm_session: whole, with its full context.
            read: gives the packed entries *first* to *last* of its timeline, all of
                them; asked in ascending order, for entries that no archive has yet.
            progress: called with the seq up to which all entries are in the cold tier.

        Raises:
            Unavailable: also if *read* gives other entries than it was asked for,
                or *warm_session* is older than its archive.
            TooLarge: the session has more than an archive can hold.
        """
        session, prior = warm_session.session, None
        if warm_session.pointer:
            prior = await self.open(
                warm_session.pointer, session.id, session.created_at
            )

        return await ArchiveWriter(
            self._objects, warm_session, prior, read, self._fail, self._sealing
        ).run(progress)

    async def open(
        self, pointer: str, session_id: str, generation: datetime
    ) -> Manifest:
        """
        The manifest of an archive of that session and generation.
        """
        manifest = await self._manifests.get(pointer, lambda: self._fetched(pointer))
        with alarm(pointer):
            check_generation(pointer, manifest, session_id, generation)
        return manifest

    async def document(self, manifest: Manifest) -> tuple[Session, dict[str, Any]]:
        """
        The session, without recent timeline, and its full context.
        """
        part = manifest.document

        def opened(data: bytes) -> tuple[Session, dict[str, Any]]:
            return open_document(manifest, data, self._sealing)

        try:
            return await self._objects.opened(manifest.key(part), part.bytes, opened)
        except KeyMissing:
            # A key that another process made a moment ago.
            if self._sealing is None:
                raise
            await self._sealing.keyring.refresh()
        return await self._objects.opened(manifest.key(part), part.bytes, opened)

    async def entries(
        self,
        manifest: Manifest,
        first: int,
        last: int,
        bound: ReadBound | None = None,
    ) -> list[bytes]:
        """
        The archive's packed entries between *first* and *last*, ascending. Callers ask
        for 1,000 at most; with *bound* it may end behind the chunk that reaches it.
        """
        first, last = max(first, 1), min(last, manifest.last_seq)
        newest_first = bound is not None and bound.newest_first
        meter = Meter(sys.maxsize if bound is None else bound.most_bytes)
        found: list[bytes] = []
        while first <= last:
            index = manifest.chunk_of(last if newest_first else first)
            chunk = manifest.chunks[index]
            entries = await self.chunk(manifest, index)
            part = entries[max(0, first - chunk.first) : last - chunk.first + 1]
            if newest_first:
                found, last = [*part, *found], chunk.first - 1
            else:
                found, first = [*found, *part], chunk.last + 1
            if not meter.add(sum(map(len, part))):
                break

        return found

    async def chunk(self, manifest: Manifest, index: int) -> list[bytes]:
        """
        The packed entries of one of the archive's chunks; not to be changed.
        """
        chunk = manifest.chunks[index]
        key = manifest.key(chunk)

        async def fetch() -> Weighed[list[bytes]]:
            return Weighed(await self._objects.chunk(key, chunk), chunk.raw_bytes)

        return await self._chunks.get(key, fetch)

    async def verify(
        self, pointer: str, session_id: str, generation: datetime
    ) -> Manifest:
        """
        Read manifest and document from the cold tier itself, past the caches of
        this process, and return the manifest.

        Called before MongoDB loses anything that the archive replaces: a cached
        copy proves nothing about the cold tier.
        """
        manifest = (await self._fetched(pointer)).value
        with alarm(pointer):
            check_generation(pointer, manifest, session_id, generation)
        await self.document(manifest)

        return manifest

    async def verify_chunk(self, manifest: Manifest, index: int) -> None:
        """
        Read one chunk from the cold tier itself, past the cache; see `verify`.
        """
        chunk = manifest.chunks[index]
        await self._objects.chunk(manifest.key(chunk), chunk)

    async def first_since(self, manifest: Manifest, at: datetime) -> int | None:
        """
        The lowest seq of an entry at *at* or later; None if all are earlier.
        """
        index = bisect_left(manifest.chunks, at, key=lambda chunk: chunk.last_at)
        if index == len(manifest.chunks):
            return None
        chunk = manifest.chunks[index]
        if chunk.first_at >= at:
            return chunk.first
        entries = await self.chunk(manifest, index)

        return chunk.first + bisect_left(entries, at, key=lambda e: place_of(e).at)

    async def remove(self, pointer: str) -> None:
        """
        Delete an archive and all before it of the same session; may be repeated.

        The oldest goes first, and each manifest after what it names: whatever ends
        it half-way, the rest can still be found from *pointer*.

        Raises:
            Corrupted: a manifest is damaged, so its objects are unknown; nothing was
                deleted.
        """
        for key in reversed(await self._chain(pointer)):
            manifest = await self._found(key)
            if manifest is None:
                continue
            for part in (manifest.document, *manifest.chunks):
                await self._objects.delete(manifest.key(part))
            await self._objects.delete(key)

    def close(self) -> None:
        """
        Give the cold tier's connections back; may be repeated.
        """
        self._objects.close()

    async def _chain(self, pointer: str) -> list[str]:
        """
        The pointers of that archive and of those before it, newest first.
        """
        chain: list[str] = []
        while pointer and (manifest := await self._found(pointer)):
            chain.append(pointer)
            with alarm(pointer):
                if len(chain) > MAX_CHAIN:
                    raise corrupted(pointer, f"has over {MAX_CHAIN} archives before it")
            pointer = manifest.previous

        return chain

    async def _found(self, pointer: str) -> Manifest | None:
        """
        The manifest; None if there is none.
        """
        with alarm(pointer):
            session_of(pointer)
        if not await self._objects.exists(pointer):
            return None
        return (await self._fetched(pointer)).value

    async def _fetched(self, pointer: str) -> Weighed[Manifest]:
        with alarm(pointer):
            session_of(pointer)

        return await self._objects.opened(
            pointer,
            MAX_MANIFEST_BYTES,
            lambda data: Weighed(open_manifest(pointer, data), len(data)),
        )
