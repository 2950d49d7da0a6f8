"""
The time by which commands are judged: the bus server's, when they were read.
"""

from datetime import UTC, datetime
from typing import NamedTuple, Self


class Now(NamedTuple):
    """
    The bus server's clock when the batch was read, in two forms.
    """

    ms: int
    datetime: datetime

    @classmethod
    def at(cls, ms: int) -> Self:
        """
        The time *ms* milliseconds after 1970, in UTC.
        """
        return cls(ms, datetime.fromtimestamp(ms / 1000, UTC))
