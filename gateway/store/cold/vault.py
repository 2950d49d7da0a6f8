"""
Archives of sessions in the cold tier: putting them there, reading, removing them.

Whatever is read was verified against its hash, and what is not what was put there
is logged, counted and never served. An archive is never changed: a session that
returned and rests again gets another, which shares the chunks that stayed as they
were and names the archive before it.
"""

from bisect import bisect_left
from collections.abc import Callable
from datetime import datetime
from typing import Any

from bus.messages import Session
from gateway.failpoints import FailPoint, disarmed
from gateway.store.cold.archive import Manifest, check_life, corrupted, session_of
from gateway.store.cold.filing import Archive, Filing, Read
from gateway.store.cold.sealing import (
    MAX_MANIFEST_BYTES,
    open_document,
    open_manifest,
    place_of,
)
from gateway.store.cold.shelf import Shelf, Weighed
from gateway.store.cold.verified import Verified, alarm
from gateway.store.tiers import ColdTier, Held

__all__ = ["Archive", "Manifest", "Vault"]

CHUNKS_BYTES = 16 * 2**20
MANIFESTS_BYTES = 8 * 2**20
# Archives of one session; one more is made each time that it rests for long.
MAX_CHAIN = 10_000


class Vault:
    """
    The archives in one cold tier, with what was read last at hand.

    All methods raise Unavailable if the cold tier cannot be reached, and Corrupted
    if an object is missing or not what was put there.
    """

    def __init__(self, cold: ColdTier, *, fail: FailPoint = disarmed) -> None:
        self._objects = Verified(cold)
        self._fail = fail
        self._manifests: Shelf[Manifest] = Shelf(MANIFESTS_BYTES)
        self._chunks: Shelf[list[bytes]] = Shelf(CHUNKS_BYTES)

    async def archive(
        self, held: Held, read: Read, progress: Callable[[int], None]
    ) -> Archive:
        """
        Put the session and its whole timeline into the cold tier, read back.

        Doing it again changes nothing and has the same pointer; so does archiving a
        session that has returned and stayed as it was.

        Args:
            held: whole, with its full context.
            read: gives the packed entries *first* to *last* of its timeline, all of
                them; asked in ascending order, for those that no archive has yet.
            progress: told the seq up to which all entries are in the cold tier.

        Raises:
            Unavailable: also if *read* gives other entries than it was asked for,
                or *held* is older than its archive.
            TooLarge: the session has more than an archive can hold.
        """
        session, prior = held.session, None
        if held.pointer:
            prior = await self.open(held.pointer, session.id, session.created_at)

        return await Filing(self._objects, held, prior, read, self._fail).run(progress)

    async def open(self, pointer: str, session_id: str, life: datetime) -> Manifest:
        """
        The manifest of an archive of that session and life.
        """
        manifest = await self._manifests.get(pointer, lambda: self._fetched(pointer))
        with alarm(pointer):
            check_life(pointer, manifest, session_id, life)
        return manifest

    async def document(self, manifest: Manifest) -> tuple[Session, dict[str, Any]]:
        """
        The session, without recent timeline, and its full context.
        """
        part = manifest.document

        return await self._objects.opened(
            manifest.key(part), part.bytes, lambda data: open_document(manifest, data)
        )

    async def entries(self, manifest: Manifest, first: int, last: int) -> list[bytes]:
        """
        Those of the packed entries *first* to *last* that are in the archive,
        ascending. Callers ask for 1,000 at most.
        """
        first, last = max(first, 1), min(last, manifest.last_seq)
        found: list[bytes] = []
        while first <= last:
            index = manifest.chunk_of(first)
            chunk = manifest.chunks[index]
            entries = await self.chunk(manifest, index)
            found += entries[first - chunk.first : last - chunk.first + 1]
            first = chunk.last + 1

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

    async def check_chunk(self, manifest: Manifest, index: int) -> None:
        """
        Accept a chunk that is whole in the cold tier now, whatever is at hand here:
        to be asked before its entries are removed elsewhere.
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
            Corrupted: a manifest is damaged, so what it names is not known; nothing
                was deleted.
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
