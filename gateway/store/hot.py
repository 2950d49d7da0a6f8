"""
The hot tier's form of a session: a Redis hash and a list of recent entries.

`version`, `last_seq`, `notices` are decimal text, so that a script can compare them;
every other field is msgpack on its own, so that a commit writes only what changed.
Five fields are no part of the session: `durable_version`, `durable_seq` and
`durable_notices` (what MongoDB holds of it), `checked` (when it was last compared
with MongoDB), and `refused` (1: MongoDB refused some of it, so that it never goes).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from bus.codec import pack, unpack
from bus.keys import partition_of
from bus.messages import Durable, Session
from bus.wire import Argument, Command, Wire
from gateway.store import names
from gateway.store.scripts import script

_PLAIN = ("version", "last_seq", "notices")
_ELSEWHERE = frozenset({"id", "recent_timeline", "full_context", "archival_status"})
FIELDS = tuple(name for name in Session.__struct_fields__ if name not in _ELSEWHERE)
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Session)}


class Found(NamedTuple):
    """
    What the hot tier knows of a session.

    Attributes:
        session: the hot copy; None if there is none.
        deleted: it was deleted, and MongoDB may not know yet.
        elsewhere: it is not hot, and a tier below holds it.
        checked_ms: when the copy was last compared with MongoDB; 0: never.
    """

    session: Session | None
    deleted: bool = False
    elsewhere: bool = False
    checked_ms: int = 0


def read_commands(partition: int, session_id: str) -> tuple[Command, Command, Command]:
    """
    The commands whose replies `found_in` takes.
    """
    return (
        ("HMGET", names.session(partition, session_id), *FIELDS, "checked"),
        ("LRANGE", names.recent(partition, session_id), 0, -1),
        ("GET", names.gone(partition, session_id)),
    )


def found_in(session_id: str, replies: Sequence[Any]) -> Found:
    """
    What the replies to `read_commands` say.
    """
    (*values, checked), tail, gone = replies
    if values[0] is None:
        mark = gone or b""
        return Found(None, mark.startswith(b"deleted:"), mark == b"elsewhere")
    decoded: dict[str, Any] = {
        name: int(value) if name in _PLAIN else unpack(value, _TYPES[name])
        for name, value in zip(FIELDS, values, strict=True)
        if value is not None
    }
    session = Session(id=session_id, recent_timeline=tuple(tail), **decoded)

    return Found(session, checked_ms=int(checked or 0))


async def load(
    wire: Wire, partition: int, session_ids: Iterable[str]
) -> dict[str, Found]:
    """
    The hot sessions of one partition, in one round trip.

    Raises:
        WireFailed: the connection broke.
    """
    wanted = list(session_ids)
    commands = [c for s in wanted for c in read_commands(partition, s)]
    replies = await wire.exchange(commands)

    return {
        session_id: found_in(session_id, replies[3 * i : 3 * i + 3])
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


def deleted_mark(created_at: datetime, version: int) -> str:
    """
    What tells one deletion of a session from every other one.
    """
    return f"deleted:{round(created_at.timestamp() * 1000)}.{version}"


def admit_command(
    partition: int,
    owner: str,
    session: Session,
    ttl_ms: int,
    *,
    checked_ms: int = 0,
    replace: bool = False,
) -> Command:
    """
    What makes a session hot that the tiers below hold; fenced by the lane's epoch.

    The reply: `ok`; `there` if it is hot already (unless *replace*); `superseded`.
    """
    fields: list[Argument] = [
        *field_arguments(None, session),
        *("durable_version", session.version, "durable_seq", session.last_seq),
        *("durable_notices", session.notices),
        *("checked", checked_ms),
    ]
    return script(
        "admit",
        _admit_keys(partition, session.id),
        *(owner, "replace" if replace else "absent", ttl_ms, len(fields)),
        *fields,
        *session.recent_timeline,
    )


def keep_command(
    partition: int, owner: str, session_id: str, checked_ms: int
) -> Command:
    """
    What notes that a hot copy was compared with MongoDB; replies like admitting.
    """
    return script(
        "admit",
        _admit_keys(partition, session_id),
        *(owner, "keep", 0, 2, "checked", checked_ms),
    )


def _admit_keys(partition: int, session_id: str) -> list[str]:
    return [
        names.owner(partition),
        names.session(partition, session_id),
        names.recent(partition, session_id),
    ]


def durable_command(partition: int, session_id: str) -> Command:
    """
    What asks how much of a hot session MongoDB holds; see `durable_in`.
    """
    key = names.session(partition, session_id)
    return ("HMGET", key, "durable_version", "durable_seq")


def durable_in(reply: Sequence[bytes | None]) -> Durable:
    """
    What the reply to `durable_command` says.
    """
    return Durable(int(reply[0] or 0), int(reply[1] or 0))


class RedisHot:
    """
    The hot tier of all partitions, seen from outside the lanes.
    """

    def __init__(self, wire: Wire, partitions: int) -> None:
        self._wire = wire
        self._partitions = partitions

    async def get(self, session_id: str) -> Session | None:
        """
        See HotTier.
        """
        p = partition_of(session_id, self._partitions)
        return (await load(self._wire, p, [session_id]))[session_id].session

    async def admit(self, session: Session, ttl_s: float) -> bool:
        """
        See HotTier. Not fenced: a lane admits with its owner value instead.
        """
        p = partition_of(session.id, self._partitions)
        owner = await self._wire.call("GET", names.owner(p))
        command = admit_command(
            p, (owner or b"").decode(), session, max(1, round(ttl_s * 1000))
        )
        [status] = await self._wire.call(*command)
        return bool(status == b"ok")

    async def forget(self, session_id: str) -> bool:
        """
        See HotTier.
        """
        p = partition_of(session_id, self._partitions)
        session, recent = names.session(p, session_id), names.recent(p, session_id)
        keys = [session, recent, names.gone(p, session_id)]
        return bool(await self._wire.call(*script("evict", keys, MARK_TTL_MS)))

    async def exists(self, session_id: str) -> bool:
        """
        See HotTier.
        """
        p = partition_of(session_id, self._partitions)
        return bool(await self._wire.call("EXISTS", names.session(p, session_id)))

    async def active(self, limit: int) -> Sequence[str]:
        """
        See HotTier; walks the key space in steps, so it is for people, not for lanes.
        """
        return (await self._walk(limit))[:limit]

    async def count(self) -> int:
        """
        See HotTier; walks the key space.
        """
        return len(await self._walk(None))

    async def _walk(self, limit: int | None) -> list[str]:
        found: dict[str, None] = {}
        cursor = b"0"
        while True:
            cursor, some = await self._wire.call(
                *("SCAN", cursor, "MATCH", "eb:{*}:session:*", "COUNT", 1000)
            )
            for key in some:
                found[key.decode().partition(":session:")[2]] = None
            if cursor == b"0" or (limit is not None and len(found) >= limit):
                return list(found)


# A day: longer than any id counts as newborn.
MARK_TTL_MS = 86_400_000
