"""
Violations: the kinds, one violation, and the counts of a whole run.
"""

from collections import Counter
from typing import Literal, get_args

import msgspec

Kind = Literal[
    "lost",
    "doubled",
    "out_of_order",
    "forked",
    "gap",
    "unequal",
    "false_refusal",
    "applied_though_refused",
    "stale",
    "damaged",
    "foreign",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS: dict[Kind, str] = {
    "lost": "acknowledged, and not there",
    "doubled": "applied more than once",
    "out_of_order": "of one client in one session, not in the order of its calls",
    "forked": "two commands have, or were answered, one version or seq",
    "gap": "a version or seq is missing between two others",
    "unequal": "the content differs from what was sent, or two copies differ",
    "false_refusal": "refused for its version though no other command had moved it",
    "applied_though_refused": "refused, and applied all the same",
    "stale": "a read without something that was acknowledged before it",
    "damaged": "cannot be decoded, or is not what was stored by its checksum",
    "foreign": "nothing that this run has sent",
}
# Violations of each kind that are kept word for word.
KEPT = 5


class Violation(msgspec.Struct, frozen=True):
    """
    One difference between the acknowledged commands and the stored state.

    Attributes:
        number: the version or seq at which it stands; 0 if it has none.
        command_id: empty if the observation does not carry it.
    """

    kind: Kind
    session: str
    detail: str
    number: int = 0
    command_id: str = ""

    def __str__(self) -> str:
        kind = self.kind.replace("_", " ")
        number = f", number {self.number}" if self.number else ""
        command = f", command {self.command_id}" if self.command_id else ""

        return f"{kind}: session {self.session}{number}{command}: {self.detail}"


class Violations:
    """
    All violations of a run, in bounded memory.

    Attributes:
        counts: kind → number of violations.
        first: the first *kept* of each kind.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.counts: Counter[Kind] = Counter()
        self.first: list[Violation] = []
        self._kept = kept
        self._first_counts: Counter[Kind] = Counter()

    @property
    def clean(self) -> bool:
        """
        Whether there is none.
        """
        return not self.counts

    def note(self, violation: Violation, count: int = 1) -> None:
        """
        Count a violation; *count* above 1: it stands for so many of its kind.
        """
        self._keep(violation)
        self.counts[violation.kind] += count

    def add(self, others: "Violations") -> None:
        """
        Add the violations of another check.
        """
        for violation in others.first:
            self._keep(violation)
        self.counts.update(others.counts)

    def line(self) -> str:
        """
        The verdict in one line.
        """
        if self.clean:
            return "verdict: clean"
        found = (
            f"{self.counts[kind]:,} {kind.replace('_', ' ')}"
            for kind in KINDS
            if self.counts[kind]
        )
        return f"verdict: NOT clean: {', '.join(found)}"

    def _keep(self, violation: Violation) -> None:
        if self._first_counts[violation.kind] < self._kept:
            self._first_counts[violation.kind] += 1
            self.first.append(violation)
