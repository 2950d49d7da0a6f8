"""
The bytes of an archive's objects: msgpack, in one zstd frame but for the manifest.

`seal_*` makes an object's bytes; `open_*` gives back what is in them, or raises
Corrupted. Length and hash are checked before anything is decompressed, and what is
decompressed is bounded by what the manifest says and by what an object may have.
Equal values have equal bytes, as long as it is the same version of zstd's library.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from everbus.bus.errors import TooLarge, Unavailable
from everbus.bus.messages import Session, pack
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.cold.manifest import (
    SCHEMA,
    ArchivePart,
    Chunk,
    Manifest,
    corrupted,
    key_of,
    session_of,
)
from everbus.gateway.store.cold.sealed_document import opened, with_sealed
from everbus.gateway.store.tiers import WarmSession

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A chunk ends before it has more than this; a larger entry is a chunk by itself.
CHUNK_BYTES = 2**20
CHUNK_ENTRIES = 4096
# What objects may have, decompressed: an entry comes in a command of 256 KiB, a
# document has 50 KiB of state and 8 MiB of full context.
MAX_CHUNK_BYTES = 2**22
MAX_DOCUMENT_BYTES = 2**24
# Of a timeline of about 500,000 chunks.
MAX_MANIFEST_BYTES = 2**26
_LEVEL = 3
_SETTINGS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 22}

T = TypeVar("T")


class Sealed(NamedTuple):
    """
    A manifest's bytes and their key.
    """

    pointer: str
    data: bytes


class SealedPlace(msgspec.Struct, frozen=True, gc=False):
    """
    Where a packed entry lies in its timeline; the rest of it is not decoded.
    """

    seq: int
    at: datetime


class _Document(msgspec.Struct, frozen=True):
    session: Session
    full_context: dict[str, Any]  # JSON values


class _Schema(msgspec.Struct):
    schema: int


place_of = msgspec.msgpack.Decoder(SealedPlace).decode
_entries = msgspec.msgpack.Decoder(list[msgspec.Raw])
_document = msgspec.msgpack.Decoder(_Document)
_manifest = msgspec.msgpack.Decoder(Manifest)
_schema = msgspec.msgpack.Decoder(_Schema)


def fits(entries: int, size: int, entry: bytes) -> bool:
    """
    Whether a chunk of that many entries and bytes takes one more *entry*.
    """
    if entries == 0:
        return True
    return entries < CHUNK_ENTRIES and size + len(entry) <= CHUNK_BYTES


def seal_chunk(entries: Sequence[bytes]) -> tuple[Chunk, bytes]:
    """
    The object with these packed TimelineEntry values, which follow each other.
    """
    part, data = _sealed(pack([msgspec.Raw(e) for e in entries]), MAX_CHUNK_BYTES)
    first, last = place_of(entries[0]), place_of(entries[-1])
    chunk = Chunk(
        **msgspec.structs.asdict(part),
        first=first.seq,
        last=last.seq,
        first_at=first.at,
        last_at=last.at,
    )
    return chunk, data


def open_chunk(key: str, chunk: Chunk, data: bytes) -> list[bytes]:
    """
    The packed entries in it, as they were given to seal_chunk().
    """
    raw = _opened(key, chunk, data, MAX_CHUNK_BYTES)
    entries = [bytes(entry) for entry in _decoded(key, _entries.decode, raw)]
    seqs = [_decoded(key, place_of, entry).seq for entry in entries]
    if seqs != list(range(chunk.first, chunk.last + 1)):
        raise corrupted(key, f"has not the entries {chunk.first} to {chunk.last}")
    return entries


def seal_document(
    warm_session: WarmSession, sealing: Sealing | None = None
) -> tuple[ArchivePart, bytes]:
    """
    The object with the session's state and full context. *sealing*: encrypts its
    sensitive fields; None: they are plain.
    """
    session = msgspec.structs.replace(
        warm_session.session,
        recent_timeline=(),
        full_context=None,
        archival_status="ACTIVE",
    )
    document = {"session": session, "full_context": warm_session.full_context}
    if sealing is not None:
        document = with_sealed(document, sealing)

    return _sealed(pack(document), MAX_DOCUMENT_BYTES)


def open_document(
    manifest: Manifest, data: bytes, sealing: Sealing | None = None
) -> tuple[Session, dict[str, Any]]:
    """
    The session and its full context, as they were given to seal_document().
    """
    key = manifest.key(manifest.document)
    raw = _opened(key, manifest.document, data, MAX_DOCUMENT_BYTES)
    if sealing is not None:
        raw = opened(raw, sealing)
    document = _decoded(key, _document.decode, raw)
    session = document.session
    is_ours = (session.id, session.created_at, session.version, session.last_seq) == (
        manifest.session,
        manifest.generation,
        manifest.version,
        manifest.last_seq,
    )
    if not is_ours:
        raise corrupted(key, "is the document of another session or version")
    return session, document.full_context


def seal_manifest(manifest: Manifest) -> Sealed:
    """
    The manifest's object; its key is the archive's pointer.

    Raises:
        TooLarge: the timeline has too many chunks.
    """
    data = pack(manifest)
    _check_size("manifest", len(data), MAX_MANIFEST_BYTES)

    return Sealed(key_of(manifest.session, _digest(data)), data)


def open_manifest(pointer: str, data: bytes) -> Manifest:
    """
    The manifest in it, if it is whole and in itself without contradiction.

    Raises:
        Corrupted: it is not.
        Unavailable: its schema is newer than ours.
    """
    if key_of(session_of(pointer), _digest(data)) != pointer:
        raise corrupted(pointer, "has another SHA-256 than its key says")
    schema = _decoded(pointer, _schema.decode, data).schema
    if schema > SCHEMA:
        raise Unavailable(
            f"archive {pointer} has schema {schema}, newer than {SCHEMA}; upgrade"
        )
    manifest = _decoded(pointer, _manifest.decode, data)
    if manifest.session != session_of(pointer):
        raise corrupted(pointer, "is the manifest of another session")
    if not _is_whole(manifest):
        raise corrupted(pointer, "does not list its entries one after the other")
    return manifest


def _is_whole(manifest: Manifest) -> bool:
    following = 1
    for chunk in manifest.chunks:
        if chunk.first != following or chunk.last < chunk.first:
            return False
        following = chunk.last + 1
    return following == manifest.last_seq + 1


def _sealed(raw: bytes, limit: int) -> tuple[ArchivePart, bytes]:
    _check_size("part", len(raw), limit)
    data = zstd.compress(raw, _LEVEL)

    return ArchivePart(sha256=_digest(data), bytes=len(data), raw_bytes=len(raw)), data


def _opened(key: str, part: ArchivePart, data: bytes, limit: int) -> bytes:
    """
    The decompressed bytes of an object that is what *part* says.
    """
    if len(data) != part.bytes:
        raise corrupted(key, f"has {len(data)} bytes and not {part.bytes}")
    if _digest(data) != part.sha256:
        raise corrupted(key, "has another SHA-256 than its manifest says")
    if not 0 < part.raw_bytes <= limit:
        raise corrupted(key, f"is said to have {part.raw_bytes} bytes of {limit}")
    unpacking = zstd.ZstdDecompressor(options=_SETTINGS)
    try:
        # One byte more than there should be tells a bomb, and is all it gets.
        raw = unpacking.decompress(data, part.raw_bytes + 1)
    except zstd.ZstdError as error:
        raise corrupted(key, f"cannot be decompressed ({error})") from error
    is_exact = len(raw) == part.raw_bytes and unpacking.eof
    if not is_exact or unpacking.unused_data:
        raise corrupted(key, f"has not {part.raw_bytes} bytes when decompressed")
    return raw


def _decoded(key: str, decode: Callable[[bytes], T], data: bytes) -> T:
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise corrupted(key, f"cannot be decoded ({error})") from error


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(
            f"an archive's {what} of {size} bytes; the limit is {limit}",
            size=size,
            limit=limit,
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
