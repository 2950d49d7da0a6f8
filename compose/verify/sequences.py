"""
Order of numbers: one client's marks, and the versions or seqs of one session.

Both take the numbers as they come and keep only what is missing.
"""

from everbus.compose.verify.expectation import ClientMarks
from everbus.compose.verify.violations import Kind


class MarkSequence:
    """
    One client's marks of one kind in one session, in the order in which they stand.
    """

    __slots__ = ("_marks", "_missing", "_next")

    def __init__(self, marks: ClientMarks) -> None:
        self._marks = marks
        self._next = 1
        self._missing: set[int] = set()

    def see(self, n: int, number: int = 0) -> Kind | None:
        """
        The violation by mark *n* at the version or seq *number*, if any.
        """
        marks, due = self._marks, self._next
        if n == due and n <= marks.last:
            self._next = n + 1
        elif not 1 <= n <= marks.last:
            return "foreign"
        elif n < due and n not in self._missing:
            return "doubled"
        else:
            self._missing.discard(n)
            self._missing.update(range(due, n))
            self._next = max(due, n + 1)
        if n in marks.refused:
            return "applied_though_refused"
        if marks.exact and marks.answer_of(n) not in (0, number):
            return "forked"
        return "out_of_order" if n < due else None

    def lost(self) -> list[int]:
        """
        Acknowledged marks that have not come.
        """
        marks = self._marks
        absent = self._missing.union(range(self._next, marks.last + 1))

        return sorted(absent - marks.refused - marks.doubtful)


class Numbering:
    """
    The versions or seqs of one session: each follows the one before.

    Attributes:
        last: the highest so far.
    """

    __slots__ = ("_gaps", "last")

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self._gaps: list[range] = []

    def see(self, number: int) -> Kind | None:
        """
        The violation by the number that comes now, if any.
        """
        if number == self.last + 1:
            self.last = number
            return None
        if number > self.last:
            self._gaps.append(range(self.last + 1, number))
            self.last = number
            return "gap"
        for place, gap in enumerate(self._gaps):
            if number in gap:
                parts = range(gap.start, number), range(number + 1, gap.stop)
                self._gaps[place : place + 1] = [part for part in parts if part]
                return "out_of_order"
        return "forked"
