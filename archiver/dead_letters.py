"""
Dead letters of the archiver: refused records and undecodable entries.

Nothing here touches a server.
"""

from collections.abc import Iterator, Sequence

import structlog

from everbus.archiver.confirmation import OutboxEntry, identity
from everbus.bus.messages import pack
from everbus.bus.wire import Command
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import DeadLetter
from everbus.gateway.store.scripts import script
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import WriteRefused
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()


def burials(
    refused: Sequence[WriteRefused],
    entries: Sequence[OutboxEntry],
    now_ms: int,
    sealed: SealedCopies | None = None,
) -> Iterator[Command]:
    """
    The commands that bury *refused* records, and undecodable entries, whole; *sealed*
    encrypts what they hold.
    """
    places = {
        identity(record): (entry, index)
        for entry in entries
        for index, record in enumerate(entry.records)
    }
    for one in refused:
        record, reason = one.record, one.reason
        cause = "diverged" if one.diverged else "constraint"
        entry, index = places[identity(record)]
        log.error(
            "record.buried",
            session=record.session,
            version=record.version,
            entry=entry.id,
            cause=cause,
            reason=reason,
        )
        packed = pack(record)
        letter = _letter(entry, index, cause, reason, packed, now_ms)
        yield _burial(entry, letter, sealed)
    for entry in entries:
        if entry.unreadable:
            reason = "the entry's records cannot be decoded"
            log.error("record.buried", entry=entry.id, reason=reason)
            packed = entry.unreadable
            letter = _letter(entry, 0, "undecodable", reason, packed, now_ms)
            yield _burial(entry, letter, sealed)


def _letter(
    entry: OutboxEntry, index: int, cause: str, reason: str, packed: bytes, now_ms: int
) -> DeadLetter:
    return DeadLetter(
        mad="archiver",
        entry=entry.id,
        index=index,
        cause=cause,
        message=reason,
        at_ms=now_ms,
        packed=packed,
    )


def _burial(
    entry: OutboxEntry, letter: DeadLetter, sealed: SealedCopies | None
) -> Command:
    cause = letter.cause
    metrics.BURIED_RECORDS.labels(cause).inc()
    if sealed is not None:
        letter = sealed.letter(letter)
    # Not capped, as a lane's are: this may be the only copy of what was committed.
    # Also out of memory: the drain, which frees it, stands still before the letter.
    fields = ("*", "cause", cause, "d", pack(letter))

    return script("write", [key_names.dead(entry.partition)], "XADD", *fields)
