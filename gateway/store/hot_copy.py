"""
The hot tier's form of a session: a Redis hash and a list of recent entries.

`version`, `last_seq`, `notices` are decimal text, so that a script can compare them;
every other field is msgpack on its own, so that a commit writes only what changed.
Five fields are no part of the session: `durable_version`, `durable_seq` and
`durable_notices` (what MongoDB holds of it), `lineage` (under which the copy is
trusted, see `store.claims`), and `refused` (1: MongoDB refused some of it, so that it
never goes).

A commit also writes an outbox entry for the archiver: one record per session.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import msgspec
from redis.exceptions import ResponseError

from everbus.bus.errors import Unavailable
from everbus.bus.keys import partition_of
from everbus.bus.messages import Durable, Session, pack, unpack
from everbus.bus.wire import Argument, Command, Wire
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script
from everbus.handlers.outcomes import Archived, Event, NewCheckpoint

VALUE_FIELD = b"b"
COUNT_FIELD = b"n"
REPLIES_FIELD = b"r"
_PLAIN = ("version", "last_seq", "notices")
_ELSEWHERE = frozenset({"id", "recent_timeline", "full_context", "archival_status"})
FIELDS = tuple(name for name in Session.__struct_fields__ if name not in _ELSEWHERE)
# What tells whether a hot copy is still the one that was read.
COMPARED = ("version", "last_seq", "notices", "created_at", "lineage")
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Session)}


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    The effect of one commit on one session.

    Attributes:
        created_at: distinguishes two generations of one id (deleted, created again).
        version: the session's, after the last of *events*.
        state: the whole session, if its version moved; else None.
        entries: appended timeline entries, in ascending seq.
        events: what happened, in order.
        deleted: the session was deleted; version is one above its last.
        checkpoints: to be kept, in order.
        archived: the session at this version is in the cold tier, verified; the warm
            tier keeps a stub.
        lineage: the hot data's when this was committed, see `store.claims`; 0: by a
            manager that is older than lineages.
        tenant: of the session, if its values are to be sealed, else empty.
    """

    session: str
    created_at: datetime
    version: int
    last_seq: int
    last_active: datetime
    notices: int = 0
    state: Session | None = None
    entries: tuple[msgspec.Raw, ...] = ()
    events: tuple[Event, ...] = ()
    deleted: bool = False
    checkpoints: tuple[NewCheckpoint, ...] = ()
    archived: Archived | None = None
    lineage: int = 0
    tenant: str = ""


class HeldReply(msgspec.Struct, frozen=True, array_like=True):
    """
    A reply that waits until MongoDB holds the effect of its command.

    Attributes:
        stream: the key of the reply's stream.
        channel: the wake-up channel of its reader; empty: none.
        command: the id of its command.
        packed: the reply.
        session: the session of which the reply says that MongoDB holds all; empty: it
            says so of its own command alone.
    """

    stream: str
    channel: str
    command: str
    packed: bytes
    session: str = ""

    @property
    def carried(self) -> bytes | str:
        """
        The payload of the wake-up; whether all of a session is held is only known
        when the reply is given.
        """
        if self.session:
            return self.command
        return carried(self.command, self.packed)


# Up to this size the wake-up carries a copy of the reply, which saves its reader
# a round trip; the reply's stream stays the truth.
CARRIED_BYTES = 4096


def carried(command: str, packed: bytes) -> bytes | str:
    """
    The payload of a wake-up: a small reply itself, else its command's id (text).
    """
    return packed if len(packed) <= CARRIED_BYTES else command


_records = msgspec.msgpack.Decoder(tuple[Record, ...])
_replies = msgspec.msgpack.Decoder(tuple[HeldReply, ...])


def pack_records(records: list[Record]) -> bytes:
    """
    The outbox value of one commit.
    """
    return pack(records)


def unpack_records(packed: bytes) -> tuple[Record, ...]:
    """
    The records of one commit, in the order of their sessions' first change.
    """
    return _records.decode(packed) if packed else ()


