"""
The judgement: what was sent and acknowledged, against what is there. Pure.

Whoever reads what is there (`compose.bench.witnesses`) tells it in its order; a judge
keeps no more of it than what is missing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from compose.bench.books import Marks, SessionBook
from compose.bench.verdict import Findings, What

# Where marks are: in an entry, and in the context summary.
MARK = "bench"


class Present(NamedTuple):
    """
    A session as it is after the load; *summary* is its context summary.
    """

    version: int
    last_seq: int
    summary: Mapping[str, Any]  # JSON values


def field_of(mad: int) -> str:
    """
    The field of the context summary that has the last mark of MAD number *mad*.
    """
    return f"{MARK}{mad}"


def mark_in(entry: Any) -> tuple[int, int] | None:
    """
    The MAD's number and the mark in a timeline entry; None if it is not of ours.
    """
    found = entry.get(MARK) if isinstance(entry, dict) else None
    if not (isinstance(found, list | tuple) and len(found) == 2):
        return None
    mad, n = found

    return (mad, n) if isinstance(mad, int) and isinstance(n, int) else None


class Sequence:
    """
    One MAD's marks of one kind in one session, as they come.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._next = 1
        self._missing: set[int] = set()

    def see(self, n: int) -> What | None:
        """
        What is wrong with mark *n* coming now.
        """
        if not 1 <= n <= self._marks.last:
            return "strange"
        if n < self._next and n not in self._missing:
            return "duplicated"
        late = n < self._next
        self._missing.discard(n)
        self._missing.update(range(self._next, n))
        self._next = max(self._next, n + 1)
        if n in self._marks.refused:
            return "undone"
        return "out_of_order" if late else None

    def lost(self) -> list[int]:
        """
        What was acknowledged and has not come.
        """
        absent = self._missing.union(range(self._next, self._marks.last + 1))

        return sorted(absent - self._marks.refused - self._marks.doubtful)


class Strand:
    """
    All MADs' marks of one kind (`append`, `update`) in one session.
    """

    def __init__(
        self, kind: str, session: str, marks: Mapping[int, Marks], findings: Findings
    ) -> None:
        self._kind = kind
        self._session = session
        self._findings = findings
        self.sequences = {mad: Sequence(its) for mad, its in marks.items()}

    def see(self, mark: tuple[int, int] | None, place: str) -> None:
        """
        Judge what stands at *place*.
        """
        sequence = self.sequences.get(mark[0]) if mark else None
        if mark is None or sequence is None:
            self._findings.note("strange", self._session, f"{place} is not ours")
            return
        what = sequence.see(mark[1])
        if what is not None:
            told = f"{self._kind} {mark[1]} of MAD {mark[0]} at {place}"
            self._findings.note(what, self._session, told)

    def end(self) -> None:
        """
        Nothing more comes.
        """
        for mad, sequence in self.sequences.items():
            for n in sequence.lost():
                told = f"{self._kind} {n} of MAD {mad}"
                self._findings.note("lost", self._session, told)


class TimelineJudge:
    """
    Judges one session's timeline, told from its beginning; *seq* is the last's.
    """

    def __init__(self, book: SessionBook, findings: Findings) -> None:
        self._book = book
        self._findings = findings
        self._strand = Strand("append", book.id, book.appends, findings)
        self.seq = 0

    def see(self, seq: int, entry: Any) -> None:
        """
        The entry that comes next.
        """
        if seq != self.seq + 1:
            told = f"seq {seq} follows {self.seq}"
            self._findings.note("strange", self._book.id, told)
        self.seq = seq
        self._strand.see(mark_in(entry), f"seq {seq}")

    def end(self) -> None:
        """
        The timeline ends here.
        """
        self._strand.end()


class ChangesJudge:
    """
    Judges one session's updates, told one by one; *version* is the last's.
    """

    def __init__(self, book: SessionBook, findings: Findings) -> None:
        self._book = book
        self._findings = findings
        self._strand = Strand("update", book.id, book.updates, findings)
        self.version = book.version

    def see(self, version: int, summary: Mapping[str, Any]) -> None:
        """
        The update that comes next, and what it changed of the context summary.
        """
        if version != self.version + 1:
            told = f"version {version} follows {self.version}"
            self._findings.note("strange", self._book.id, told)
        self.version = version
        self._strand.see(_mark_of(summary), f"version {version}")

    def end(self) -> None:
        """
        There are no more.
        """
        self._strand.end()


def judge_state(
    book: SessionBook, present: Present, findings: Findings, *, changes_known: bool
) -> None:
    """
    Judge the session as it is; *changes_known*: each update was judged by itself.
    """
    if not changes_known:
        _judge_count(book, present, findings)
        _judge_last_marks(book, present, findings)
    above = book.told_above(present.version)
    if changes_known and above:
        told = f"version {above[0]} was told, it is at {present.version}"
        findings.note("lost", book.id, told, len(above))
    _judge_conflicts(book, findings)


def judge_length(book: SessionBook, present: Present, findings: Findings) -> None:
    """
    Judge a timeline that cannot be read by its length alone.
    """
    least, most = _bounds(book.appends)
    lost = max(least - present.last_seq, book.highest_seq - present.last_seq)
    told = f"{present.last_seq} entries; {least} were acknowledged"
    if lost > 0:
        findings.note("lost", book.id, told, lost)
    elif present.last_seq > most:
        findings.note("duplicated", book.id, told, present.last_seq - most)


def _judge_count(book: SessionBook, present: Present, findings: Findings) -> None:
    least, most = (book.version + count for count in _bounds(book.updates))
    above = book.told_above(present.version)
    lost = max(least - present.version, len(above))
    if lost > 0:
        told = f"version {present.version}; what was acknowledged makes {least}"
        findings.note("lost", book.id, told, lost)
    elif present.version > most:
        told = f"version {present.version}; what was sent makes {most}"
        findings.note("duplicated", book.id, told, present.version - most)


def _judge_last_marks(book: SessionBook, present: Present, findings: Findings) -> None:
    """
    The last update of each MAD is the one whose mark is there.
    """
    for mad, marks in book.updates.items():
        found, wanted = present.summary.get(field_of(mad), 0), marks.highest_kept()
        told = f"the last update of MAD {mad} is {found!a:.20}, wanted {wanted}"
        if not isinstance(found, int) or found > marks.last:
            findings.note("strange", book.id, told)
        elif found in marks.refused:
            findings.note("undone", book.id, told)
        elif found < wanted:
            findings.note("out_of_order" if found else "lost", book.id, told)


def _judge_conflicts(book: SessionBook, findings: Findings) -> None:
    """
    A conflict needs somebody who made the next version; one whom nobody answered may
    have been it.
    """
    allowed = sum(its.kept + len(its.doubtful) for its in book.updates.values())
    allowed -= book.told
    for version in book.unexplained():
        if allowed <= 0:
            told = f"version {version} was expected and nobody made {version + 1}"
            findings.note("false_conflicts", book.id, told)
        allowed -= 1


def _bounds(marks: Mapping[int, Marks]) -> tuple[int, int]:
    """
    How many there must be at least, and may be at most.
    """
    least = sum(its.kept for its in marks.values())

    return least, least + sum(len(its.doubtful) for its in marks.values())


def _mark_of(summary: Mapping[str, Any]) -> tuple[int, int] | None:
    for mad, n in _marks_in(summary):
        return mad, n
    return None


def _marks_in(summary: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for name, n in summary.items():
        number = name.removeprefix(MARK)
        if name != number and number.isdigit() and isinstance(n, int):
            yield int(number), n
