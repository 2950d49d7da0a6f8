"""
The expectation: the writes that were sent to a session, and their answers.

Each client numbers its writes to a session, so an acknowledged write needs one bit of
a version, or no memory at all. Only refused and unanswered writes take memory: about
60 bytes each. An *exact* expectation also keeps the version or seq of each answer:
4 bytes a write.
"""

from array import array
from collections.abc import Iterator

# Bits of a version: an update was answered with it; an update that expected it was
# refused.
_ANSWERED, _EXPECTED = 1, 2
# A version that is further ahead cannot come from the writes that were sent.
MOST_VERSIONS = 100_000_000

# A client's number, or its name.
Client = int | str


class ClientMarks:
    """
    The marks 1, 2, 3 … of one client's writes to one session, in call order.

    Attributes:
        last: the highest mark that was given.
        doubtful: under way or never answered: there once, or not at all.
        refused: must not be there.
        answers: mark → the version or seq in its answer, 0 if it had none; empty
            unless the expectation is exact.
    """

    __slots__ = ("answers", "doubtful", "exact", "last", "refused")

    def __init__(self, *, exact: bool = False) -> None:
        self.last = 0
        self.exact = exact
        self.doubtful: set[int] = set()
        self.refused: set[int] = set()
        self.answers = array("I")

    @property
    def acknowledged(self) -> int:
        """
        The number of acknowledged writes.
        """
        return self.last - len(self.doubtful) - len(self.refused)

    def give(self) -> int:
        """
        The next mark; it is doubtful until an answer settles it.
        """
        self.last += 1
        self.doubtful.add(self.last)

        return self.last

    def acknowledge(self, n: int, number: int = 0) -> None:
        """
        The write was applied, at the version or seq *number* if its answer has one.
        """
        self.doubtful.discard(n)
        if self.exact and number:
            self.answers.extend([0] * (n + 1 - len(self.answers)))
            self.answers[n] = number

    def refuse(self, n: int) -> None:
        """
        The write was refused: it must not be there.
        """
        self.doubtful.discard(n)
        self.refused.add(n)

    def answer_of(self, n: int) -> int:
        """
        The version or seq in the answer to mark *n*; 0 if it is not known.
        """
        return self.answers[n] if n < len(self.answers) else 0

    def highest_acknowledged(self) -> int:
        """
        The highest acknowledged mark; 0 if there is none.
        """
        n = self.last
        while n and (n in self.doubtful or n in self.refused):
            n -= 1

        return n


class SessionExpectation:
    """
    The writes that were sent to one session, and their answers.

    Attributes:
        version: the session's version before the first write; its timeline was empty.
        highest: the highest version in an answer; highest_seq: the highest seq.
        answered: how many updates were answered with a version.
        unsettled: clients that have published and not waited for an answer since.
    """

    __slots__ = (
        *("_exact", "_versions", "answered", "appends", "highest", "highest_seq"),
        *("id", "partition", "unsettled", "updates", "version"),
    )

    def __init__(
        self, id: str, version: int, partition: int = 0, *, exact: bool = False
    ) -> None:
        self.id = id
        self.partition = partition
        self.version = self.highest = version
        self.highest_seq = 0
        self.answered = 0
        self.unsettled: set[Client] = set()
        self.appends: dict[Client, ClientMarks] = {}
        self.updates: dict[Client, ClientMarks] = {}
        self._exact = exact
        self._versions = bytearray()

    def appends_of(self, client: Client) -> ClientMarks:
        """
        The marks of a client's timeline entries.
        """
        return self._marks(self.appends, client)

    def updates_of(self, client: Client) -> ClientMarks:
        """
        The marks of a client's updates.
        """
        return self._marks(self.updates, client)

    def open_clients(self) -> set[Client]:
        """
        The clients whose writes may still be on their way.
        """
        both = (*self.appends.items(), *self.updates.items())

        return self.unsettled.union(client for client, its in both if its.doubtful)

    def answer(self, version: int) -> bool:
        """
        An update was answered with *version*; False if another one was, too.
        """
        place = self._place(version)
        again = self._versions[place] & _ANSWERED
        self._versions[place] |= _ANSWERED
        self.answered += 1
        self.highest = max(self.highest, version)

        return not again

    def refuse_expecting(self, version: int) -> None:
        """
        An update that expected *version* was refused.
        """
        self._versions[self._place(version)] |= _EXPECTED

    def answered_above(self, version: int) -> list[int]:
        """
        The versions above *version* that updates were answered with.
        """
        first = max(version + 1 - self.version, 0)

        return [
            self.version + place
            for place in range(first, len(self._versions))
            if self._versions[place] & _ANSWERED
        ]

    def unexplained_refusals(self) -> Iterator[int]:
        """
        Versions that a refused update expected and no answer replaced.
        """
        for place, bits in enumerate(self._versions):
            following = self._versions[place + 1 : place + 2]
            if bits & _EXPECTED and not (following and following[0] & _ANSWERED):
                yield self.version + place

    def _marks(self, marks: dict[Client, ClientMarks], client: Client) -> ClientMarks:
        found = marks.get(client)
        if found is None:
            found = marks[client] = ClientMarks(exact=self._exact)

        return found

    def _place(self, version: int) -> int:
        place = version - self.version
        if not 0 <= place < MOST_VERSIONS:
            raise ValueError(f"version {version} of a session made at {self.version}")
        if place >= len(self._versions):
            self._versions.extend(bytes(place + 1 - len(self._versions)))

        return place
