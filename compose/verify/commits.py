"""
Checks of all commits of a bus, without an expectation.

No command is applied twice; versions and seqs of each session are 1, 2, 3 …
"""

from collections import defaultdict
from datetime import datetime
from itertools import groupby, takewhile

import msgspec

from everbus.bus.messages import ordinal_of
from everbus.compose.verify.sequences import Numbering
from everbus.compose.verify.violations import Kind, Violation, Violations
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.record_effects import APPENDED
from everbus.handlers.outcomes import Event

TURNED = "session.turned"
# Ordinals of a publisher in one block of bits.
BLOCK = 1024


class _Placed(msgspec.Struct):
    """
    The part of a packed TimelineEntry that is checked here.
    """

    seq: int


_placed = msgspec.msgpack.Decoder(_Placed)


class CommandIds:
    """
    The command ids so far: one bit for each ordinal, and the free ids as they are.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, int, int], bytearray] = {}
        self._free: set[tuple[str, str]] = set()

    def add(self, command_id: str, mad: str = "") -> bool:
        """
        Whether the id is new; a free one belongs to its *mad*.
        """
        ordinal = ordinal_of(command_id)
        if ordinal is None:
            new = (mad, command_id) not in self._free
            self._free.add((mad, command_id))
            return new
        number, place = divmod(ordinal.n, BLOCK)
        key = ordinal.instance, ordinal.partition, number
        block = self._blocks.setdefault(key, bytearray(BLOCK // 8))
        bit = 1 << place % 8
        new = not block[place // 8] & bit
        block[place // 8] |= bit

        return new


class CommitCheck:
    """
    Takes the records of all outboxes, each outbox in its order.
    """

    def __init__(self, violations: Violations) -> None:
        self._violations = violations
        self._commands = CommandIds()
        # A session that was deleted and made again begins anew.
        self._versions: dict[tuple[str, datetime], Numbering] = defaultdict(Numbering)
        self._seqs: dict[tuple[str, datetime], Numbering] = defaultdict(Numbering)

    def see(self, record: Record) -> None:
        """
        Check the next record.
        """
        life = record.session, record.created_at
        for _, events in groupby(record.events, key=_command_of):
            self._command(record.session, list(events))
        for event in record.events:
            self._event(record.session, self._versions[life], event)
        for entry in record.entries:
            seq = _placed.decode(entry).seq
            kind = self._seqs[life].see(seq)
            if kind is not None:
                self._note(kind, record.session, "seq", seq, "")

    def _command(self, session: str, events: list[Event]) -> None:
        """
        Check neighbouring events of one command id: the first command's, which may
        have several, and those of repetitions.
        """
        first = events[0]
        new = self._commands.add(first.command_id, first.mad)
        for event in events[_first_of(events) if new else 0 :]:
            detail = f"a second {event.kind} of one command"
            self._violations.note(
                Violation("doubled", session, detail, event.version, event.command_id)
            )

    def _event(self, session: str, versions: Numbering, event: Event) -> None:
        # Events without a patch (appends, broadcasts, a deletion) move no version.
        if event.patch is not None:
            kind = versions.see(event.version)
            if kind is not None:
                self._note(kind, session, "version", event.version, event.command_id)

    def _note(
        self, kind: Kind, session: str, word: str, number: int, command_id: str
    ) -> None:
        detail = f"{word} {number} does not follow the one before"
        self._violations.note(Violation(kind, session, detail, number, command_id))


def _command_of(event: Event) -> tuple[str, str]:
    return event.command_id, event.mad


def _first_of(events: list[Event]) -> int:
    """
    How many of the *events* one command makes: a turn its entries and its end, an
    append to a dormant session two, any other one.
    """
    entries = len(list(takewhile(lambda event: event.kind == APPENDED, events)))
    if entries < len(events) and events[entries].kind == TURNED:
        return entries + 1
    woke = [event.kind for event in events[:2]] == ["session.resumed", APPENDED]

    return 2 if woke else 1
