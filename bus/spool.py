"""
The spool: commands that wait on the MAD's own disk until they are on the bus.

One SQLite file, held by one process at a time. After `add` returns, the command
survives SIGKILL of this process, since it is in the file (WAL) and the kernel writes it
out; with `synchronous="FULL"` also loss of power, at a hundred times the cost. Each
step is one transaction, so nothing is ever half-written.

Neither tokens nor grants are in the file. Commands whose outcome cannot be known any
more are moved to the table `doubtful`, in readable form:
`sqlite3 FILE 'SELECT * FROM doubtful'`.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self
from zlib import crc32

import msgspec
import structlog

from everbus.bus.errors import EverbusError, Invalid, Malformed, Overloaded
from everbus.bus.messages import unpack, unpack_envelope
from everbus.bus.sqlite_file import SqliteFile

log = structlog.get_logger()

MAX_BYTES = 256 * 1024 * 1024
# Bytes of a row beside its command.
ROW_BYTES = 64
SCHEMA_VERSION = 1
# "ebsp"; marks a file as a spool (SQLite, PRAGMA application_id).
APPLICATION_ID = 0x65627370

_TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """
CREATE TABLE waiting (
    row INTEGER PRIMARY KEY, partition INTEGER NOT NULL, at_s INTEGER NOT NULL,
    attempted_s INTEGER, crc INTEGER NOT NULL, command BLOB NOT NULL
)
""",
    """
CREATE TABLE doubtful (
    row INTEGER PRIMARY KEY, at TEXT NOT NULL, attempted TEXT, cause TEXT NOT NULL,
    id TEXT, kind TEXT, session TEXT, body BLOB NOT NULL
)
""",
)
_NOTE = "INSERT OR REPLACE INTO about VALUES (?, ?)"
_COUNTS = "SELECT partition, count(*) FROM waiting GROUP BY partition"
_ADD = "INSERT INTO waiting VALUES (?, ?, ?, ?, ?, ?)"
_READ = (
    "SELECT row, partition, attempted_s, crc, command FROM waiting WHERE row > ? "
    "ORDER BY row LIMIT ?"
)
_MARK = "UPDATE waiting SET attempted_s = ? WHERE row = ? AND attempted_s IS NULL"
_COMMAND = "SELECT command FROM waiting WHERE row = ?"
_DELETE = "DELETE FROM waiting WHERE row = ?"
_MEASURE = """
SELECT (SELECT coalesce(sum(length(command) + ?1), 0) FROM waiting)
     + (SELECT coalesce(sum(length(body) + ?1), 0) FROM doubtful)
"""
_EXTENT = """
SELECT count(*), coalesce(max(row), 0),
       (SELECT coalesce(max(row), 0) FROM doubtful) FROM waiting
