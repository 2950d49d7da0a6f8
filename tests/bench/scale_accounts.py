"""
What the clients of a measure were told, against what there is.

Acknowledged is what counts: an acknowledged change that is missing, a change or entry
that was made twice, an entry at a wrong place. Of what nobody was told the end of
either is right.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.bench.scale_work import Report


class Accounts:
    """
    What all clients were told, added up.
    """

    def __init__(self, reports: Sequence[Report]) -> None:
        self.versions = sum((r.versions for r in reports), Counter[str]())
        self.counted = sum((r.counted for r in reports), Counter[str]())
        self.doubtful = Counter(s for r in reports for s in r.doubtful)
        self.unknown = {tuple(u) for r in reports for u in r.unknown}
        self.appended: dict[str, dict[str, int]] = {}
        for report in reports:
            for session, numbers in report.appended.items():
                self.appended.setdefault(session, {}).update(numbers)

    def wrong_versions(self, found: Mapping[str, int]) -> int:
        """
        By how many changes *found* (session → version) differs.
        """
        wrong = 0
        for session, version in found.items():
            told = 1 + self.versions[session]
            most = told + self.doubtful[session]
            wrong += max(0, told - version, version - most)
        return wrong

    def wrong_counts(self, found: Mapping[str, int]) -> int:
        """
        By how many *found* (session of the crowd → its count) differs: lost updates.
        """
        return sum(
            max(0, self.counted[s] - n, n - self.counted[s] - self.doubtful[s])
            for s, n in found.items()
        )

    def wrong_entries(self, found: Mapping[str, Sequence[tuple[int, str, int]]]) -> int:
        """
        How many entries are lost, doubled or out of order in *found*: session → seq,
        author and number of each entry.
        """
        wrong = 0
        for session in found.keys() | self.appended.keys():
            entries = sorted(found.get(session, ()))
            seqs = [seq for seq, _, _ in entries]
            wrong += sum(seq != n for n, seq in enumerate(seqs, 1))
            for mad in {a for _, a, _ in entries} | set(self.appended.get(session, {})):
                numbers = [n for _, author, n in entries if author == mad]
                wrong += self._wrong_numbers(session, mad, numbers)
        return wrong

    def _wrong_numbers(self, session: str, mad: str, numbers: Sequence[int]) -> int:
        count = self.appended.get(session, {}).get(mad, 0)
        there = set(numbers)
        wanted = [
            n
            for n in range(1, count + 1)
            if n in there or (session, mad, n) not in self.unknown
        ]
        if numbers == wanted:
            return 0
        lost, doubled = len(set(wanted) - there), len(numbers) - len(there)

        return max(1, lost + doubled + len(there - set(wanted)))
