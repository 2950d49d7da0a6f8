"""
Heartbeats as they come on the stream of a MAD, whoever wrote them there.

A MAD may put anything on its own stream. What is no heartbeat is told apart here,
so that it is counted and thrown away, and hurts nobody.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from bus.codec import COMMAND_FIELD, unpack, unpack_envelope
from bus.errors import Malformed
from bus.messages import MAX_INTEGER

# Fields of one stream entry that are looked at.
MAX_FIELDS = 64

Kind = Literal["join", "beat", "leave"]
KINDS: dict[str, Kind] = {
    "instance.join": "join",
    "instance.beat": "beat",
    "instance.leave": "leave",
}
# The last is a Python pattern's end of text: `$` would let a line break in.
_INSTANCE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"


class Heartbeat(msgspec.Struct, frozen=True):
    """
    Body of a heartbeat: which epoch of which instance lives.
    """

    instance: Annotated[str, msgspec.Meta(pattern=_INSTANCE)]
    epoch: Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]


class Beat(NamedTuple):
    """
    The newest word of one epoch of one instance; *arrived_ms* is its entry's time.
    """

    instance: str
    epoch: int
    leaving: bool
    arrived_ms: int


class Heard(NamedTuple):
    """
    What was found in some entries of one MAD's stream.

    Attributes:
        ids: of all entries, in their order.
        beats: what they say, in the order in which each was said first.
        kinds: how many heartbeats of which kind; `garbled` for what is none.
        trouble: what was wrong with the last one that is none; empty if all are.
    """

    ids: tuple[str, ...]
    beats: tuple[Beat, ...]
    kinds: Counter[str]
    trouble: str


def heard_in(entries: Iterable[tuple[bytes, Sequence[bytes]]]) -> Heard:
    """
    What *entries*, as XREAD returns them, say. Never raises, whatever they hold.
    """
    ids: list[str] = []
    newest: dict[tuple[str, int, bool], int] = {}
    kinds: Counter[str] = Counter()
    trouble = ""
    for identifier, fields in entries:
        ids.append(identifier.decode())
        arrived_ms = int(identifier.partition(b"-")[0])
        for packed in _commands_in(fields):
            try:
                kind, beat = _heartbeat_in(packed)
            except (Malformed, msgspec.ValidationError) as error:
                kinds["garbled"] += 1
                trouble = str(error)[:200]
                continue
            kinds[kind] += 1
            newest[beat.instance, beat.epoch, kind == "leave"] = arrived_ms
    beats = tuple(Beat(*said, arrived_ms) for said, arrived_ms in newest.items())

    return Heard(tuple(ids), beats, kinds, trouble)


def _commands_in(fields: Sequence[bytes]) -> list[bytes]:
    """
    The commands in the fields of an entry; an empty one, which is none, if none is.
    """
    pairs: list[Any] = list(zip(fields[::2], fields[1::2], strict=False))[:MAX_FIELDS]

    return [value for name, value in pairs if name == COMMAND_FIELD] or [b""]


def _heartbeat_in(packed: bytes) -> tuple[Kind, Heartbeat]:
    envelope = unpack_envelope(packed)
    kind = KINDS.get(envelope.kind)
    if kind is None:
        raise Malformed("a kind that is no heartbeat", cause="unknown_kind")
    body: Heartbeat = unpack(envelope.body, Heartbeat)

    return kind, body
