"""
The dead letters of a whole bus: which a command is about, and what became of them.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from bus.wire import Wire
from compose.answers import tell
from compose.bus_access import when
from compose.progress import Advance
from gateway.batch import Limits
from gateway.store.letters import Buried, LetterId, page

CAP = Limits().dead_letters
# From here on people are told that the oldest letters will soon be pushed out.
NEAR_CAP = CAP * 9 // 10
# Of those that were left, so many are named.
MAX_NAMED = 20


class Filters(NamedTuple):
    """
    Which letters are meant; what is None leaves nothing out.
    """

    cause: str | None = None
    mad: str | None = None
    kind: str | None = None
    session: str | None = None
    partition: int | None = None

    def fit(self, buried: Buried) -> bool:
        """
        Whether the letter is meant.
        """
        letter, envelope = buried.letter, buried.letter.envelope
        facts = (
            letter.cause,
            letter.mad,
            envelope.kind if envelope else "",
            envelope.session if envelope else "",
            buried.id.partition,
        )
        return all(
            wanted is None or wanted == fact
            for wanted, fact in zip(self, facts, strict=True)
        )


class Group(msgspec.Struct):
    """
    The letters of one cause.

    Attributes:
        mads: MAD → how many of them are its own.
        kinds: kind → how many of them are of it; empty for what is no command.
    """

    cause: str
    count: int
    oldest: datetime
    newest: datetime
    mads: Counter[str]
    kinds: Counter[str]


class Errand(msgspec.Struct):
    """
    What became of the letters that were to be redriven or dropped.

    Attributes:
        done: redriven or dropped; in a dry run, those that would be.
        gone: somebody else was faster.
        left: cannot be redriven, and lie where they lay.
        named: the first of those, each with its reason.
    """

    done: int = 0
    gone: int = 0
    left: int = 0
    named: list[tuple[str, str]] = []

    def leave(self, identifier: LetterId, why: str) -> None:
        """
        Note that a letter stays where it is.
        """
        self.left += 1
        if len(self.named) < MAX_NAMED:
            self.named.append((str(identifier), why))

    def note(self, reply: int) -> None:
        """
        Note what the server said of one letter: 1, or 0 if it is gone.
        """
        if reply:
            self.done += 1
        else:
            self.gone += 1


async def letters(
    wire: Wire,
    lanes: Sequence[int],
    filters: Filters,
    ends: Mapping[int, str],
    *,
    after: LetterId | None = None,
    advance: Advance = lambda _: None,
) -> AsyncIterator[Buried]:
    """
    Those behind *after*, by partition, in each the oldest first, up to *ends*.

    The ends are the newest at the beginning: a command that is redriven and dies again
    must not be redriven for ever, and nobody is asked about what comes later.
    """
    for partition in lanes:
        last = ""
        if after is not None and partition <= after.partition:
            if partition < after.partition:
                continue
            last = after.entry
        while partition in ends:
            found = await page(wire, partition, last, ends[partition])
            if not found:
                break
            last = found[-1].id.entry
            advance(len(found))
            for buried in found:
                if filters.fit(buried):
                    yield buried


def group(into: dict[str, Group], buried: Buried) -> None:
    """
    Count a letter in the group of its cause.
    """
    letter = buried.letter
    at = when(letter.at_ms)
    known = into.get(letter.cause)
    if known is None:
        known = Group(letter.cause, 0, at, at, Counter(), Counter())
        into[letter.cause] = known
    known.count += 1
    known.oldest, known.newest = min(known.oldest, at), max(known.newest, at)
    known.mads[letter.mad] += 1
    known.kinds[letter.envelope.kind if letter.envelope else ""] += 1


def full(lengths: Mapping[int, int]) -> list[int]:
    """
    The partitions whose oldest letters will soon be pushed out.
    """
    return [partition for partition, length in lengths.items() if length >= NEAR_CAP]


def warn_of_full(lengths: Mapping[int, int]) -> None:
    """
    Say which partitions those are.
    """
    for partition in full(lengths):
        tell(
            f"partition {partition} has {lengths[partition]:,} dead letters; from "
            f"about {CAP:,} on the oldest are lost: redrive or drop them"
        )
