"""
Archives in a backup: which objects a session points at, and the objects themselves.
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator

import msgspec

from everbus.bus.errors import TooLarge
from everbus.bus.messages import pack
from everbus.compose.backup.format import CopyRecord
from everbus.gateway.store.cold.format import MAX_MANIFEST_BYTES, open_manifest
from everbus.gateway.store.cold.manifest import check_generation
from everbus.gateway.store.mongo.operations import Document
from everbus.gateway.store.tiers import ColdTier, Corrupted

ARCHIVE, OBJECT = "archive", "object"
_HASH_CHARS = 64


class ArchiveTrouble(Exception):
    """
    An archive is not whole in the cold tier; the message says which object.
    """


class ListedArchive(msgspec.Struct, frozen=True):
    """
    The objects of a session's newest archive.

    Attributes:
        pointer: the key of its manifest.
        objects: key → bytes; a key ends with the object's SHA-256.
    """

    pointer: str
    objects: dict[str, int]


class ArchiveCopies:
    """
    Reads archives for a backup.

    Args:
        cold: None: no cold tier is configured; pointers alone are in MongoDB.
        whole: with the objects themselves.
    """

    def __init__(self, cold: ColdTier | None, *, whole: bool) -> None:
        self._cold = cold
        self._whole = whole

    async def records(
        self, document: Document, counts: Counter[str]
    ) -> AsyncIterator[CopyRecord]:
        """
        The records of the archive that a session's *document* points at; its list last.

        Raises:
            ArchiveTrouble: an object is missing or damaged.
        """
        pointer = document.get("s3_pointer", "")
        if not pointer:
            return
        if self._cold is None:
            counts["unlisted_archives"] += 1
            return
        manifest = await self._object(self._cold, pointer, MAX_MANIFEST_BYTES)
        listed = _listed(document, pointer, manifest)
        if self._whole:
            for key, size in listed.objects.items():
                data = manifest
                if key != pointer:
                    data = await self._object(self._cold, key, size)
                counts["objects"] += 1
                counts["object_bytes"] += len(data)
                yield CopyRecord(OBJECT, key, data)
        counts["archives"] += 1
        yield CopyRecord(ARCHIVE, "", pack(listed))

    async def _object(self, cold: ColdTier, key: str, limit: int) -> bytes:
        try:
            data = await cold.get(key, limit)
        except TooLarge as error:
            raise ArchiveTrouble(f"cold object {key}: {error.message}") from error
        if data is None:
            raise ArchiveTrouble(f"cold object {key} is missing")
        if not is_object(key, data):
            raise ArchiveTrouble(f"cold object {key} has another SHA-256")
        return data


def _listed(document: Document, pointer: str, data: bytes) -> ListedArchive:
    try:
        manifest = open_manifest(pointer, data)
        check_generation(pointer, manifest, document["_id"], document["created_at"])
    except Corrupted as error:
        raise ArchiveTrouble(error.message) from error
    parts = (manifest.document, *manifest.chunks)
    objects = {manifest.key(part): part.bytes for part in parts}
    # The manifest last, as an archive is written.
    return ListedArchive(pointer, objects | {pointer: len(data)})


def is_object(key: str, data: bytes) -> bool:
    """
    Whether *data* is the object of that key, by its SHA-256.
    """
    return key[-_HASH_CHARS:] == hashlib.sha256(data).hexdigest()
