"""
The form of an archived session: the keys and contents of its objects.

An archive is a manifest, a document and chunks of timeline. Each is named by the
SHA-256 of its bytes, so that equal content is one object and none is ever changed;
the manifest names all others, and the warm tier keeps its own name, the archive's
*pointer*. So a pointer is enough to verify each byte of the archive. Nothing here does
I/O.

`gateway.store.cold.format` encodes and decodes the objects.
"""

import hashlib
import re
from bisect import bisect_left
from datetime import datetime
from typing import Annotated

import msgspec

from everbus.gateway.store.tiers import Corrupted

SCHEMA = 1
_KEY = re.compile(
    r"sessions/([0-9a-f]{2})/([A-Za-z0-9][A-Za-z0-9_.-]{0,63})/([0-9a-f]{64})"
)
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ArchivePart(msgspec.Struct, frozen=True, kw_only=True):
    """
    One object of an archive, beside its manifest.

    Attributes:
        sha256: of the object's bytes, hexadecimal; with the session it is its key.
        bytes: the object's length.
        raw_bytes: its length when it is decompressed.
    """

    sha256: Sha256
    bytes: int
    raw_bytes: int


class Chunk(ArchivePart, frozen=True, kw_only=True):
    """
    The object that holds the timeline entries *first* to *last*.

    Attributes:
        first_at: when the first of them was committed.
        last_at: when the last of them was; never earlier.
    """

    first: int
    last: int
    first_at: datetime
    last_at: datetime


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    The parts of an archive.

    Attributes:
        schema: a newer one than SCHEMA is refused.
        session: the session's id.
        generation: the session's created_at.
        version: the session's, when it was archived.
        last_seq: how many timeline entries it had.
        document: the object with its state and full context.
        chunks: the objects with its timeline; together entries 1 to last_seq,
            without gap, ascending.
        previous: the pointer of the archive before; empty: there was none.
    """

    schema: int = SCHEMA
    session: str
    generation: datetime = msgspec.field(name="life")
    version: int
    last_seq: int
    document: ArchivePart
    chunks: tuple[Chunk, ...]
    previous: str = ""

    def key(self, part: ArchivePart) -> str:
        """
        The key of one of its objects.
        """
        return key_of(self.session, part.sha256)

    def chunk_of(self, seq: int) -> int:
        """
        The index of the chunk with entry *seq*, which is in 1 to last_seq.
        """
        return bisect_left(self.chunks, seq, key=lambda chunk: chunk.last)


def key_of(session_id: str, sha256: str) -> str:
    """
    The key of the object of that session and hash.

    The two digits spread sessions over 256 folders.
    """
    spread = hashlib.sha256(session_id.encode()).hexdigest()[:2]

    return f"sessions/{spread}/{session_id}/{sha256}"


def session_of(key: str) -> str:
    """
    The session whose object has that key.

    Raises:
        Corrupted: it is no key of ours.
    """
    found = _KEY.fullmatch(key)
    if found is None or key_of(found[2], found[3]) != key:
        raise corrupted(key, "is no key of an archive")
    return found[2]


def corrupted(key: str, reason: str) -> Corrupted:
    """
    The error that says so of the object *key*.
    """
    return Corrupted(
        f"cold object {ascii(key)[1:-1]} {reason}; it is not served. Put back what "
        "was there, from a backup or an older version of the bucket",
        key=key,
        cause="corrupted",
    )


def check_generation(
    pointer: str, manifest: Manifest, session_id: str, generation: datetime
) -> None:
    """
    Accept a manifest of that session and generation.

    Raises:
        Corrupted: it is of another.
    """
    if (manifest.session, manifest.generation) != (session_id, generation):
        raise corrupted(pointer, f"is not of session {session_id} made at {generation}")
