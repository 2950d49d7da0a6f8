"""
What a restore did, and what it could not do.
"""

import msgspec

from everbus.compose.backup.folder import MOST_NAMED, NamedSession
from everbus.compose.backup.format import DamagedBackup


class DamagedPart(msgspec.Struct, frozen=True):
    """
    A part of which nothing was used.
    """

    part: str
    offset: int
    reason: str


class RestoreReport(msgspec.Struct, kw_only=True):
    """
    The result of a restore, or of a check.

    Attributes:
        earlier_parts: parts that an earlier run has restored; not counted below.
        sessions: restored ones, tombstones too.
        rows: timeline entries, events, notices, snapshots and checkpoints written.
        left_alone: sessions that are there as far as in the backup or farther, or
            were deleted since.
        objects: archive objects that were put into the cold tier.
        unchecked_archives: without a cold tier nobody looked for them.
        not_restored: sessions and archives that need a look, with the reason; the
            first ones.
        troubles: number of those.
        damaged: parts of which nothing was used.
    """

    earlier_parts: int = 0
    sessions: int = 0
    rows: int = 0
    left_alone: int = 0
    objects: int = 0
    unchecked_archives: int = 0
    troubles: int = 0
    not_restored: list[NamedSession] = []
    damaged: list[DamagedPart] = []

    @property
    def is_clean(self) -> bool:
        """
        Whether all of the backup is there now.
        """
        return not self.damaged and not self.troubles

    def name(self, session_id: str, reason: str) -> None:
        """
        Note a trouble.
        """
        self.troubles += 1
        if len(self.not_restored) < MOST_NAMED:
            self.not_restored.append(NamedSession(session_id, reason))


def damage_of(error: DamagedBackup) -> DamagedPart:
    """
    The damage as a report names it.
    """
    details = error.details

    return DamagedPart(details["part"], details["offset"], error.message)
