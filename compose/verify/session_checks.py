"""
Checks of one session: the expectation against the observation. Pure.

A log (the timeline, or the updates) comes entry by entry in its order; a check keeps
only what is missing. Where no log can be read, counts are compared.
"""

from collections.abc import Container, Mapping
from typing import Any, Literal, NamedTuple

from everbus.compose.verify.expectation import Client, ClientMarks, SessionExpectation
from everbus.compose.verify.sequences import MarkSequence, Numbering
from everbus.compose.verify.violations import Kind, Violation, Violations

Mark = tuple[Client, int]


class ObservedSession(NamedTuple):
    """
    A session after the load.

    Attributes:
        marks: client → the mark of its last update that the state shows. The values
            come from outside, so they may be anything.
    """

    version: int
    last_seq: int
    marks: Mapping[Client, Any]  # JSON values


class LogCheck:
    """
    Checks the log of one session from its first entry: all clients' writes of one kind.

    Attributes:
        late: writes of the clients in *may_be_late* that came behind later ones.
    """

    def __init__(
        self,
        expectation: SessionExpectation,
        violations: Violations,
        call: Literal["append", "update"],
        may_be_late: Container[Client] = (),
    ) -> None:
        """
        Args:
            may_be_late: clients whose writes a bus may lose; what they send again
                comes behind what they sent meanwhile, and is only counted.
        """
        self.late = 0
        self._may_be_late = may_be_late
        appends = call == "append"
        marks = expectation.appends if appends else expectation.updates
        self._session = expectation.id
        self._violations = violations
        self._call = call
        self._word = "seq" if appends else "version"
        self._numbering = Numbering(0 if appends else expectation.version)
        self._sequences = {client: MarkSequence(its) for client, its in marks.items()}

    @property
    def last(self) -> int:
        """
        The last version or seq.
        """
        return self._numbering.last

    def see(self, number: int, mark: Mark | None, command_id: str = "") -> None:
        """
        Check the next entry: its version or seq, and the mark in it.
        """
        before = self._numbering.last
        wrong = self._numbering.see(number)
        if wrong is not None:
            detail = f"{self._word} {number} follows {before}"
            self._note(wrong, detail, number, command_id)
        sequence = self._sequences.get(mark[0]) if mark else None
        if mark is None or sequence is None:
            self._note("foreign", "no client of this run sent it", number, command_id)
            return
        kind = sequence.see(mark[1], number)
        if kind == "out_of_order" and mark[0] in self._may_be_late:
            self.late += 1
        elif kind is not None:
            detail = f"{self._call} {mark[1]} of client {mark[0]}"
            self._note(kind, f"{detail} at {self._word} {number}", number, command_id)

    def end(self, excused: Container[Client] = ()) -> dict[Client, int]:
        """
        The log ends here: missing entries are lost.

        Args:
            excused: clients whose level allows the loss; theirs are only counted.

        Returns:
            Client → how many of its acknowledged writes are lost by contract.
        """
        by_contract: dict[Client, int] = {}
        for client, sequence in self._sequences.items():
            lost = sequence.lost()
            if client in excused:
                by_contract[client] = len(lost)
                continue
            for n in lost:
                self._note("lost", f"{self._call} {n} of client {client}")
        return by_contract

    def _note(
        self, kind: Kind, detail: str, number: int = 0, command_id: str = ""
    ) -> None:
        self._violations.note(
            Violation(kind, self._session, detail, number, command_id)
        )


def check_state(
    expectation: SessionExpectation,
    observed: ObservedSession,
    violations: Violations,
    *,
    log_checked: bool,
) -> None:
    """
    Check a session's state; *log_checked*: a LogCheck has seen each update.
    """
    check = _StateCheck(expectation, violations)
    if log_checked:
        check.answers(observed.version)
    else:
        check.count(observed.version)
        check.last_marks(observed.marks)
    check.refusals()


