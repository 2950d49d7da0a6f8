"""
How far a backfill has come, and the report of refused rows: two files.

The position is written after the report and says how long that was, so that a killed
run leaves no row in it twice.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.migration.reading import RefusedRow


class Tally(msgspec.Struct):
    """
    What a backfill did so far, killed runs included.
    """

    conversations: int = 0
    created: int = 0
    appended: int = 0
    patched: int = 0
    refused: int = 0
    cut_over: int = 0


class BackfillPosition(msgspec.Struct, kw_only=True):
    """
    Where a backfill goes on.

    Attributes:
        after: position in the old store.
        mapping: hash of the mapping file; another one counts rows otherwise.
        report_bytes: length of the report up to here.
    """

    mapping: str
    after: Any = None  # JSON value
    report_bytes: int = 0
    tally: Tally = msgspec.field(default_factory=Tally)


class PositionFile:
    """
    The position on disk; replaced as a whole, after it has reached the disk.
    """

    def __init__(self, path: Path, mapping: str) -> None:
        self.path = path
        self._mapping = mapping

    def load(self) -> BackfillPosition:
        """
        The position, or the beginning if there is no file.

        Raises:
            Failed: the file is no position, or belongs to another mapping.
        """
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=BackfillPosition)
        except FileNotFoundError:
            return BackfillPosition(mapping=self._mapping)
        except (OSError, msgspec.MsgspecError) as error:
            raise Failed(
                f"{self.path}: {error}; wanted a position of `everbus migrate "
                "backfill`. Delete it to begin anew: nothing is copied twice",
                USAGE,
            ) from error
        if found.mapping != self._mapping:
            raise Failed(
                f"{self.path} belongs to another version of the mapping; delete it to "
                "begin anew: what is copied is compared, not copied again",
                USAGE,
            )
        return found

    def save(self, position: BackfillPosition) -> None:
        """
        Replace the file.
        """
        draft = self.path.with_name(f"{self.path.name}.new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(position))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)

    def remove(self) -> None:
        """
        The backfill has come to the end.
        """
        self.path.unlink(missing_ok=True)


class RefusedReport:
    """
    The refused rows, one JSON object a line.
    """

    def __init__(self, path: Path, length: int) -> None:
        """
        Go on behind the first *length* bytes.
        """
        self.path = path
        self._file = path.open("ab")
        self._file.truncate(min(length, path.stat().st_size))

    def write(self, row: RefusedRow) -> None:
        """
        Add a row.
        """
        self._file.write(msgspec.json.encode(row) + b"\n")

    def sync(self) -> int:
        """
        Bring all rows to the disk; return the length.
        """
        self._file.flush()
        os.fsync(self._file.fileno())

        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """
        Close the file; an empty one is removed.
        """
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
