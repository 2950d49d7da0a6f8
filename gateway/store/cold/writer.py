"""
Writes an archive chunk by chunk, so that memory holds one at a time.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from everbus.bus.errors import Unavailable
from everbus.bus.messages import Session
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.cold.format import (
    CHUNK_BYTES,
    fits,
    place_of,
    seal_chunk,
    seal_document,
    seal_manifest,
)
from everbus.gateway.store.cold.manifest import (
    ArchivePart,
    Chunk,
    Manifest,
    corrupted,
    key_of,
)
from everbus.gateway.store.cold.verified import Verified, alarm
from everbus.gateway.store.tiers import WarmSession

# How many entries are asked for at a time, at most: 64 MiB of the largest there are.
READ_ENTRIES = 256

Read = Callable[[int, int], Awaitable[Sequence[bytes]]]


class Archive(NamedTuple):
    """
    The result of archiving one session.

    Attributes:
        pointer: the key of its manifest.
        through: timeline entries 1 to this seq are in it.
        bytes: size of its objects in the cold tier, including shared ones.
        raw_bytes: the same before compression.
    """

    pointer: str
    through: int
    bytes: int
    entries: int
    raw_bytes: int


class ArchiveWriter:
    """
    The writer of one archive.

    Args:
        prior: the session's archive before, None if there is none.
        read: gives the packed entries *first* to *last* of the timeline.
    """

    def __init__(
        self,
        objects: Verified,
        warm_session: WarmSession,
        prior: Manifest | None,
        read: Read,
        fail: FailPoint,
        sealing: Sealing | None = None,
    ) -> None:
        self._sealing = sealing
        self._objects = objects
        self._warm_session = warm_session
        self._session = warm_session.session
        self._prior = prior
        self._read = read
        self._fail = fail

    async def run(self, progress: Callable[[int], None]) -> Archive:
        """
        Put all of it into the cold tier, each object read back, the manifest last.
        """
        chunks, begun = await self._shared()
        progress(chunks[-1].last if chunks else 0)
        through = self._prior.last_seq if self._prior else 0
        cutter = _Cutter(self._session, begun, through, self._read)
        while entries := await cutter.chunk():
            chunks.append(await self._put_chunk(entries))
            self._fail("archive_chunk")
            progress(chunks[-1].last)
        document = await self._put_document()
        self._fail("archive_document")

        return await self._put_manifest(self._manifest(document, chunks))

    async def _shared(self) -> tuple[list[Chunk], list[bytes]]:
        """
        The chunks of the archive before that this one has, too, and the entries
        behind them that begin its next chunk.

        A timeline that has grown has its last chunk filled up: so it is cut as if
        it had been archived at once.
        """
        prior = self._prior
        if prior is None:
            return [], []
        if prior.last_seq > self._session.last_seq:
            raise Unavailable(
                f"session {self._session.id} has {self._session.last_seq} entries, "
                f"but {prior.last_seq} in its archive; read it again"
            )
        shared, begun = list(prior.chunks), list[bytes]()
        if shared and prior.last_seq < self._session.last_seq:
            last = shared.pop()
            begun = await self._objects.chunk(prior.key(last), last)
        for chunk in shared:
            await self._objects.check_length(prior.key(chunk), chunk)

        return shared, begun

    async def _put_chunk(self, entries: list[bytes]) -> Chunk:
        chunk, data = await asyncio.to_thread(seal_chunk, entries)
        key = key_of(self._session.id, chunk.sha256)
        await self._objects.put(key, data)
        there = await self._objects.chunk(key, chunk)
        with alarm(key):
            if there != entries:
                raise corrupted(key, "does not open to what was sealed in it")
        return chunk

    async def _put_document(self) -> ArchivePart:
        if self._sealing is not None:
            await self._sealing.keyring.ready([self._session.tenant], warm=True)
        document, data = await asyncio.to_thread(
            seal_document, self._warm_session, self._sealing
        )
        key = key_of(self._session.id, document.sha256)
        await self._objects.put(key, data)
        await self._objects.read_back(key, data)

        return document

    def _manifest(self, document: ArchivePart, chunks: list[Chunk]) -> Manifest:
        """
        The manifest; it is the one before, if nothing has changed since.
        """
        prior = self._prior
        manifest = Manifest(
            session=self._session.id,
            generation=self._session.created_at,
            version=self._session.version,
            last_seq=self._session.last_seq,
            document=document,
            chunks=tuple(chunks),
            previous=prior.previous if prior else "",
        )
        if prior is None or manifest == prior:
            return manifest
        return msgspec.structs.replace(manifest, previous=self._warm_session.pointer)

    async def _put_manifest(self, manifest: Manifest) -> Archive:
        pointer, data = await asyncio.to_thread(seal_manifest, manifest)
        await self._objects.put(pointer, data)
        self._fail("archive_manifest")
        await self._objects.read_back(pointer, data)
        self._fail("archive_verified")
        parts = (manifest.document, *manifest.chunks)

        return Archive(
            pointer=pointer,
            through=manifest.last_seq,
            bytes=sum(part.bytes for part in parts) + len(data),
            entries=manifest.last_seq,
            raw_bytes=sum(part.raw_bytes for part in parts) + len(data),
        )


class _Cutter:
    """
    The rest of a timeline cut into chunks, read no further than the next one needs.

    Args:
        begun: the entries up to *through* that are to be in the next chunk.
    """

    def __init__(
        self, session: Session, begun: list[bytes], through: int, read: Read
    ) -> None:
        self._session = session
        self._read = read
        self._waiting = deque(begun)
        self._through = through
        self._step = 1

    async def chunk(self) -> list[bytes]:
        """
        The entries of the next chunk; none at the end.
        """
        taken: list[bytes] = []
        size = 0
        while self._waiting or await self._read_on():
            if not fits(len(taken), size, self._waiting[0]):
                break
            entry = self._waiting.popleft()
            taken.append(entry)
            size += len(entry)

        return taken

    async def _read_on(self) -> bool:
        """
        Read some more; whether there was any.
        """
        first = self._through + 1
        last = min(self._through + self._step, self._session.last_seq)
        if first > last:
            return False
        entries = [bytes(entry) for entry in await self._read(first, last)]
        seqs = [place_of(entry).seq for entry in entries]
        if seqs != list(range(first, last + 1)):
            raise Unavailable(
                f"of session {self._session.id} {len(seqs)} entries were read where "
                f"{first} to {last} were asked for; archive it later"
            )
        self._waiting.extend(entries)
        self._through = last
        # As many as make a chunk, going by these; few as long as nothing is known.
        a_chunk = CHUNK_BYTES * len(entries) // sum(map(len, entries))
        self._step = max(1, min(a_chunk, self._step * 4, READ_ENTRIES))

        return True
