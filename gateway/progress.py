"""
How far one publisher's commands are settled: idempotency in constant memory.

A publisher numbers its commands 1, 2, 3 … per partition, and its ingress keeps
their order, so one high-water mark tells old from new exactly (as idempotent
producers have it in Kafka, KIP-98). Numbers below the mark that are not settled
yet, because their session waits or because they never arrived, are its gaps.
"""

from typing import Self

from gateway.fencing import Fences

MAX_GAPS = 1024


class Progress:
    """
    The settled numbers of one publisher instance in one partition.

    Attributes:
        mark: the highest number seen settled.
        gaps: numbers below the mark that are not settled.
        seen_s: unix seconds of the last settlement; old records are forgotten.
        fences: which epochs of the instance are over; they have a record of their
            own, so `pack` leaves them out.
    """

    __slots__ = ("fences", "gaps", "mark", "seen_s")

    def __init__(
        self, mark: int = 0, gaps: set[int] | None = None, seen_s: int = 0
    ) -> None:
        self.mark = mark
        self.gaps = gaps or set()
        self.seen_s = seen_s
        self.fences: Fences = ()

    @classmethod
    def starting_at(cls, n: int) -> Self:
        """
        The progress of a publisher first seen at *n*: all before it is gone.

        Numbers before *n* cannot be told from settled ones any more (the record
        was forgotten, or lost with the server's data), and applying one twice
        would be worse than refusing it.
        """
        return cls(n - 1)

    @classmethod
    def parse(cls, packed: bytes) -> Self:
        """
        The progress that `pack` wrote.
        """
        mark, seen_s, *gaps = packed.decode().split(",")
        return cls(int(mark), {int(gap) for gap in gaps}, int(seen_s))

    def pack(self) -> str:
        """
        One compact line: mark, last settlement, gaps in ascending order.
        """
        return ",".join(map(str, (self.mark, self.seen_s, *sorted(self.gaps))))

    def settled(self, n: int) -> bool:
        """
        Whether number *n* has been settled.
        """
        return n <= self.mark and n not in self.gaps

    def settle(self, n: int, now_s: int) -> None:
        """
        Note *n* as settled; a jump ahead leaves gaps behind.

        At most MAX_GAPS are remembered, the newest; an older one counts as
        settled from then on, which can refuse a command but never repeat one.
        """
        self.seen_s = now_s
        if n <= self.mark:
            self.gaps.discard(n)
            return
        first = max(self.mark + 1, n - MAX_GAPS)
        if first < n:
            self.gaps.update(range(first, n))
            self._bound()
        self.mark = n

    def _bound(self) -> None:
        excess = len(self.gaps) - MAX_GAPS
        if excess > 0:
            self.gaps.difference_update(sorted(self.gaps)[:excess])
