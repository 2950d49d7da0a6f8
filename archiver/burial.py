"""
Dead letters of the archiver: what the warm tier never takes, or nobody can read.

Nothing here touches a server.
"""

from collections.abc import Iterator, Sequence

import structlog

from archiver.confirmation import OutboxEntry
from bus.codec import pack
from bus.wire import Command
from gateway import metrics
from gateway.store import names
from gateway.store.letters import DeadLetter
from gateway.store.outbox import Record
from gateway.store.tiers import Refused

log = structlog.get_logger()


def burials(
    refused: Sequence[Refused], entries: Sequence[OutboxEntry], now_ms: int
) -> Iterator[Command]:
    """
    What keeps *refused*, and entries that are no records, as dead letters, whole.
    """
    places = {
        _key(record): (entry, index)
        for entry in entries
        for index, record in enumerate(entry.records)
    }
    for record, reason in ((one.record, one.reason) for one in refused):
        entry, index = places[_key(record)]
        log.error(
            "record.buried",
            session=record.session,
            version=record.version,
            entry=entry.id,
            reason=reason,
        )
        packed = pack(record)
        yield _burial(entry, index, "constraint", reason, packed, now_ms)
    for entry in entries:
        if entry.unreadable:
            reason = "the entry's records cannot be decoded"
            log.error("record.buried", entry=entry.id, reason=reason)
            packed = entry.unreadable
            yield _burial(entry, 0, "undecodable", reason, packed, now_ms)


def _burial(
    entry: OutboxEntry, index: int, cause: str, reason: str, packed: bytes, now_ms: int
) -> Command:
    letter = DeadLetter(
        mad="archiver",
        entry=entry.id,
        index=index,
        cause=cause,
        message=reason,
        at_ms=now_ms,
        packed=packed,
    )
    metrics.BURIED_RECORDS.labels(cause).inc()
    # Not capped, as a lane's are: this may be the only copy of what was committed.
    return ("XADD", names.dead(entry.partition), "*", "cause", cause, "d", pack(letter))


def _key(record: Record) -> tuple[object, ...]:
    """
    What tells the records of a write apart, as far as a dead letter needs it.
    """
    return (
        record.session,
        record.created_at,
        record.version,
        record.last_seq,
        record.deleted,
    )