def held_replies(fields: Mapping[bytes, bytes]) -> tuple[HeldReply, ...]:
    """
    The replies that wait for the confirmation of an outbox entry.
    """
    packed = fields.get(REPLIES_FIELD)

    return _replies.decode(packed) if packed else ()


class Found(NamedTuple):
    """
    A session as the hot tier has it.

    Attributes:
        session: the hot copy; None if there is none.
        deleted: the session was deleted; MongoDB may not know it yet.
        elsewhere: the session is not hot, and a tier below holds it.
        lineage: the lineage under which the hot copy is trusted; 0: unknown.
        undecodable: the hot copy does not decode to a session.
        seen: the fields COMPARED as they are stored; empty: they could not be read.
    """

    session: Session | None
    deleted: bool = False
    elsewhere: bool = False
    lineage: int = 0
    undecodable: bool = False
    seen: tuple[bytes, ...] = ()


def read_commands(partition: int, session_id: str) -> tuple[Command, Command, Command]:
    """
    The commands that read a session; `found_in` takes their replies.
    """
    return (
        ("HMGET", key_names.session(partition, session_id), *FIELDS, "lineage"),
        ("LRANGE", key_names.recent(partition, session_id), 0, -1),
        ("GET", key_names.tombstone(partition, session_id)),
    )


def found_in(session_id: str, replies: Sequence[Any]) -> Found:
    """
    The result in the replies to `read_commands`.
    """
    hash_reply, tail, gone = replies
    if isinstance(hash_reply, ResponseError):
        return Found(None, undecodable=True)
    *values, lineage = hash_reply
    stored = dict(zip(FIELDS, values, strict=True)) | {"lineage": lineage}
    seen = tuple(stored[name] or b"" for name in COMPARED)
    if not any(values):
        mark = gone or b""
        deleted, elsewhere = mark.startswith(b"deleted:"), mark == b"elsewhere"
        return Found(None, deleted, elsewhere, seen=seen)
    try:
        session = _decoded(session_id, values, tail)
        return Found(session, lineage=int(lineage or 0), seen=seen)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return Found(None, undecodable=True, seen=seen)


def _decoded(
    session_id: str, values: Sequence[bytes | None], tail: Sequence[bytes]
) -> Session:
    if isinstance(tail, ResponseError):
        raise TypeError("its recent entries are no list")
    decoded: dict[str, Any] = {
        name: int(value) if name in _PLAIN else unpack(value, _TYPES[name])
        for name, value in zip(FIELDS, values, strict=True)
        if value is not None
    }
    return Session(id=session_id, recent_timeline=tuple(tail), **decoded)


def field_arguments(before: Session | None, after: Session) -> list[Any]:
    """
    Names and values of the hash fields that differ between *before* and *after*.
    """
    arguments: list[Any] = []
    for name in FIELDS:
        value = getattr(after, name)
        if before is None or value is not getattr(before, name):
            arguments += (name, value if name in _PLAIN else pack(value))
    return arguments


def tombstone_value(created_at: datetime, version: int) -> str:
    """
    The value of a tombstone, unique for each deletion of a session.
    """
    return f"deleted:{round(created_at.timestamp() * 1000)}.{version}"


class Settling(NamedTuple):
    """
    Commands that an admission settles, since the warm tier holds their effect.

    Attributes:
        windows: publisher → the packed record of its settled numbers.
        free: `<mad>:<command id>` of commands without a number.
        refused: the same of commands that may have been refused under this lineage: a
            refusal that is kept gives way to the effect that the warm tier holds.
    """

    windows: Mapping[str, str] = MappingProxyType({})
    free: Sequence[str] = ()
    refused: Sequence[str] = ()


class Seal(Protocol):
    """
    Seals the hot form of a session; see `gateway.store.sealed_copies`.
    """

    def hash_fields(self, session: Session, arguments: list[Any]) -> None:
        """
        Seal the sensitive values among names and values of the hash.
        """
        ...

    def entries(self, session: Session, entries: Sequence[bytes]) -> list[bytes]:
        """
        The packed entries, sealed.
        """
        ...


