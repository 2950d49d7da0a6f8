"""
The writes of the commands that are decided together, until they are committed.

Nothing here touches a server: a batch is staged in memory and becomes the one
`commit` call, which takes effect as a whole or not at all. The change of a session
and the call share this file, since they are the two halves of one argument list.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from everbus.bus import keys
from everbus.bus.messages import Envelope, Reply, Session, pack
from everbus.bus.settled_numbers import REFUSED, RefusedCommand
from everbus.bus.wire import Argument, Command
from everbus.gateway.lane.attachments import Attachments
from everbus.gateway.lane.connection import Disturbed, check_fenced
from everbus.gateway.lane.delivery import (
    Delivery,
    Entry,
    Now,
    Received,
    Undecodable,
    fingerprint_of,
    without_grant,
    without_tokens,
)
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.lane.subscribers import Change, Subscribers
from everbus.gateway.store import hot_copy, key_names
from everbus.gateway.store.dead_letters import MAX_KEPT_BYTES, DeadLetter
from everbus.gateway.store.hot_copy import HeldReply, Record, carried, pack_records
from everbus.gateway.store.scripts import call_of
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.handlers.commands import Attachment
from everbus.handlers.outcomes import Archived, Event, NewCheckpoint, Outcome

# KEPT_APART: the ledger's value follows, since it is sealed.
TO_STREAM, TO_LEDGER, KEPT_APART = 1, 2, 4


class BatchLimits(NamedTuple):
    """
    The data that a commit keeps, and for how long.
    """

    reply_ttl_ms: int = 60_000
    ledger_ttl_ms: int = 600_000
    dead_letters: int = 10_000
    dead_bytes: int = 8 * 1024 * 1024


class Lineages(NamedTuple):
    """
    The lineages under which changes are committed.

    Attributes:
        current: of the partition's hot data.
        unclaimed: session id → lineage, of sessions served without a claim.
    """

    current: int = 0
    unclaimed: Mapping[str, int] = MappingProxyType({})

    def of(self, session_id: str) -> int:
        """
        The lineage of a change of that session.
        """
        return self.unclaimed.get(session_id, self.current)


NO_LINEAGES = Lineages()
_COMMIT = call_of("commit")


class StagedChange:
    """
    The change of one session by one batch.

    Attributes:
        read: the session at the start of the batch; None if there was none.
        now: the session after the batch; None if there is none.
        last_entries: entries that were appended before the session was deleted.
    """

    __slots__ = (
        "archived",
        "checkpoints",
        "entries",
        "events",
        "last_entries",
        "now",
        "read",
    )

    def __init__(self, read: Session | None) -> None:
        self.read = read
        self.now = read
        self.entries: list[bytes] = []
        self.last_entries: list[bytes] = []
        self.events: list[Event] = []
        self.checkpoints: list[NewCheckpoint] = []
        self.archived: Archived | None = None

    def apply(self, outcome: Outcome) -> None:
        """
        Add the outcome of one more command.
        """
        self.now = outcome.session
        self.events += outcome.events
        if outcome.session is None:
            # No tier keeps them, but subscribers get them before the end.
            self.last_entries += self.entries
            self.entries.clear()
            self.checkpoints.clear()
        elif outcome.entries:
            self.entries += outcome.entries
        if outcome.checkpoint is not None:
            self.checkpoints.append(outcome.checkpoint)
        if outcome.archived is not None:
            self.archived = outcome.archived

    def compared(self) -> Argument:
        """
        The state that was read, as the commit script compares it; empty for none.
        """
        read = self.read
        if read is None:
            return ""
        counts = f"{read.version},{read.last_seq},{read.notices},"

        return counts.encode() + pack(read.created_at)

    def arguments(
        self, lineage: int, sealed: SealedCopies | None = None
    ) -> list[Argument]:
        """
        The session's part of the commit script's arguments; a new session is one of
        *lineage*. *sealed*: seals its fields.
        """
        if self.now is None:
            return [-1 if self.read is not None else 0, 0, -1]
        if self.now is self.read:
            return [0, 0, -1]
        fields = hot_copy.field_arguments(self.read, self.now)
        if sealed is not None:
            sealed.hash_fields(self.now, fields)
        if self.read is not None and self.read.created_at != self.now.created_at:
            # A new generation of the id: none of it is durable yet, or refused.
            fields += ("durable_version", 0, "durable_seq", 0, "durable_notices", 0)
            fields += ("refused", 0)
        if self.read is None or self.read.created_at != self.now.created_at:
            fields += ("lineage", lineage)
        tail = self.now.recent_timeline
        fresh = self.entries[-len(tail) :] if tail else []
        keep = len(tail) if self.entries or self._tail_shrank() else -1

        return [len(fields), *fields, len(fresh), *fresh, keep]

    def record(self, lineage: int) -> Record | None:
        """
        The archiver's record of the change; None if nothing changed.
        """
        last = self.now or self.read
        if last is None or not self.events:
            return None
        deleted = self.now is None
        moved = any(event.patch is not None for event in self.events)
        return Record(
            session=last.id,
            created_at=last.created_at,
            version=self.events[-1].version,
            last_seq=last.last_seq,
            last_active=last.last_active,
            notices=last.notices,
            state=msgspec.structs.replace(last, recent_timeline=())
            if moved and not deleted
            else None,
            entries=tuple(msgspec.Raw(entry) for entry in self.entries),
            events=tuple(self.events),
            deleted=deleted,
            checkpoints=tuple(self.checkpoints),
            archived=self.archived,
            lineage=lineage,
        )

    def seen_by_subscribers(self) -> Change:
        """
        The change as subscribers see it.
        """
        entries = self.entries
        if self.last_entries:
            entries = [*self.last_entries, *entries]

        return Change(self.read, self.now, self.events, entries)

    def seal_entries(self, sealed: SealedCopies) -> None:
        """
        Seal the new entries, for the hot tail and the record alike; subscribers have
        got them plain before.
        """
        if self.now is not None and self.entries:
            self.entries = sealed.entries(self.now, self.entries)

    def tombstone(self) -> str | None:
        """
        The mark that hides a deleted session in the lower tiers; None if it lives.
        """
        if self.now is not None or self.read is None:
            return None
        return hot_copy.tombstone_value(self.read.created_at, self.events[-1].version)

    def _tail_shrank(self) -> bool:
        before = self.read.recent_timeline if self.read else ()
        return self.now is not None and len(self.now.recent_timeline) < len(before)


class Batch:
    """
    Staged changes, replies, dead letters and acknowledgements of one partition.

    Attributes:
        now: the time by which its commands are decided.
        changes: session id → its change.
        kept: `<mad>:<command id>` → the first reply, as the ledger will keep it.
        outcomes: number of commands by (kind, code).
        traced: the commands with recorded spans, each with its code.
        lineages: under which its changes are committed.
        replicating: deliveries with their replies, which wait for Redis's replicas;
            until then their entries stay pending.
        sealed: seals what the hot tier keeps; None without encryption.
    """

    def __init__(
        self,
        partition: int,
        limits: BatchLimits,
        now: Now,
        subscribers: Subscribers | None = None,
        lineages: Lineages = NO_LINEAGES,
        sealed: SealedCopies | None = None,
    ) -> None:
        self.sealed = sealed
        self.partition = partition
        self.lineages = lineages
        self.now = now
        self.changes: dict[str, StagedChange] = {}
        self.kept: dict[str, bytes] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.replicating: list[tuple[Delivery, bytes]] = []
        self.traced: list[tuple[Envelope, str]] = []
        self._limits = limits
        self._subscribers = subscribers
        self._attachments: Attachments | None = None
        self._windows: dict[str, ProducerWindow] = {}
        self._records: dict[str, str] = {}
        self._acks: dict[str, list[str]] = {}
        self._trims: dict[str, str] = {}
        self._replies: list[tuple[Delivery, int, bytes]] = []
        self._wakes: dict[str, list[bytes | str | msgspec.Raw]] = {}
        self._letters: list[tuple[str, str, bytes]] = []
        self._forget: list[str] = []
        self._held: list[HeldReply] = []

    def __bool__(self) -> bool:
        return bool(
            self._acks or self._replies or self._letters or self._windows or self._held
        )

    @property
    def letters(self) -> list[str]:
        """
        The causes of the dead letters staged so far.
        """
        return [cause for cause, _, _ in self._letters]

    @property
    def attachments(self) -> Attachments:
        """
        The staged attachments; most batches have none and make no object for them.
        """
        if self._attachments is None:
            self._attachments = Attachments()
        return self._attachments

    def attached(self, delivery: Delivery) -> tuple[Attachment, ...]:
        """
        The attachments of the session, after the batch's earlier commands.
        """
        if self._attachments is None:
            return delivery.attached
        return self._attachments.now(delivery.attached, delivery.session)

    def touch(self, session_id: str, session: Session | None) -> StagedChange:
        """
        The change of a session; *session* is its state before the batch's first.
        """
        change = self.changes.get(session_id)
        if change is None:
            change = self.changes[session_id] = StagedChange(session)
        return change

    def reply(self, delivery: Delivery, packed: bytes, flags: int) -> None:
        """
        Stage a reply to its stream, to the ledger, or to both.
        """
        if flags & TO_LEDGER:
            self.kept[delivery.command] = packed
        self._replies.append((delivery, flags, packed))
        if flags & TO_STREAM:
            self.wake(delivery, packed)

    def wake(self, delivery: Delivery, packed: bytes) -> None:
        """
        Stage the wake-up of the instance that waits for the reply *packed*.
        """
        if instance := delivery.instance:
            channel = keys.wake(delivery.entry.mad, instance)
            reply = carried(delivery.envelope.id, packed)
            self._wakes.setdefault(channel, []).append(reply)

    def stored_replies(self) -> Iterator[tuple[Delivery, str, int]]:
        """
        The replies on streams: what each answers, its stream, its bytes.
        """
        for delivery, flags, packed in self._replies:
            if flags & TO_STREAM:
                yield delivery, _reply_stream(self.partition, delivery), len(packed)

    def announce(self, delivery: Delivery, refused: RefusedCommand) -> None:
        """
        Stage the message to an instance that a command without a reply was refused.
        """
        channel = keys.wake(delivery.entry.mad, delivery.instance)
        message = msgspec.Raw(pack({REFUSED: refused}))
        self._wakes.setdefault(channel, []).append(message)

    def hold(self, delivery: Delivery, packed: bytes, session: str = "") -> None:
        """
        Stage a reply for the time when MongoDB holds all committed so far. With
        *session*, it turns into an error if MongoDB refused a record of that session.
        """
        instance = delivery.instance
        self._held.append(
            HeldReply(
                stream=_reply_stream(self.partition, delivery),
                channel=keys.wake(delivery.entry.mad, instance) if instance else "",
                command=delivery.envelope.id,
                packed=packed,
                session=session,
            )
        )

    def replicate(self, delivery: Delivery, packed: bytes) -> None:
        """
        Stage a reply for the time when Redis's replicas have the batch.
        """
        self.replicating.append((delivery, packed))

    def bury(self, delivery: Delivery, cause: str, message: str) -> None:
        """
        Stage a dead letter with the command.
        """
        principal = delivery.principal
        letter = DeadLetter(
            mad=delivery.mad,
            entry=delivery.entry.id,
            index=delivery.index,
            cause=cause,
            message=message,
            at_ms=self.now.ms,
            attempts=tuple(delivery.attempts),
            envelope=without_grant(delivery.envelope),
            packed=b"",
            principal=principal.name if principal else "",
            role=principal.role if principal else "",
            tenant=principal.tenant if principal else "",
        )
        self._bury(cause, delivery.entry.mad, letter)

    def bury_undecodable(self, received: Undecodable) -> None:
        """
        Stage a dead letter with the command as far as it decodes, or with its bytes.
        """
        cause, message = received.cause, received.trouble.message
        if received.delivery is not None:
            self.bury(received.delivery, cause, message)
            return
        letter = DeadLetter(
            mad=received.entry.mad,
            entry=received.entry.id,
            index=received.index,
            cause=cause,
            message=message,
            at_ms=self.now.ms,
            attempts=tuple(received.attempts),
            envelope=None,
            packed=without_tokens(received.packed)[:MAX_KEPT_BYTES],
            principal="",
            role="",
            tenant="",
        )
        self._bury(cause, received.entry.mad, letter)

    def _bury(self, cause: str, mad: str, letter: DeadLetter) -> None:
        if self.sealed is not None:
            letter = self.sealed.letter(letter)
        self._letters.append((cause, mad, pack(letter)))

    def settle(self, received: Received, window: ProducerWindow | None) -> None:
        """
        Stage the end of a command, and its entry's acknowledgement if it was last.
        """
        self.note(received, window)
        self.release(received)

    def note(self, received: Received, window: ProducerWindow | None) -> None:
        """
        Stage that a command has had its effect; its entry stays pending.
        """
        if window is not None and received.ordinal and received.publisher:
            window.settle(received.ordinal.n, self.now.ms // 1000)
            if not window.undecodable:
                self._windows[received.publisher] = window
        if received.suspect:
            self._forget.append(received.name)

    def release(self, received: Received) -> None:
        """
        Stage the acknowledgement of the entry if the command was the last in it.
        """
        entry = received.entry
        entry.unsettled -= 1
        if entry.unsettled == 0:
            self.acknowledge(entry)

    def acknowledge(self, entry: Entry) -> None:
        """
        Stage the acknowledgement of a whole entry.
        """
        self._acks.setdefault(entry.mad, []).append(entry.id)

    def trim(self, mad: str, before: str) -> None:
        """
        Stage the removal of all entries before id *before* on an ingress.
        """
        self._trims[mad] = before
        self._acks.setdefault(mad, [])

    @property
    def acknowledged(self) -> dict[str, list[str]]:
        """
        MAD → ids of the entries that the commit acknowledges.
        """
        return self._acks

    def command(self, owner: str) -> Command:
        """
        The commit call, valid while the lane's owner value is *owner*.
        """
        if self._subscribers is not None and self._subscribers.sessions:
            self._push(self._subscribers)
        if self.sealed is not None:
            for change in self.changes.values():
                change.seal_entries(self.sealed)
        records = self._record_changes()
        tombstones = self._tombstones()
        limits = self._limits
        head: list[Argument] = [
            owner,
            len(self.changes),
            len(self._acks),
            len(self._replies),
            keys.GROUP,
            limits.reply_ttl_ms,
            limits.ledger_ttl_ms,
            f"{limits.dead_letters},{limits.dead_bytes}",
            len(records),
            self._packed(records) if records else b"",
            self._packed_held() if self._held else b"",
            len(tombstones),
            *tombstones.values(),
        ]
        names = self._keys(tombstones)

        return (*_COMMIT, len(names), *names, *head, *self._arguments())

    def confirm(self) -> None:
        """
        Note that the commit call has taken effect.
        """
        for publisher, record in self._records.items():
            self._windows[publisher].stored = record

    def _record_changes(self) -> list[Record]:
        lineages = self.lineages
        records = (
            change.record(lineages.of(session_id))
            for session_id, change in self.changes.items()
        )
        return [record for record in records if record is not None]

    async def prepare(self) -> None:
        """
        Have the keys that seal this batch.

        Raises:
            Unavailable: a new tenant's key cannot be made now.
        """
        if self.sealed is not None:
            await self.sealed.ready(set(map(_tenant_of, self.changes.values())))

    def _packed(self, records: list[Record]) -> bytes:
        if self.sealed is None:
            return pack_records(records)
        tenants = {
            session_id: _tenant_of(change)
            for session_id, change in self.changes.items()
        }
        return self.sealed.records((tenants[one.session], one) for one in records)

    def _packed_held(self) -> bytes:
        held = pack(self._held)

        return held if self.sealed is None else self.sealed.held(held)

    def _push(self, subscribers: Subscribers) -> None:
        changes = ((s, c.seen_by_subscribers()) for s, c in self.changes.items())
        for channel, message in subscribers.pushes(changes):
            self._wakes.setdefault(channel, []).append(message)

    def _tombstones(self) -> dict[str, str]:
        return {
            session_id: tombstone
            for session_id, change in self.changes.items()
            if (tombstone := change.tombstone()) is not None
        }

    def _keys(self, deleted: Iterable[str]) -> list[str]:
        p = self.partition
        every = [*_fixed_keys(p)]
        for session_id in self.changes:
            every += (key_names.session(p, session_id), key_names.recent(p, session_id))
        every += (key_names.tombstone(p, session_id) for session_id in deleted)
        every += (keys.ingress(p, mad) for mad in self._acks)
        for delivery, _, _ in self._replies:
            every += (
                _reply_stream(p, delivery),
                key_names.ledger(p, delivery.command),
            )
        if self._attachments:
            every += (
                key_names.attached(p),
                key_names.fences(p),
                keys.ingress(p, keys.GATEWAY),
            )
        return every

    def _compared(self) -> list[Argument]:
        """
        All that the decisions rest on, as it was read.
        """
        arguments = [change.compared() for change in self.changes.values()]
        arguments.append(len(self._windows))
        for publisher, window in self._windows.items():
            arguments += (publisher, window.stored)
        return arguments

    def _sealed_replies(self, sealed: SealedCopies) -> list[Argument]:
        arguments: list[Argument] = []
        for delivery, flags, packed in self._replies:
            if flags & TO_LEDGER:
                kept = sealed.reply(packed, delivery.command)
                arguments += (flags | KEPT_APART, packed, kept)
            else:
                arguments += (flags, packed)
        return arguments

    def _arguments(self) -> list[Argument]:  # noqa: C901 - one argument list
        arguments = self._compared()
        for change in self.changes.values():
            arguments += change.arguments(self.lineages.current, self.sealed)
        self._records = {name: one.pack() for name, one in self._windows.items()}
        arguments.append(2 * len(self._records))
        for record in self._records.items():
            arguments += record
        arguments += (len(self._forget), *self._forget)
        arguments.append(len(self._letters))
        for letter in self._letters:
            arguments += letter
        for mad, ids in self._acks.items():
            arguments += (mad, len(ids), *ids, self._trims.get(mad, ""))
        if self.sealed is None:
            for _, flags, packed in self._replies:
                arguments += (flags, packed)
        else:
            arguments += self._sealed_replies(self.sealed)
        arguments.append(len(self._wakes))
        for channel, messages in self._wakes.items():
            arguments += (channel, pack(messages))
        if self._attachments:
            arguments += self._attachments.arguments()
        return arguments


def _tenant_of(change: StagedChange) -> str:
    last = change.now or change.read

    return "" if last is None else last.tenant


@lru_cache(maxsize=1024)
def _fixed_keys(partition: int) -> tuple[str, ...]:
    return (
        key_names.owner(partition),
        key_names.outbox(partition),
        key_names.backlog(partition),
        key_names.publishers(partition),
        key_names.dead(partition),
        key_names.attempts(partition),
        key_names.trim_points(partition),
    )


def _reply_stream(partition: int, delivery: Delivery) -> str:
    # A number is its instance's own; nobody else asks under it.
    asking = "" if delivery.ordinal is not None else delivery.instance

    return keys.reply(partition, delivery.entry.mad, delivery.envelope.id, asking)


def backlog_after(reply: Any) -> int:
    """
    Number of outbox records that wait for the archiver, from the commit's reply.

    Raises:
        LaneLost: the lane has another owner; nothing was written.
        Disturbed: the lane's cache was not true; nothing was written.
    """
    status, backlog, *_ = check_fenced(reply)
    if status == b"stale":
        raise Disturbed("a hot copy changed under the lane", cause="stale")
    return int(backlog)


def dropped_letters(reply: Any) -> int:
    """
    Number of dead letters that newer ones of their MAD have pushed out.
    """
    return int(reply[2])


def packed_reply(delivery: Delivery, body: Any) -> bytes:
    """
    The wire form of an ok reply; *body* is a value of bus.messages or None.
    """
    envelope = delivery.envelope
    # Packed in place, not as a packed part of its own, which would pack it twice.
    reply = Reply(
        id=envelope.id,
        body=body,
        trace=envelope.trace,
        fingerprint=fingerprint_of(delivery),
    )
    return pack(reply)
