"""
The dead letters of a whole bus: filters, groups and counts.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from everbus.bus.wire import Wire
from everbus.compose.bus_access import bus_time
from everbus.compose.command_output import notify
from everbus.compose.progress import Advance
from everbus.gateway.lane.commit import BatchLimits
from everbus.gateway.store.dead_letters import Buried, LetterId, page

CAP = BatchLimits().dead_letters
# From here on commands warn that new letters will soon push the oldest out.
NEAR_CAP = CAP * 9 // 10
# At most so many of the remaining letters are named.
MAX_NAMED = 20


class Filters(NamedTuple):
    """
    Filters for letters; None matches every letter.
    """

    cause: str | None = None
    mad: str | None = None
    kind: str | None = None
    session: str | None = None
    partition: int | None = None

    def match(self, buried: Buried) -> bool:
        """
        Whether all filters match the letter.
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
        mads: number of letters by MAD.
        kinds: number of letters by kind; the empty kind is no command.
    """

    cause: str
    count: int
    oldest: datetime
    newest: datetime
    mads: Counter[str]
    kinds: Counter[str]


class LetterCounts(msgspec.Struct):
    """
    Counts of the letters of one run of redrive or drop.

    Attributes:
        done: redriven or dropped letters; in a dry run, those it would take.
        gone: letters that another run took first.
        left: letters that cannot be redriven; they stay where they are.
        named: the first of these, each with its reason.
    """

    done: int = 0
    gone: int = 0
    left: int = 0
    named: list[tuple[str, str]] = []

    def leave(self, identifier: LetterId, why: str) -> None:
        """
        Count a letter that stays where it is.
        """
        self.left += 1
        if len(self.named) < MAX_NAMED:
            self.named.append((str(identifier), why))

    def note(self, reply: int) -> None:
        """
        Count a letter by the server's reply: 1, or 0 if the letter is gone.
        """
        if reply:
            self.done += 1
        else:
            self.gone += 1


async def matching_letters(
    wire: Wire,
    lanes: Sequence[int],
    filters: Filters,
    ends: Mapping[int, str],
    *,
    after: LetterId | None = None,
    advance: Advance = lambda _: None,
) -> AsyncIterator[Buried]:
    """
    The matching letters behind *after*, by partition, oldest first, up to *ends*.

    The ends are the newest letters at the start of the run. A redriven command that
    dies again is a later letter, so no run redrives it for ever.
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
                if filters.match(buried):
                    yield buried


def add_to_group(into: dict[str, Group], buried: Buried) -> None:
    """
    Count a letter in the group of its cause.
    """
    letter = buried.letter
    at = bus_time(letter.at_ms)
    known = into.get(letter.cause)
    if known is None:
        known = Group(letter.cause, 0, at, at, Counter(), Counter())
        into[letter.cause] = known
    known.count += 1
    known.oldest, known.newest = min(known.oldest, at), max(known.newest, at)
    known.mads[letter.mad] += 1
    known.kinds[letter.envelope.kind if letter.envelope else ""] += 1


def partitions_near_cap(lengths: Mapping[int, int]) -> list[int]:
    """
    The partitions with NEAR_CAP letters or more.
    """
    return [partition for partition, length in lengths.items() if length >= NEAR_CAP]


def warn_near_cap(lengths: Mapping[int, int]) -> None:
    """
    Warn of each partition that is near the cap.
    """
    for partition in partitions_near_cap(lengths):
        notify(
            f"partition {partition} has {lengths[partition]:,} dead letters; from "
            f"about {CAP:,} on the oldest are lost: redrive or drop some"
        )
