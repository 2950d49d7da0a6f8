"""
Whether a session holds what was played into it: the comparison and its report.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import msgspec

from bus.messages import TimelineEntry
from compose.recordings import Message, Recording

What = Literal[
    "missing", "doubled", "out of order", "differing", "wrong author", "misnumbered"
]
WHATS: tuple[What, ...] = get_args(What)
SHOWN_CHARS = 60


class Finding(msgspec.Struct, frozen=True):
    """
    One thing that is not as it was recorded.

    Attributes:
        seq: of the timeline's entry; of what is missing, the one it was due at.
    """

    conversation: str
    seq: int
    what: What
    detail: str

    def __str__(self) -> str:
        return f"{self.conversation} seq {self.seq}: {self.what}: {self.detail}"


class Report(msgspec.Struct, frozen=True):
    """
    What became of a replay.

    Attributes:
        seconds: from the first command to the last commit; reading back is not in it.
    """

    conversations: int
    messages: int
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def clean(self) -> bool:
        """
        Whether every session holds exactly what was recorded, in its order.
        """
        return not self.findings

    def summary(self) -> dict[str, int | float]:
        """
        The numbers: how much, how fast, and how many findings of each kind.
        """
        found = Counter(finding.what for finding in self.findings)

        return {
            "conversations": self.conversations,
            "messages": self.messages,
            "seconds": round(self.seconds, 3),
            "messages_per_s": round(self.messages / max(self.seconds, 1e-9), 1),
            **{what.replace(" ", "_"): found[what] for what in WHATS},
        }


def compare(recording: Recording, entries: Sequence[TimelineEntry]) -> list[Finding]:
    """
    All that differs between *recording* and its session's whole timeline.

    Messages are recognised by what they say; of two that say the same, the
    earlier entry is taken for the earlier message.
    """
    due: defaultdict[bytes, deque[int]] = defaultdict(deque)
    for index, message in enumerate(recording.messages):
        due[_content(message)].append(index)
    placed: list[tuple[int, TimelineEntry]] = []
    others: list[TimelineEntry] = []
    for entry in entries:
        places = due.get(_content(entry.entry))
        if places:
            placed.append((places.popleft(), entry))
        else:
            others.append(entry)
    left = {index for places in due.values() for index in places}
    found = [*_numbering(entries), *_order(placed), *_authors(recording, placed)]
    doubled = [entry for entry in others if _content(entry.entry) in due]
    found += ((e.seq, "doubled", _shown(e.entry)) for e in doubled)
    found += _strangers([e for e in others if e not in doubled], recording, left)
    found += ((i + 1, "missing", _shown(recording.messages[i])) for i in left)

    return [Finding(recording.conversation_id, *told) for told in sorted(found)]


_Told = tuple[int, What, str]


def _numbering(entries: Sequence[TimelineEntry]) -> Iterator[_Told]:
    """
    The first entry whose seq is not its place in the timeline.
    """
    for place, entry in enumerate(entries, 1):
        if entry.seq != place:
            yield entry.seq, "misnumbered", f"{place} was due"
            return


def _order(placed: Sequence[tuple[int, TimelineEntry]]) -> Iterator[_Told]:
    for (before, _), (index, entry) in pairwise(placed):
        if index < before:
            told = f"message {index + 1} comes after message {before + 1}"
            yield entry.seq, "out of order", told


def _authors(
    recording: Recording, placed: Sequence[tuple[int, TimelineEntry]]
) -> Iterator[_Told]:
    for index, entry in placed:
        role = recording.messages[index]["role"]
        if entry.author != role:
            yield entry.seq, "wrong author", f"{entry.author}, wanted {role}"


def _strangers(
    entries: Sequence[TimelineEntry], recording: Recording, left: set[int]
) -> Iterator[_Told]:
    """
    Entries that nobody recorded; each stands for the message due at its seq.
    """
    for entry in entries:
        index = entry.seq - 1
        wanted: Message | None = None
        if index in left:
            left.discard(index)
            wanted = recording.messages[index]
        told = f"is {_shown(entry.entry)}, wanted {_shown(wanted)}"
        yield entry.seq, "differing", told


def _content(message: Any) -> bytes:  # JSON values
    return msgspec.json.encode(message, order="deterministic")


def _shown(message: Any) -> str:  # JSON values
    if message is None:
        return "nothing"
    text = _content(message).decode()
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