class Admitting(NamedTuple):
    """
    The admission of one session into the hot tier of a partition.

    Attributes:
        owner: the lane's owner value, the fence.
        session: what becomes hot; None: nothing does.
        found: the hot copy that the decision rests on; it must be unchanged.
        keeps_hot: the hot copy stays as it is, and is trusted from now on.
        lineage: the lineage under which it is trusted.
        ttl_ms: lifetime of the hot copy.
        ledger_ttl_ms: lifetime of what tells that a free id was used.
    """

    owner: str
    session: Session | None
    found: Found
    keeps_hot: bool
    lineage: int
    ttl_ms: int
    ledger_ttl_ms: int = 600_000


def admit_command(
    partition: int,
    session_id: str,
    admitting: Admitting,
    settling: Settling,
    seal: Seal | None = None,
) -> Command:
    """
    The command that makes a session hot, keeps its hot copy, or removes it; *seal*
    seals it, None without encryption.

    The reply: `ok`; `changed` if the hot copy is another one by now; `superseded`.
    """
    session, found = admitting.session, admitting.found
    fields: list[Argument] = []
    recent: Sequence[bytes] = ()
    if admitting.keeps_hot:
        fields = ["lineage", admitting.lineage]
    elif session is not None:
        own, recent = field_arguments(None, session), session.recent_timeline
        if seal is not None:
            seal.hash_fields(session, own)
            recent = seal.entries(session, recent)
        fields = [
            *own,
            *("durable_version", session.version, "durable_seq", session.last_seq),
            *("durable_notices", session.notices, "lineage", admitting.lineage),
        ]
    how = "keep" if admitting.keeps_hot else "replace"
    windows = [part for window in settling.windows.items() for part in window]
    ttls = (admitting.ttl_ms, admitting.ledger_ttl_ms)

    return script(
        "admit",
        [
            key_names.owner(partition),
            key_names.session(partition, session_id),
            key_names.recent(partition, session_id),
            key_names.publishers(partition),
            *(key_names.ledger(partition, command) for command in settling.free),
            *(key_names.ledger(partition, command) for command in settling.refused),
        ],
        admitting.owner,
        how,
        *ttls,
        len(found.seen),
        *found.seen,
        len(fields),
        *fields,
        len(recent),
        *recent,
        len(windows),
        *windows,
        len(settling.free),
    )


def durable_command(partition: int, session_id: str) -> Command:
    """
    The command that reads how much of a hot session MongoDB holds; see `durable_in`.
    """
    key = key_names.session(partition, session_id)
    return ("HMGET", key, "durable_version", "durable_seq", "refused")


def durable_in(reply: Sequence[bytes | None]) -> Durable:
    """
    The counts in the reply to `durable_command`.
    """
    return Durable(int(reply[0] or 0), int(reply[1] or 0))


def refusal_in(reply: Sequence[bytes | None]) -> Unavailable | None:
    """
    The error if MongoDB refused some of the session, and so never holds all of it.
    """
    if reply[2] != b"1":
        return None
    return Unavailable(
        "MongoDB refused a write of this session, so its hot state never becomes "
        "durable; the dead letters have the write and the reason",
        applied=True,
    )


# A day: longer than any id counts as new.
MARK_TTL_MS = 86_400_000


class RedisHot:
    """
    The hot copies of all partitions, seen from outside the lanes.

    Nothing here writes a session: a lane does, with its owner value as the fence.
    """

    def __init__(self, wire: Wire, partitions: int) -> None:
        self._wire = wire
        self._partitions = partitions

    async def forget(self, session_id: str) -> bool:
        """
        Remove the hot copy if the tiers below hold all of it; whether it is gone.
        """
        p = partition_of(session_id, self._partitions)
        session, recent = (
            key_names.session(p, session_id),
            key_names.recent(p, session_id),
        )
        keys = [session, recent, key_names.tombstone(p, session_id)]
        return bool(await self._wire.call(*script("evict", keys, MARK_TTL_MS)))

    async def exists(self, session_id: str) -> bool:
        """
        Whether the session is hot.
        """
        p = partition_of(session_id, self._partitions)
        return bool(await self._wire.call("EXISTS", key_names.session(p, session_id)))
