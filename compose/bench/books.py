"""
What was sent and what was answered: a session's book, a MAD's marks in it.

Marks are numbered, so what is kept of a command that was acknowledged is one bit of a
version, or nothing. Only what was refused or never answered takes memory: about 60
bytes each.
"""

from collections.abc import Iterator

# Of a version: an update was told that it made it; one was refused expecting it.
_TOLD, _EXPECTED = 1, 2
# A version so far ahead is no count of what was sent.
MOST_VERSIONS = 100_000_000


class Marks:
    """
    The numbers 1, 2, 3 … of what one MAD sends to one session, in that order.

    Attributes:
        last: the highest that was given out.
        doubtful: under way, or never answered: there once or not at all.
        refused: never to be there.
    """

    __slots__ = ("doubtful", "last", "refused")

    def __init__(self) -> None:
        self.last = 0
        self.doubtful: set[int] = set()
        self.refused: set[int] = set()

    @property
    def kept(self) -> int:
        """
        How many were acknowledged.
        """
        return self.last - len(self.doubtful) - len(self.refused)

    def give(self) -> int:
        """
        The next number; what becomes of it is doubtful until it is told.
        """
        self.last += 1
        self.doubtful.add(self.last)

        return self.last

    def keep(self, n: int) -> None:
        """
        It was acknowledged.
        """
        self.doubtful.discard(n)

    def refuse(self, n: int) -> None:
        """
        It was refused: it must not be there.
        """
        self.doubtful.discard(n)
        self.refused.add(n)

    def highest_kept(self) -> int:
        """
        The highest number that was acknowledged; 0 if none was.
        """
        n = self.last
        while n and (n in self.doubtful or n in self.refused):
            n -= 1

        return n


class SessionBook:
    """
    All dealings of this bench with one session.

    Attributes:
        version: the session's when the load began; it had no timeline then.
        highest: the highest version that anybody was told; highest_seq: likewise.
        told: how many updates were told their version.
        unsettled: the MADs, by number, that have published to it and not asked since.
    """

    __slots__ = (
        *("_appends", "_updates", "_versions", "highest", "highest_seq", "id"),
        *("partition", "told", "unsettled", "version"),
    )

    def __init__(self, id: str, version: int, partition: int = 0) -> None:
        self.id = id
        self.partition = partition
        self.version = self.highest = version
        self.highest_seq = 0
        self.told = 0
        self.unsettled: set[int] = set()
        self._appends: dict[int, Marks] = {}
        self._updates: dict[int, Marks] = {}
        self._versions = bytearray()

    @property
    def appends(self) -> dict[int, Marks]:
        """
        The marks of each MAD's entries, by its number.
        """
        return self._appends

    @property
    def updates(self) -> dict[int, Marks]:
        """
        The marks of each MAD's updates, by its number.
        """
        return self._updates

    def appends_of(self, mad: int) -> Marks:
        """
        The marks of the entries of MAD number *mad*.
        """
        return self._appends.setdefault(mad, Marks())

    def updates_of(self, mad: int) -> Marks:
        """
        The marks of the updates of MAD number *mad*.
        """
        return self._updates.setdefault(mad, Marks())

    def open_mads(self) -> set[int]:
        """
        The MADs, by number, of whose commands some may still be on their way.
        """
        both = (*self._appends.items(), *self._updates.items())

        return self.unsettled.union(mad for mad, marks in both if marks.doubtful)

    def tell(self, version: int) -> bool:
        """
        An update was told that it made *version*; False if another one was, too.
        """
        place = self._place(version)
        again = self._versions[place] & _TOLD
        self._versions[place] |= _TOLD
        self.told += 1
        self.highest = max(self.highest, version)

        return not again

    def expect(self, version: int) -> None:
        """
        An update was refused that had expected *version*.
        """
        self._versions[self._place(version)] |= _EXPECTED

    def told_above(self, version: int) -> list[int]:
        """
        The versions above *version* that updates were told.
        """
        first = max(version + 1 - self.version, 0)

        return [
            self.version + place
            for place in range(first, len(self._versions))
            if self._versions[place] & _TOLD
        ]

    def unexplained(self) -> Iterator[int]:
        """
        Versions that were expected in vain, though no answer tells who moved them.
        """
        for place, marks in enumerate(self._versions):
            following = self._versions[place + 1 : place + 2]
            if marks & _EXPECTED and not (following and following[0] & _TOLD):
                yield self.version + place

    def _place(self, version: int) -> int:
        place = version - self.version
        if not 0 <= place < MOST_VERSIONS:
            raise ValueError(f"version {version} of a session made at {self.version}")
        if place >= len(self._versions):
            self._versions.extend(bytes(place + 1 - len(self._versions)))

        return place
