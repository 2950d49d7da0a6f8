"""
Checks by content: a timeline against the entries that were sent, and two copies
against each other.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from everbus.bus.messages import Session, TimelineEntry
from everbus.compose.verify.sequences import Numbering
from everbus.compose.verify.violations import Kind, Violation, Violations

SHOWN_CHARS = 60


class ExpectedEntry(NamedTuple):
    """
    One entry that was sent, and the MAD that sent it.
    """

    author: str
    content: Any  # JSON value


class ContentCheck:
    """
    Checks a timeline, entry by entry, against the entries that were sent.

    Entries are recognised by their content; two with the same content count as
    sent in the order of the timeline.
    """

    def __init__(
        self, session: str, expected: Sequence[ExpectedEntry], violations: Violations
    ) -> None:
        self._session = session
        self._expected = expected
        self._violations = violations
        self._numbering = Numbering()
        self._last_index = -1
        self._unknown: list[tuple[int, Any]] = []
        self._due: defaultdict[bytes, deque[int]] = defaultdict(deque)
        for index, entry in enumerate(expected):
            self._due[_packed(entry.content)].append(index)

    def see(self, entry: TimelineEntry) -> None:
        """
        Check the next entry.
        """
        kind = self._numbering.see(entry.seq)
        if kind is not None:
            self._note(kind, entry.seq, "the seq does not follow the one before")
        places = self._due.get(_packed(entry.entry))
        if places:
            self._placed(places.popleft(), entry)
        elif places is not None:
            self._note("doubled", entry.seq, _shown(entry.entry))
        else:
            self._unknown.append((entry.seq, entry.entry))

    def end(self) -> None:
        """
        The timeline ends here. An unknown entry stands for the one due at its seq.
        """
        absent = {index for places in self._due.values() for index in places}
        for seq, found in self._unknown:
            if seq - 1 in absent:
                absent.discard(seq - 1)
                wanted = _shown(self._expected[seq - 1].content)
                self._note("unequal", seq, f"is {_shown(found)}, expected {wanted}")
            else:
                self._note("foreign", seq, _shown(found))
        for index in sorted(absent):
            self._note("lost", index + 1, _shown(self._expected[index].content))

    def _placed(self, index: int, entry: TimelineEntry) -> None:
        if index < self._last_index:
            detail = f"entry {index + 1} comes after entry {self._last_index + 1}"
            self._note("out_of_order", entry.seq, detail)
        self._last_index = index
        author = self._expected[index].author
        if entry.author != author:
            detail = f"the author is {entry.author}, expected {author}"
            self._note("unequal", entry.seq, detail)

    def _note(self, kind: Kind, seq: int, detail: str) -> None:
        self._violations.note(Violation(kind, self._session, detail, seq))


def check_contents(
    session: str,
    expected: Sequence[ExpectedEntry],
    entries: Iterable[TimelineEntry],
    violations: Violations,
) -> None:
    """
    Check a whole timeline that is in memory.
    """
    check = ContentCheck(session, expected, violations)
    for entry in entries:
        check.see(entry)
    check.end()


def check_equal(
    session: str,
    wanted: Mapping[str, Any],  # JSON values, or structs
    found: Mapping[str, Any],
    violations: Violations,
) -> None:
    """
    Two copies of a session, or an expected and an observed one, field by field.
    """
    for field in sorted({*wanted, *found}):
        if wanted.get(field) != found.get(field):
            detail = f"{field} is {_shown(found.get(field))}"
            detail = f"{detail}, expected {_shown(wanted.get(field))}"
            violations.note(Violation("unequal", session, detail))


def digest_of(session: Session, entries: Iterable[TimelineEntry]) -> str:
    """
    SHA-256 of a session and its whole timeline.
    """
    bare = msgspec.structs.replace(session, recent_timeline=())
    whole = msgspec.msgpack.encode([bare, list(entries)], order="deterministic")

    return hashlib.sha256(whole).hexdigest()


def _packed(value: Any) -> bytes:  # JSON value
    return msgspec.json.encode(value, order="deterministic")


def _shown(value: Any) -> str:  # JSON value
    text = _packed(value).decode()
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
