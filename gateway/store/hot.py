"""
The hot tier's form of a session: a Redis hash and a list of recent entries.

`version`, `last_seq` are decimal text, so that a script can compare them; every
other field is msgpack on its own, so that a commit writes only what changed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bus.codec import pack, unpack
from bus.messages import Session
from bus.wire import Command, Wire
from gateway.store import names

_PLAIN = ("version", "last_seq")
FIELDS = tuple(
    name for name in Session.__struct_fields__ if name not in ("id", "recent_timeline")
)
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Session)}


def read_commands(partition: int, session_id: str) -> tuple[Command, Command]:
    """
    The two commands whose replies `session_of` takes.
    """
    return (
        ("HMGET", names.session(partition, session_id), *FIELDS),
        ("LRANGE", names.recent(partition, session_id), 0, -1),
    )


def session_of(
    session_id: str, values: Sequence[bytes | None], tail: Sequence[bytes]
) -> Session | None:
    """
    The session in the replies to `read_commands`; None if it is not hot.
    """
    if values[0] is None:
        return None
    decoded: dict[str, Any] = {
        name: int(value) if name in _PLAIN else unpack(value, _TYPES[name])
        for name, value in zip(FIELDS, values, strict=True)
        if value is not None
    }
    return Session(id=session_id, recent_timeline=tuple(tail), **decoded)


async def load(
    wire: Wire, partition: int, session_ids: Iterable[str]
) -> dict[str, Session | None]:
    """
    The hot sessions of one partition in one round trip, None where there is none.

    Raises:
        WireFailed: the connection broke.
    """
    wanted = list(session_ids)
    commands = [c for s in wanted for c in read_commands(partition, s)]
    replies = await wire.exchange(commands)

    return {
        session_id: session_of(session_id, replies[2 * i], replies[2 * i + 1])
        for i, session_id in enumerate(wanted)
    }


def field_arguments(before: Session | None, after: Session) -> list[Any]:
    """
    Names and values of the hash fields in which *after* differs from *before*.
    """
    arguments: list[Any] = []
    for name in FIELDS:
        value = getattr(after, name)
        if before is None or value is not getattr(before, name):
            arguments += (name, value if name in _PLAIN else pack(value))
    return arguments
