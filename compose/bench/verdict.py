"""
What is found to be wrong, counted by kind; of each kind the first few are told.
"""

from collections import Counter
from typing import Literal, get_args

import msgspec

What = Literal[
    "lost",
    "duplicated",
    "out_of_order",
    "false_conflicts",
    "stale",
    "undone",
    "strange",
]
WHATS: tuple[What, ...] = get_args(What)
MEANINGS: dict[What, str] = {
    "lost": "acknowledged, and not there",
    "duplicated": "applied more than once",
    "out_of_order": "of one MAD in one session, not in the order of its calls",
    "false_conflicts": "refused for its version though nobody else had moved it",
    "stale": "a read that did not show what had been acknowledged before it",
    "undone": "refused, and applied all the same",
    "strange": "nothing that this bench has sent, or numbered wrongly",
}
TOLD = 5


class Finding(msgspec.Struct, frozen=True):
    """
    One thing that is not as it was acknowledged.
    """

    what: What
    session: str
    detail: str

    def __str__(self) -> str:
        return f"{self.what.replace('_', ' ')}: session {self.session}: {self.detail}"


class Findings:
    """
    All that was found, in bounded memory.

    Attributes:
        counts: what → how many.
        first: the first TOLD of each kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[What] = Counter()
        self.first: list[Finding] = []

    @property
    def clean(self) -> bool:
        """
        Whether nothing was found.
        """
        return not self.counts

    def note(self, what: What, session: str, detail: str, count: int = 1) -> None:
        """
        Count what was found; *count* if it is more than one of a kind.
        """
        self._tell(Finding(what, session, detail))
        self.counts[what] += count

    def add(self, others: "Findings") -> None:
        """
        Take over what somebody else found.
        """
        for one in others.first:
            self._tell(one)
        self.counts.update(others.counts)

    def line(self) -> str:
        """
        The verdict in one line.
        """
        if self.clean:
            return "verdict: clean"
        found = (
            f"{self.counts[what]:,} {what.replace('_', ' ')}"
            for what in WHATS
            if self.counts[what]
        )
        return f"verdict: NOT clean: {', '.join(found)}"

    def _tell(self, one: Finding) -> None:
        if sum(other.what == one.what for other in self.first) < TOLD:
            self.first.append(one)
