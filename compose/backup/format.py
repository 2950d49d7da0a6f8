"""
The form of a part of a backup: records in compressed, checksummed chunks.

```
magic, format (1 byte)
chunk:    stored bytes (4), raw bytes (4), SHA-256 of what follows (32), zlib
  ...
trailer:  0 (4), number of chunks (4), SHA-256 of all before it (32)
```

A chunk is a msgpack list of records. Without its trailer a part is truncated. Nothing
here knows MongoDB; a writer and a reader hold one chunk in memory.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from everbus.bus.errors import Rejection
from everbus.bus.messages import pack

FORMAT = 1
MAGIC = b"everbus backup\n"
HEAD = struct.Struct(">II32s")
CHUNK_BYTES = 2**20
# A record may have 64 MiB, the manifest of the largest archive there is.
MOST_CHUNK_BYTES = 2**26 + 2**22
_LEVEL = 3


class DamagedBackup(Rejection):
    """
    A file of a backup is not what was written; the details name part and offset.
    """

    code = "invalid"
    status = 422

    @classmethod
    def at(cls, part: str, offset: int, reason: str) -> "DamagedBackup":
        """
        The error at *offset* of *part*.
        """
        return cls(
            f"{part} is damaged at byte {offset}: {reason}. Nothing of it is used; "
            "copy the file again from where the backup is whole, or use another one",
            part=part,
            offset=offset,
        )


class CopyRecord(msgspec.Struct, frozen=True, array_like=True):
    """
    One thing that is backed up.

    Attributes:
        kind: a collection of MongoDB; `archive`: the objects of a session's archive;
            `object`: one of them.
        name: of a session its id, which begins it; of an object its key.
        data: BSON, or msgpack, or the object.
    """

    kind: str
    name: str
    data: bytes


class WrittenPart(NamedTuple):
    """
    Size and hash of a part that is finished.
    """

    bytes: int
    sha256: str


class _Mark(NamedTuple):
    at: int
    chunks: int
    hash: "hashlib._Hash"
    records: int


_records = msgspec.msgpack.Decoder(list[CopyRecord])


class PartWriter:
    """
    Writes a part into a draft beside *path*, which `finish` puts in its place.

    Attributes:
        raw_bytes: of the records so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.draft")
        file = os.open(self._draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file: BinaryIO = os.fdopen(file, "r+b")
        self._hash = hashlib.sha256()
        self._chunks = 0
        self._waiting: list[bytes] = []
        self._size = 0
        self.raw_bytes = 0
        self._put(MAGIC + bytes([FORMAT]))

    def add(self, record: CopyRecord) -> None:
        """
        Write one record.

        Raises:
            ValueError: it is larger than a chunk may be.
        """
        packed = pack(record)
        if self._size and self._size + len(packed) > CHUNK_BYTES:
            self._put_chunk()
        if len(packed) > MOST_CHUNK_BYTES - 16:
            raise ValueError(f"a record of {len(packed)} bytes of {MOST_CHUNK_BYTES}")
        self._waiting.append(packed)
        self._size += len(packed)
        self.raw_bytes += len(packed)

    def mark(self) -> _Mark:
        """
        The present place, for `roll_back`.
        """
        self._put_chunk()
        return _Mark(self._file.tell(), self._chunks, self._hash.copy(), self.raw_bytes)

    def roll_back(self, mark: _Mark) -> None:
        """
        Forget what was written since *mark*.
        """
        self._file.seek(mark.at)
        self._file.truncate()
        self._chunks, self._hash, self.raw_bytes = mark.chunks, mark.hash, mark.records
        self._waiting.clear()
        self._size = 0

    def finish(self) -> WrittenPart:
        """
        Put the part in its place, whole and on the disk.
        """
        self._put_chunk()
        self._put(HEAD.pack(0, self._chunks, self._hash.digest()))
        size, sha256 = self._file.tell(), self._hash.hexdigest()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.replace(self._path)

        return WrittenPart(size, sha256)

    def close(self) -> None:
        """
        Give up an unfinished part; nothing happens after `finish`.
        """
        if not self._file.closed:
            self._file.close()
            self._draft.unlink(missing_ok=True)

    def _put_chunk(self) -> None:
        if not self._waiting:
            return
        raw = pack([msgspec.Raw(one) for one in self._waiting])
        stored = zlib.compress(raw, _LEVEL)
        digest = hashlib.sha256(stored).digest()
        self._put(HEAD.pack(len(stored), len(raw), digest) + stored)
        self._chunks += 1
        self._waiting.clear()
        self._size = 0

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)


