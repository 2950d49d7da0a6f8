"""
Outbox entries, and the calls that confirm them once MongoDB holds their records.

Nothing here touches a server.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from everbus.bus.messages import Reply, pack
from everbus.bus.wire import Argument, Command
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import (
    COUNT_FIELD,
    VALUE_FIELD,
    HeldReply,
    Record,
    held_replies,
    tombstone_value,
    unpack_records,
)
from everbus.gateway.store.scripts import script
from everbus.gateway.store.tiers import WriteRefused
from everbus.gateway.store.uuid_age import stays_ms

# Sessions and replies of one call; an entry that has more has a call of its own.
CALL_ITEMS = 500
_STATES = (pack("dormant"), pack("archived"))


class ConfirmationLimits(NamedTuple):
    """
    Times to live in Redis after a confirmation.
    """

    hot_ttl_ms: int = 3_600_000
    reply_ttl_ms: int = 60_000


class OutboxEntry(NamedTuple):
    """
    The outbox entry of one commit.

    Attributes:
        counted: its part of the backlog count; 0 if an operator trimmed it.
        size: its bytes.
        unreadable: its bytes, if they do not decode to records.
    """

    partition: int
    id: str
    counted: int
    records: tuple[Record, ...]
    replies: tuple[HeldReply, ...]
    size: int = 0
    unreadable: bytes = b""


def entry_of(
    partition: int, identifier: bytes, fields: Mapping[bytes, bytes] | None
) -> OutboxEntry:
    """
    The entry; without *fields* it was trimmed before it was read.
    """
    known = fields or {}
    value = known.get(VALUE_FIELD, b"")
    entry = OutboxEntry(
        partition,
        identifier.decode(),
        int(known.get(COUNT_FIELD, 0)),
        (),
        (),
        len(value),
    )
    try:
        records, replies = unpack_records(value), held_replies(known)
    except msgspec.MsgspecError:
        return entry._replace(unreadable=value or b"-")
    return entry._replace(records=records, replies=replies)


def entries_in(streams: Sequence[Any] | None) -> list[OutboxEntry]:
    """
    The entries in the reply to XREADGROUP, in the order of each outbox.
    """
    return [
        entry_of(_partition(key), identifier, _mapping(fields))
        for key, entries in streams or ()
        for identifier, fields in entries
    ]


def confirmations(
    entries: Sequence[OutboxEntry],
    refused: Collection[WriteRefused],
    now_ms: int,
    terms: ConfirmationLimits,
) -> Iterator[Command]:
    """
    The calls that confirm *entries*, given in the order of each outbox.

    Args:
        refused: the records that the warm tier refuses for good. The hot copies of
            their sessions stay from now on, unless another branch took their place,
            and waiting clients get an error.
        now_ms: the server's clock.
    """
    refusals = _Refusals(refused)
    for chunk in _chunks(entries):
        yield _command(chunk, refusals, now_ms, terms)


def idle_confirmation(partition: int) -> Command:
    """
    The call that confirms nothing, but corrects the count of an empty outbox.
    """
    keys = [key_names.outbox(partition), key_names.backlog(partition)]
    return script("confirm", keys, key_names.ARCHIVER_GROUP, 1, *_STATES, 0, 0)


def identity(record: Record) -> tuple[object, ...]:
    """
    The identity of *record* among all records of one write and of other branches.
    """
    commands = tuple(event.command_id for event in record.events[:1])
    counts = (record.version, record.last_seq, record.notices, record.deleted)

    return (record.session, record.created_at, *counts, record.lineage, *commands)


class _Refusals:
    """
    Which records and commands the warm tier refused.
    """

    def __init__(self, refused: Collection[WriteRefused]) -> None:
        self._records = {identity(one.record) for one in refused}
        self._commands = {
            event.command_id: one.diverged
            for one in refused
            for event in one.record.events
        }

    def __contains__(self, record: Record) -> bool:
        return identity(record) in self._records

    def judged(self, held_reply: HeldReply) -> HeldReply:
        """
        The reply to send: *held_reply*, or an error if MongoDB refused its record.
        """
        command = held_reply.command
        if command not in self._commands:
            return held_reply
        reply = _NOT_HELD
        if self._commands[command]:
            reply = _NOT_DURABLE
        return msgspec.structs.replace(
            held_reply, packed=pack(msgspec.structs.replace(reply, id=command))
        )


_NOT_HELD = Reply(
    id="",
    code="defect",
    message="applied, but MongoDB refuses to hold it; what it did stays hot, "
    "and lies in the dead letters with the reason",
)
_NOT_DURABLE = Reply(
    id="",
    code="unavailable",
    message="not durable: the bus lost writes, and MongoDB holds another branch of the "
    "session; the command lies in the dead letters as diverged",
    details={"durable": False},
)


class SessionConfirmation:
    """
    The confirmation of one session: its newest record, its last deletion, and the
    lineage of refused records.
    """

    __slots__ = ("generation", "mark", "newest", "refused")

    def __init__(self) -> None:
        self.mark = ""
        self.newest: Record | None = None
        self.generation = b""
        self.refused: int | None = None

    def add(self, record: Record) -> None:
        if record.deleted:
            self.mark = tombstone_value(record.created_at, record.version)
            self.newest = None
            self.generation = b""
        else:
            self.newest = record
            self.generation = pack(record.created_at)

    def refuse(self, record: Record) -> None:
        """
        Note that the warm tier refused *record*.
        """
        self.refused = max(record.lineage, self.refused or 0)
        if not record.deleted:
            self.generation = pack(record.created_at)

    def arguments(self, ttl_ms: int) -> tuple[Argument, ...]:
        newest = self.newest
        refused: Argument = "" if self.refused is None else self.refused
        if newest is None:
            return (self.generation, "", 0, 0, ttl_ms, 0, self.mark, refused)
        return (
            *(self.generation, newest.version, newest.last_seq, newest.notices),
            *(ttl_ms, int(newest.archived is not None), self.mark, refused),
        )


def _command(
    entries: Sequence[OutboxEntry],
    refusals: _Refusals,
    now_ms: int,
    terms: ConfirmationLimits,
) -> Command:
    partition = entries[0].partition
    changes: dict[str, SessionConfirmation] = {}
    for entry in entries:
        for record in entry.records:
            change = changes.setdefault(record.session, SessionConfirmation())
            change.refuse(record) if record in refusals else change.add(record)
    keys = [key_names.outbox(partition), key_names.backlog(partition)]
    arguments: list[Argument] = [key_names.ARCHIVER_GROUP, terms.reply_ttl_ms, *_STATES]
    arguments += (len(changes), len(entries))
    for session_id, one in changes.items():
        keys += (
            key_names.session(partition, session_id),
            key_names.recent(partition, session_id),
            key_names.tombstone(partition, session_id),
        )
        arguments += one.arguments(stays_ms(session_id, now_ms, terms.hot_ttl_ms))
    for entry in entries:
        replies = [refusals.judged(held_reply) for held_reply in entry.replies]
        arguments += (entry.id, entry.counted, len(replies))
        for reply in replies:
            keys.append(reply.stream)
            arguments += (reply.packed, _otherwise(reply))
            if reply.session:
                keys.append(key_names.session(partition, reply.session))
        wake_ups = _wake_ups(replies)
        arguments += (
            len(wake_ups),
            *(part for wake_up in wake_ups for part in wake_up),
        )

    return script("confirm", keys, *arguments)


def _otherwise(reply: HeldReply) -> bytes:
    """
    The reply instead of *reply* if MongoDB refused records of its session.
    """
    if not reply.session:
        return b""
    return pack(msgspec.structs.replace(_NOT_DURABLE, id=reply.command))


def _wake_ups(replies: Sequence[HeldReply]) -> list[tuple[str, bytes]]:
    """
    Channel and message of each wake-up for *replies*.
    """
    carried: dict[str, list[bytes | str]] = {}
    for reply in replies:
        if reply.channel:
            carried.setdefault(reply.channel, []).append(reply.carried)
    return [(channel, pack(replies)) for channel, replies in carried.items()]


def _chunks(entries: Sequence[OutboxEntry]) -> Iterator[list[OutboxEntry]]:
    """
    Runs of entries of one partition, with at most CALL_ITEMS records and replies.
    """
    chunk: list[OutboxEntry] = []
    items = 0
    for entry in entries:
        more = max(1, len(entry.records) + len(entry.replies))
        if chunk and (
            items + more > CALL_ITEMS or entry.partition != chunk[0].partition
        ):
            yield chunk
            chunk, items = [], 0
        chunk.append(entry)
        items += more
    if chunk:
        yield chunk


def _partition(outbox: bytes) -> int:
    return int(outbox.decode().partition("{")[2].partition("}")[0])


def _mapping(fields: list[bytes] | None) -> dict[bytes, bytes] | None:
    if fields is None:
        return None
    return dict(zip(fields[::2], fields[1::2], strict=True))
