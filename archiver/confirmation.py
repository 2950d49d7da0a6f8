"""
Outbox entries, and the calls that confirm them once MongoDB holds what they say.

Nothing here touches a server.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bus.codec import pack
from bus.messages import Reply
from bus.wire import Argument, Command
from gateway.store import names
from gateway.store.hot import deleted_mark
from gateway.store.newborn import stays_ms
from gateway.store.outbox import (
    COUNT_FIELD,
    VALUE_FIELD,
    HeldReply,
    Record,
    held_replies,
    unpack_records,
)
from gateway.store.scripts import script

# Sessions and replies of one call; an entry that has more has a call of its own.
CALL_ITEMS = 500
_STATES = (pack("dormant"), pack("archived"))


class Terms(NamedTuple):
    """
    How long things stay in Redis after they were confirmed.
    """

    hot_ttl_ms: int = 3_600_000
    reply_ttl_ms: int = 60_000


class OutboxEntry(NamedTuple):
    """
    What one commit left in the outbox.

    Attributes:
        counted: how many records were counted for it; 0 if somebody trimmed it.
        size: its bytes.
        unreadable: its bytes if they are no records; then it has none.
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
    The entry; without *fields* it was trimmed away before it could be read.
    """
    told = fields or {}
    value = told.get(VALUE_FIELD, b"")
    entry = OutboxEntry(
        partition,
        identifier.decode(),
        int(told.get(COUNT_FIELD, 0)),
        (),
        (),
        len(value),
    )
    try:
        records, replies = unpack_records(value), held_replies(told)
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
    refused: Collection[Record],
    now_ms: int,
    terms: Terms,
) -> Iterator[Command]:
    """
    The calls that confirm *entries*, given in the order of each outbox.

    Args:
        refused: the records that the warm tier will never take. Their sessions'
            hot copies stay, from now on, and who waits for them is told.
        now_ms: the server's clock.
    """
    refusals = _Refusals(refused)
    for chunk in _chunks(entries):
        yield _command(chunk, refusals, now_ms, terms)


def idle_confirmation(partition: int) -> Command:
    """
    The call that confirms nothing, but rights the count of an empty outbox.
    """
    keys = [names.outbox(partition), names.backlog(partition)]
    return script("confirm", keys, names.ARCHIVER_GROUP, 1, *_STATES, 0, 0)


class _Refusals:
    """
    Which sessions and commands the refused records concern.
    """

    def __init__(self, refused: Collection[Record]) -> None:
        self.sessions = {record.session for record in refused}
        self._commands = {e.command_id for r in refused for e in r.events}

    def judged(self, held: HeldReply) -> HeldReply:
        """
        The reply to give: *held*, or that MongoDB will not have what it is about.
        """
        if held.command not in self._commands:
            return held
        reply = Reply(
            id=held.command,
            code="defect",
            message="applied, but MongoDB refuses to hold it; what it did stays hot, "
            "and lies in the dead letters with the reason",
        )
        return msgspec.structs.replace(held, packed=pack(reply))


class _Told:
    """
    What is told about one session: its newest record, and its last deletion.
    """

    __slots__ = ("mark", "newest")

    def __init__(self) -> None:
        self.mark = ""
        self.newest: Record | None = None

    def add(self, record: Record) -> None:
        if record.deleted:
            self.mark = deleted_mark(record.created_at, record.version)
            self.newest = None
        else:
            self.newest = record

    def arguments(self, ttl_ms: int, *, refused: bool) -> tuple[Argument, ...]:
        newest, mark = self.newest, "" if refused else self.mark
        if newest is None:
            return (b"", 0, 0, 0, ttl_ms, 0, mark)
        if refused:
            return (pack(newest.created_at), b"", 0, 0, 0, 0, mark)
        return (
            *(pack(newest.created_at), newest.version, newest.last_seq),
            *(newest.notices, ttl_ms, int(newest.archived is not None), mark),
        )


def _command(
    entries: Sequence[OutboxEntry], refusals: _Refusals, now_ms: int, terms: Terms
) -> Command:
    partition = entries[0].partition
    told: dict[str, _Told] = {}
    for entry in entries:
        for record in entry.records:
            told.setdefault(record.session, _Told()).add(record)
    keys = [names.outbox(partition), names.backlog(partition)]
    arguments: list[Argument] = [names.ARCHIVER_GROUP, terms.reply_ttl_ms, *_STATES]
    arguments += (len(told), len(entries))
    for session_id, one in told.items():
        keys += (
            names.session(partition, session_id),
            names.recent(partition, session_id),
            names.gone(partition, session_id),
        )
        ttl_ms = stays_ms(session_id, now_ms, terms.hot_ttl_ms)
        refused = session_id in refusals.sessions
        arguments += one.arguments(ttl_ms, refused=refused)
    for entry in entries:
        replies = [refusals.judged(held) for held in entry.replies]
        keys += (reply.stream for reply in replies)
        arguments += (entry.id, entry.counted, len(replies))
        arguments += (reply.packed for reply in replies)
        wakes = _wakes(replies)
        arguments += (len(wakes), *(part for wake in wakes for part in wake))

    return script("confirm", keys, *arguments)


def _wakes(replies: Sequence[HeldReply]) -> list[tuple[str, bytes]]:
    """
    Channel and message of each wake-up for *replies*.
    """
    carried: dict[str, list[bytes | str]] = {}
    for reply in replies:
        if reply.channel:
            carried.setdefault(reply.channel, []).append(reply.carried)
    return [(channel, pack(told)) for channel, told in carried.items()]


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
