"""
Heartbeats parsed from the stream of a MAD.

A MAD may write anything to its own stream. An entry that is no heartbeat is counted
and dropped here, so that it does no harm.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from everbus.bus.errors import Malformed
from everbus.bus.messages import COMMAND_FIELD, MAX_INTEGER, unpack, unpack_envelope

# Fields of one stream entry that are read.
MAX_FIELDS = 64

Kind = Literal["join", "beat", "leave"]
KINDS: dict[str, Kind] = {
    "instance.join": "join",
    "instance.beat": "beat",
    "instance.leave": "leave",
}
# \Z is the end of the text in Python: `$` would accept a trailing line break.
_INSTANCE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"


class Heartbeat(msgspec.Struct, frozen=True):
    """
    Body of a heartbeat: a live instance and its epoch.
    """

    instance: Annotated[str, msgspec.Meta(pattern=_INSTANCE)]
    epoch: Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]


class Beat(NamedTuple):
    """
    The newest heartbeat of one epoch of one instance; *arrived_ms* is its entry's time.
    """

    instance: str
    epoch: int
    leaving: bool
    arrived_ms: int


class HeartbeatBatch(NamedTuple):
    """
    The heartbeats in some entries of one MAD's stream.

    Attributes:
        ids: ids of all entries, in order.
        beats: the newest heartbeats, in the order of their first occurrence.
        kinds: heartbeats counted by kind; `garbled` counts the rest.
        problem: error of the last garbled entry; empty if there is none.
    """

    ids: tuple[str, ...]
    beats: tuple[Beat, ...]
    kinds: Counter[str]
    problem: str


def parse_heartbeats(
    entries: Iterable[tuple[bytes, Sequence[bytes]]],
) -> HeartbeatBatch:
    """
    Parse *entries*, as XREAD returns them. Never raises, whatever they hold.
    """
    ids: list[str] = []
    newest: dict[tuple[str, int, bool], int] = {}
    kinds: Counter[str] = Counter()
    problem = ""
    for identifier, fields in entries:
        ids.append(identifier.decode())
        arrived_ms = int(identifier.partition(b"-")[0])
        for packed in _commands_in(fields):
            try:
                kind, beat = _heartbeat_in(packed)
            except (Malformed, msgspec.ValidationError) as error:
                kinds["garbled"] += 1
                problem = str(error)[:200]
                continue
            kinds[kind] += 1
            newest[beat.instance, beat.epoch, kind == "leave"] = arrived_ms
    beats = tuple(Beat(*said, arrived_ms) for said, arrived_ms in newest.items())

    return HeartbeatBatch(tuple(ids), beats, kinds, problem)


def _commands_in(fields: Sequence[bytes]) -> list[bytes]:
    """
    The packed commands of an entry; one empty, garbled command if it has none.
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