"""
_DOUBT = (
    "INSERT OR REPLACE INTO doubtful SELECT row, datetime(at_s, 'unixepoch'), "
    "datetime(attempted_s, 'unixepoch'), ?, ?, ?, ?, ? FROM waiting WHERE row = ?"
)


class SpooledCommand(NamedTuple):
    """
    One command in the file.

    Attributes:
        attempted_s: unix seconds since when it may have arrived; None if it cannot
            have.
        crc: CRC-32 of the command when it was stored; SQLite has no checksum.
        command: a packed envelope, without grant and epoch.
    """

    row: int
    partition: int
    attempted_s: int | None
    crc: int
    command: bytes

    @property
    def sound(self) -> bool:
        """
        Whether the command is undamaged.
        """
        return crc32(self.command) == self.crc


class Spool:
    """
    The commands of one MAD that are not known to be on the bus; made by `open`.

    Attributes:
        path: the file.
        max_bytes: most bytes it may hold.
        count: number of waiting commands.
        bytes: bytes of waiting and doubtful commands, counted against *max_bytes*.
        last: the newest row ever used.
        partitions: number of partitions of its last bus; None before the first.
        lease_ms: lease TTL of that bus; None if unknown.
    """

    def __init__(self, file: SqliteFile, mad: str, max_bytes: int) -> None:
        self.path = file.path
        self.max_bytes = max_bytes
        self._file = file
        self._spent: list[tuple[int, int]] = []
        about = dict(file.rows("SELECT name, value FROM about"))
        self._check(about, mad)
        self.partitions = _number(about.get("partitions"))
        self.lease_ms = _number(about.get("lease_ms"))
        self.count: int
        [[self.count, *last]] = file.rows(_EXTENT)
        self.last: int = max(last)
        self.bytes = self._measured()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mad: str,
        *,
        max_bytes: int = MAX_BYTES,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
    ) -> Self:
        """
        Open the spool in the file *path*; create it with mode 0600 if it is missing.

        Raises:
            Unavailable: another process uses it.
            Invalid: it is damaged, of another MAD, of another schema, or not a spool;
                then its content is not changed. Or it cannot be created there.
            Overloaded: the disk is full.
        """
        file = SqliteFile(Path(path).absolute(), APPLICATION_ID, partial(_make, mad))
        try:
            spool = cls(file, mad, max_bytes)
            file.write_ahead(synchronous)
        except BaseException:
            file.close()
            raise

        return spool

    def remember(self, partitions: int, lease_ms: int | None) -> None:
        """
        Store the parameters of the bus, for a start while it is away.

        Raises:
            Invalid: waiting commands are numbered for another number of *partitions*.
        """
        if self.partitions not in (None, partitions) and self.count:
            raise Invalid(
                f"{self.count} commands in the spool {self.path} are numbered for "
                f"{self.partitions} partitions, and this bus has {partitions}. "
                "Connect to the bus that they are for and flush(), or move the "
                "file away",
                field="spool",
            )
        if (partitions, lease_ms) == (self.partitions, self.lease_ms):
            return
        named = {"partitions": partitions, "lease_ms": lease_ms}
        known = [(name, str(one)) for name, one in named.items() if one is not None]
        with self._file.transaction():
            self._file.execute_each(_NOTE, known)
        self.partitions, self.lease_ms = partitions, lease_ms

    def add(self, partition: int, command: bytes, *, attempted: bool) -> int:
        """
        Store *command* behind all others; return its row. It survives SIGKILL from now
        on.

        It adds about 16 us to an append of 400 bytes, removal included (2 cores, virtio
        disk), with FULL about 0.5 ms; about one in some hundred takes ms, when SQLite
        moves its log into the file.

        Args:
            attempted: whether it counts as possibly arrived: right for a command that
                is sent at once, since that saves `mark`.

        Raises:
            Overloaded: the spool or the disk is full; nothing was stored.
        """
        size = len(command) + ROW_BYTES
        if self.bytes + size > self.max_bytes:
            raise Overloaded(
                f"the spool {self.path} is full: {self.count} commands, {self.bytes} "
                f"bytes; its limit is {self.max_bytes} bytes. Wait until the bus "
                "takes them (flush()), give it a larger limit, or see its table "
                "`doubtful`",
                waiting=self.count,
                limit=self.max_bytes,
            )
        row, now_s = self.last + 1, int(time.time())
        since = now_s if attempted else None
        crc = crc32(command)
        self._file.execute(_ADD, row, partition, now_s, since, crc, command)
        self.last = row
        self.count += 1
        self.bytes += size

        return row

    def read(self, after: int, limit: int, max_bytes: int) -> list[SpooledCommand]:
        """
        The oldest commands behind the row *after*: at most *limit*, up to *max_bytes*.
        """
        rows: list[SpooledCommand] = []
        with (
            self._file.translating_errors(),
            closing(self._file.execute(_READ, after, limit)) as found,
        ):
            for one in found:
                rows.append(SpooledCommand(*one))
                max_bytes -= len(rows[-1].command)
                if max_bytes <= 0:
                    break
        return rows

    def counts(self) -> Counter[int]:
        """
        Number of waiting commands by partition.
        """
        return Counter(dict(self._file.rows(_COUNTS)))

    def mark(self, rows: Iterable[int], now_s: float) -> None:
        """
        Record that the commands in *rows* may have arrived from now on.

        Raises:
            Overloaded: the disk is full; the commands must not be sent.
        """
        with self._file.transaction():
            self._file.execute_each(_MARK, [(int(now_s), row) for row in rows])

    def remove(self, rows: Iterable[tuple[int, int]]) -> None:
        """
        Delete commands that are on the bus, by row and bytes.

        A failed deletion is repeated with the next one: a command that stays too long
        is sent again, and the replicas know its number.
        """
        before = len(self._spent)
        self._spent += rows
        try:
            with self._file.transaction():
                self._file.execute_each(_DELETE, [(row,) for row, _ in self._spent])
        except EverbusError as error:
            if not before:
                log.warning("spool.not_cleared", error=error.message)
            return
        self.count -= len(self._spent)
        self.bytes -= sum([size + ROW_BYTES for _, size in self._spent])
        self._spent.clear()

    def set_aside(self, rows: Sequence[int], cause: str) -> None:
        """
        Move commands that must not be sent to the table `doubtful`.
        """
        with self._file.transaction():
            for row in rows:
                [[command]] = self._file.rows(_COMMAND, row)
                self._file.execute(_DOUBT, cause, *_readable(command), row)
                self._file.execute(_DELETE, row)
            measured = self._measured()
        self.count -= len(rows)
        self.bytes = measured

    def close(self) -> None:
        """
        Close the file; waiting commands stay in it.
        """
        if self._spent:
            self.remove(())
        self._file.close()

    def _check(self, about: dict[str, str], mad: str) -> None:
        schema = about.get("schema")
        if schema != str(SCHEMA_VERSION):
            raise self._file.refused(
                f"has schema {schema}, this SDK knows {SCHEMA_VERSION}. Flush it with "
                "the everbus that made it, or name another file"
            )
        if about.get("mad") != mad:
            raise self._file.refused(
                f"holds commands of the MAD {about.get('mad')}, not of {mad}. Each MAD "
                "needs a file of its own"
            )

    def _measured(self) -> int:
        [[found]] = self._file.rows(_MEASURE, ROW_BYTES)
        return int(found)


def _make(mad: str, file: SqliteFile) -> None:
    for table in _TABLES:
        file.execute(table)
    file.execute_each(_NOTE, [("mad", mad), ("schema", str(SCHEMA_VERSION))])


def _number(text: str | None) -> int | None:
    return int(text) if text is not None else None


def _readable(command: bytes) -> tuple[str, str, str, str | bytes]:
    """
    Id, kind, session and body of a packed command, the body as JSON.
    """
    try:
        envelope = unpack_envelope(command)
        body = msgspec.json.encode(unpack(envelope.body, object)).decode()
    except (Malformed, msgspec.MsgspecError):
        return "", "", "", command
    return envelope.id, envelope.kind, envelope.session, body
