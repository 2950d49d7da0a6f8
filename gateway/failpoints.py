"""
Named points at which a test can make a process die, as kill -9 would.

Armed by `EVERBUS_FAIL_POINT=<point>:<nth passing>`, in development only.
"""

import os
import signal
from collections.abc import Callable

# What a replica passes in its lanes.
LANE = ("after_read", "after_load", "before_commit", "after_commit", "takeover")
DRAIN = ("drain_read", "drain_written", "drain_confirmed")
# What the cold tier's archives pass while they are put together.
VAULT = ("archive_chunk", "archive_document", "archive_manifest", "archive_verified")
ARCHIVER = ("archive_sent", "purge_step", "restore_chunk", "removal")
# What a replica passes when a session returns.
RETURN = ("return_fetched", "return_swapped")
# What the owner of the leases passes when a MAD is lost.
PRESENCE = ("loss_declared", "loss_told")
# What `everbus backup` and `everbus restore` pass.
BACKUP = ("backup_page", "backup_part", "backup_noted", "backup_manifest")
RESTORE = ("restore_rows", "restore_documents", "restore_part", "restore_noted")
POINTS = (*LANE, *DRAIN, *VAULT, *ARCHIVER, *RETURN, *PRESENCE, *BACKUP, *RESTORE)

FailPoint = Callable[[str], object]

# Every command passes some points: a call of C that does nothing with the name.
disarmed: FailPoint = bool


def armed(setting: str) -> FailPoint:
    """
    A fail point that kills this process at the nth passing of one point.

    Raises:
        ValueError: *setting* is not `<point>:<n>` with a known point.
    """
    point, _, nth = setting.partition(":")
    if point not in POINTS or not nth.isdecimal():
        raise ValueError(
            f"fail point {setting!r}; wanted <point>:<n>, point one of {POINTS}"
        )
    left = int(nth)

    def passing(name: str) -> None:
        nonlocal left
        if name != point:
            return
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return passing