def check_length(
    expectation: SessionExpectation, observed: ObservedSession, violations: Violations
) -> None:
    """
    Check a timeline by its length alone, where it cannot be read.
    """
    check = _StateCheck(expectation, violations)
    check.length(observed.last_seq)


def check_log_end(
    expectation: SessionExpectation,
    observed: ObservedSession,
    logs: tuple[LogCheck, LogCheck],
    violations: Violations,
) -> None:
    """
    The state stands where the logs (updates, timeline) end.
    """
    changes, timeline = logs
    end = changes.last, timeline.last
    if end != (observed.version, observed.last_seq):
        detail = (
            f"the commits end at version {end[0]}, seq {end[1]}; the session is at "
            f"version {observed.version}, seq {observed.last_seq}"
        )
        violations.note(Violation("unequal", expectation.id, detail, observed.version))


class _StateCheck:
    def __init__(self, expectation: SessionExpectation, violations: Violations) -> None:
        self._expected = expectation
        self._violations = violations

    def answers(self, version: int) -> None:
        """
        No update was answered with a version above the session's.
        """
        above = self._expected.answered_above(version)
        if above:
            detail = f"an update was answered version {above[0]}"
            self._note("lost", f"{detail}, the session is at {version}", version, above)

    def count(self, version: int) -> None:
        """
        The version counts the updates.
        """
        expected = self._expected
        least, most = (expected.version + n for n in _bounds(expected.updates))
        above = expected.answered_above(version)
        lost = max(least - version, len(above))
        if lost > 0:
            detail = f"version {version}; the acknowledged updates make {least}"
            self._note("lost", detail, version, range(lost))
        elif version > most:
            detail = f"version {version}; all updates that were sent make {most}"
            self._note("doubled", detail, version, range(version - most))

    def length(self, last_seq: int) -> None:
        """
        The last seq counts the timeline's entries.
        """
        least, most = _bounds(self._expected.appends)
        lost = max(least, self._expected.highest_seq) - last_seq
        detail = f"{last_seq} entries; {least} were acknowledged"
        if lost > 0:
            self._note("lost", detail, last_seq, range(lost))
        elif last_seq > most:
            self._note("doubled", detail, last_seq, range(last_seq - most))

    def last_marks(self, found: Mapping[Client, Any]) -> None:
        """
        The state shows the last update of each client.
        """
        for client, marks in self._expected.updates.items():
            kind = _wrong_last(found.get(client, 0), marks)
            if kind is not None:
                shown, wanted = found.get(client, 0), marks.highest_acknowledged()
                detail = f"the last update of client {client} is {shown!a:.20}"
                self._note(kind, f"{detail}, expected {wanted}")

    def refusals(self) -> None:
        """
        Each refusal for a version has an update that moved it, or may have: an update
        acknowledged without its version, or never answered.
        """
        updates = self._expected.updates.values()
        allowed = sum(its.acknowledged + len(its.doubtful) for its in updates)
        allowed -= self._expected.answered
        for version in self._expected.unexplained_refusals():
            if allowed <= 0:
                detail = f"version {version} was expected, no update made {version + 1}"
                self._note("false_refusal", detail, version)
            allowed -= 1

    def _note(
        self,
        kind: Kind,
        detail: str,
        number: int = 0,
        each: list[int] | range = range(1),
    ) -> None:
        violation = Violation(kind, self._expected.id, detail, number)
        self._violations.note(violation, len(each))


def _wrong_last(found: Any, marks: ClientMarks) -> Kind | None:
    """
    The violation by *found* as the mark of a client's last update, if any.
    """
    if not isinstance(found, int) or found > marks.last:
        return "foreign"
    if found in marks.refused:
        return "applied_though_refused"
    if found < marks.highest_acknowledged():
        return "out_of_order" if found else "lost"
    return None


def _bounds(marks: Mapping[Client, ClientMarks]) -> tuple[int, int]:
    """
    The least and the greatest number of writes that may be there.
    """
    least = sum(its.acknowledged for its in marks.values())

    return least, least + sum(len(its.doubtful) for its in marks.values())
