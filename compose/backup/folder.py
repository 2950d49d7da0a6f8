"""
The folder of a backup: its parts, its progress while it is made, its manifest at last.

| file | what |
|---|---|
| `keys.part` | wrapped data keys of encryption at rest |
| `removals.part` | archives that were to be removed |
| `sessions-00001.part` … | sessions with all their rows, and archives |
| `progress.json` | what is finished; while there is no manifest |
| `manifest.json` | the last file: the backup is whole |
"""

import hashlib
import os
import re
from pathlib import Path

import msgspec

from everbus.bus.errors import AlreadyExists, Invalid, Unavailable
from everbus.compose.backup.format import FORMAT, DamagedBackup
from everbus.compose.stack_folder import try_lock, write_whole

PROGRESS, MANIFEST, LOCK = "progress.json", "manifest.json", ".lock"
_OURS = re.compile(
    r"\.lock|\.?(keys\.part|removals\.part|sessions-\d{5,}\.part|progress\.json"
    r"|manifest\.json)(\.draft)?"
)
# Sessions that a report names; the others are counted.
MOST_NAMED = 1_000


class BackupPart(msgspec.Struct, frozen=True, kw_only=True):
    """
    A finished part.

    Attributes:
        counts: kind of record → number; `sessions`, `tombstones`, rows, archives.
        after: the id of its last session; a backup goes on behind it.
    """

    name: str
    bytes: int
    sha256: str
    counts: dict[str, int] = {}
    after: str = ""


class NamedSession(msgspec.Struct, frozen=True):
    """
    A session with a trouble that a report names.
    """

    session: str
    reason: str


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    A backup, or how far it is.

    Attributes:
        id: random; a restore notes it in the database.
        database: the name of the database that was read.
        lineage: the highest that claimed any session.
        begun: all that MongoDB held then is in it, as it was then or later.
        finished: when its last part was read; empty: it is not.
        with_archives: the archives' objects are in it.
        with_keys: the wrapped data keys are in it.
        sessions_done: no sessions are left to read.
        unsettled: sessions that are not in it, or lack rows in MongoDB, with reason.
    """

    id: str
    everbus: str
    database: str
    begun: str
    lineage: int = 0
    finished: str = ""
    with_archives: bool = False
    with_keys: bool = True
    sessions_done: bool = False
    parts: tuple[BackupPart, ...] = ()
    unsettled: tuple[NamedSession, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """
        The sums over all parts.
        """
        sums: dict[str, int] = {}
        for part in self.parts:
            for kind, count in part.counts.items():
                sums[kind] = sums.get(kind, 0) + count
        return sums

    def part(self, name: str) -> BackupPart | None:
        """
        The finished part of that name.
        """
        return next((part for part in self.parts if part.name == name), None)


class _Sealed(msgspec.Struct, frozen=True):
    format: int
    sha256: str
    backup: msgspec.Raw


class BackupFolder:
    """
    One backup on the disk. Everything in it is readable by this user alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open_for_writing(self) -> BackupManifest | None:
        """
        Make the folder and take its lock; returns how far a killed backup came.

        Raises:
            AlreadyExists: it holds a finished backup, or something else.
            Unavailable: another process writes there.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise AlreadyExists(f"{self.path} is a file; name a new folder") from error
        if any(not _OURS.fullmatch(one.name) for one in self.path.iterdir()):
            raise AlreadyExists(f"{self.path} is not empty; name a new folder")
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(self._lock):
            self.close()
            raise Unavailable(f"another `everbus backup` writes into {self.path}")
        if (self.path / MANIFEST).exists():
            raise AlreadyExists(f"{self.path} has a finished backup; name a new folder")
        found = self._read(PROGRESS) if (self.path / PROGRESS).exists() else None
        self._clear(found)

        return found

    def note(self, progress: BackupManifest) -> None:
        """
        Keep how far the backup is; what is noted is never read from MongoDB again.
        """
        _sync(self.path)
        write_whole(self.path / PROGRESS, _sealed(progress))

    def finish(self, manifest: BackupManifest) -> None:
        """
        Put the manifest: from now on the backup is whole.
        """
        _sync(self.path)
        write_whole(self.path / MANIFEST, _sealed(manifest))
        _sync(self.path)
        (self.path / PROGRESS).unlink(missing_ok=True)

    def manifest(self) -> BackupManifest:
        """
        The manifest of a finished backup.

        Raises:
            Invalid: there is none.
            DamagedBackup: it is damaged, or of a newer format.
        """
        if not (self.path / MANIFEST).exists():
            if (self.path / PROGRESS).exists():
                raise Invalid(
                    f"the backup in {self.path} is not finished; run the same "
                    "`everbus backup` again, it goes on"
                )
            raise Invalid(f"{self.path} holds no backup: no {MANIFEST} is there")
        return self._read(MANIFEST)

    def close(self) -> None:
        """
        Release the folder.
        """
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(self, found: BackupManifest | None) -> None:
        """
        Remove what a killed backup had not noted.
        """
        kept = {part.name for part in found.parts} if found else set()
        for file in self.path.iterdir():
            if file.suffix in {".part", ".draft"} and file.name not in kept:
                file.unlink()

    def _read(self, name: str) -> BackupManifest:
        try:
            sealed = msgspec.json.decode((self.path / name).read_bytes(), type=_Sealed)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DamagedBackup.at(
                name, 0, f"it cannot be decoded ({error})"
            ) from error
        if sealed.format != FORMAT:
            raise DamagedBackup.at(
                name, 0, f"format {sealed.format}, and this everbus reads {FORMAT}"
            )
        if hashlib.sha256(bytes(sealed.backup)).hexdigest() != sealed.sha256:
            raise DamagedBackup.at(name, 0, "another SHA-256")
        try:
            return msgspec.json.decode(sealed.backup, type=BackupManifest)
        except msgspec.MsgspecError as error:
            raise DamagedBackup.at(
                name, 0, f"it cannot be decoded ({error})"
            ) from error


def _sealed(manifest: BackupManifest) -> str:
    body = msgspec.json.encode(manifest)
    digest = hashlib.sha256(body).hexdigest()

    return msgspec.json.encode(_Sealed(FORMAT, digest, msgspec.Raw(body))).decode()


def _sync(folder: Path) -> None:
    """
    Put the folder's names on the disk.
    """
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