def check_part(path: Path, written: WrittenPart, kind: str) -> list[str]:
    """
    Accept a part that is what was written, to its last byte; the names of its records
    of that *kind*.

    Raises:
        DamagedBackup: it is not.
    """
    with _opened(path) as file:
        reader = PartReader(file, path.name)
        names = [record.name for record in reader.records() if record.kind == kind]
        if reader.read != written:
            reason = "it is another part than the manifest's"
            raise DamagedBackup.at(path.name, 0, reason)
        return names


def read_part(path: Path) -> Iterator[CopyRecord]:
    """
    The records of a part; each chunk is verified before any record of it comes.

    Raises:
        DamagedBackup: it is damaged, truncated or of a newer format.
    """
    with _opened(path) as file:
        yield from PartReader(file, path.name).records()


class PartReader:
    """
    Reads a part from its beginning.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._hash = hashlib.sha256()
        self._left = os.fstat(file.fileno()).st_size
        self._at = 0

    @property
    def read(self) -> WrittenPart:
        """
        Size and hash of what was read so far.
        """
        return WrittenPart(self._at, self._hash.hexdigest())

    def records(self) -> Iterator[CopyRecord]:
        """
        All records, up to the trailer.
        """
        self._check_magic()
        chunks = 0
        while True:
            at, before = self._at, self._hash.digest()
            stored, raw, digest = HEAD.unpack(self._read(HEAD.size))
            if not stored:
                if (raw, digest) != (chunks, before) or self._left:
                    raise self._damaged(at, "the trailer does not fit")
                return
            yield from self._chunk(at, stored, raw, digest)
            chunks += 1

    def _check_magic(self) -> None:
        if self._read(len(MAGIC)) != MAGIC:
            raise self._damaged(0, "it is no part of a backup")
        version = self._read(1)[0]
        if version != FORMAT:
            raise self._damaged(
                len(MAGIC), f"format {version}, and this everbus reads {FORMAT}"
            )

    def _chunk(self, at: int, stored: int, raw: int, digest: bytes) -> list[CopyRecord]:
        if not 0 < raw <= MOST_CHUNK_BYTES:
            raise self._damaged(at, f"a chunk of {raw} bytes of {MOST_CHUNK_BYTES}")
        data = self._read(stored)
        if hashlib.sha256(data).digest() != digest:
            raise self._damaged(at, "another SHA-256")
        unpacking = zlib.decompressobj()
        try:
            found = unpacking.decompress(data, raw + 1)
            if len(found) != raw or not unpacking.eof or unpacking.unused_data:
                raise self._damaged(at, f"not {raw} bytes when decompressed")
            return _records.decode(found)
        except (zlib.error, msgspec.MsgspecError) as error:
            raise self._damaged(at, f"it cannot be decoded ({error})") from error

    def _read(self, size: int) -> bytes:
        """
        The next *size* bytes; more than the file has are never asked for.
        """
        if size > self._left:
            raise self._damaged(self._at, "it is truncated")
        data = self._file.read(size)
        if len(data) != size:
            raise self._damaged(self._at, "it is truncated")
        self._hash.update(data)
        self._left -= size
        self._at += size
        return data

    def _damaged(self, at: int, reason: str) -> DamagedBackup:
        return DamagedBackup.at(self._name, at, reason)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
        raise DamagedBackup.at(path.name, 0, reason) from error
