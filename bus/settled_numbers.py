"""
The state of a publisher's numbers, as the managers report it: settled, open, refused.
"""

from bisect import bisect_right
from typing import Any

import msgspec

SETTLED_KIND = "request.settled"
# The field of an announcement on the wake-up channel.
REFUSED = "refused_command"


class RefusedCommand(msgspec.Struct, frozen=True, array_like=True):
    """
    A command without a reply that the managers refused; it is a dead letter.

    Attributes:
        id: the command's id.
        code: code of the refusal.
        message: text for people.
        kind: kind of the command.
        session: its session, or empty.
        details: fields for programs, as of the exception.
    """

    id: str
    code: str
    message: str
    kind: str = ""
    session: str = ""
    details: dict[str, Any] = {}  # JSON values


class SettledNumbers(msgspec.Struct, frozen=True):
    """
    Reply to `request.settled`: the numbers of one instance in one partition.

    Attributes:
        lineage: of the partition's hot data; another one than before: the bus may have
            lost commands, and what is not settled is sent again.
        mark: the highest settled number.
        open: runs of numbers below it that are not settled.
        refused: the latest refused commands without a reply.
    """

    lineage: int = 0
    mark: int = 0
    open: tuple[tuple[int, int], ...] = ()
    refused: tuple[RefusedCommand, ...] = ()

    def settles(self, n: int) -> bool:
        """
        Whether number *n* is settled.
        """
        if n > self.mark:
            return False
        before = bisect_right(self.open, n, key=_first)

        return before == 0 or n > self.open[before - 1][1]


def _first(run: tuple[int, int]) -> int:
    return run[0]
