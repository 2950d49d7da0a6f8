"""
The writes of the commands that are settled together, until they are committed.

Nothing here touches a server: a batch is staged in memory and becomes the one
`commit` call, which takes effect as a whole or not at all.
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from bus import keys
from bus.codec import pack
from bus.messages import Envelope, Reply, Session
from bus.wire import Argument, Command
from gateway.delivery import (
    Entry,
    Work,
    fingerprint_of,
    without_grant,
    without_tokens,
)
from gateway.errors import Disturbed, check_fenced
from gateway.progress import Progress
from gateway.store import hot, names
from gateway.store.letters import MAX_KEPT_BYTES, DeadLetter
from gateway.store.outbox import HeldReply, Record, carried, pack_records
from gateway.store.scripts import script
from gateway.watchers import News, Watchers
from gateway.whereabouts import Whereabouts
from handlers.outcomes import Archived, Event, NewCheckpoint, Outcome

TO_STREAM, TO_LEDGER = 1, 2


class Limits(NamedTuple):
    """
    What a commit keeps, and for how long.
    """

    reply_ttl_ms: int = 60_000
    ledger_ttl_ms: int = 600_000
    dead_letters: int = 10_000


class Change:
    """
    What a batch does to one session.

    Attributes:
        read: the session as it was when the batch began; None: there was none.
        now: the session after the batch; None: there is none.
        said: what was appended before the session was deleted.
    """

    __slots__ = ("archived", "checkpoints", "entries", "events", "now", "read", "said")

    def __init__(self, read: Session | None) -> None:
        self.read = read
        self.now = read
        self.entries: list[bytes] = []
        self.said: list[bytes] = []
        self.events: list[Event] = []
        self.checkpoints: list[NewCheckpoint] = []
        self.archived: Archived | None = None

    def apply(self, outcome: Outcome) -> None:
        """
        Note what one more command did.
        """
        self.now = outcome.session
        self.events += outcome.events
        if outcome.session is None:
            # Kept nowhere, but who watches hears of it before the end.
            self.said += self.entries
            self.entries.clear()
            self.checkpoints.clear()
        elif outcome.entry is not None:
            self.entries.append(outcome.entry)
        if outcome.checkpoint is not None:
            self.checkpoints.append(outcome.checkpoint)
        if outcome.archived is not None:
            self.archived = outcome.archived

    def arguments(self) -> list[Argument]:
        """
        The session's part of the commit script's arguments.
        """
        if self.now is None:
            return [-1 if self.read is not None else 0, 0, -1]
        if self.now is self.read:
            return [0, 0, -1]
        fields = hot.field_arguments(self.read, self.now)
        if self.read is not None and self.read.created_at != self.now.created_at:
            # Made again under its old id: nothing of it is durable yet, or refused.
            fields += ("durable_version", 0, "durable_seq", 0, "durable_notices", 0)
            fields += ("refused", 0)
        tail = self.now.recent_timeline
        fresh = self.entries[-len(tail) :] if tail else []
        keep = len(tail) if self.entries or self._tail_shrank() else -1

        return [len(fields), *fields, len(fresh), *fresh, keep]

    def record(self) -> Record | None:
        """
        What the archiver must know of it; None if nothing changed.
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
        )

    def news(self) -> News:
        """
        What those are to hear of it who watch.
        """
        entries = [*self.said, *self.entries] if self.said else self.entries

        return News(self.read, self.now, self.events, entries)

    def deleted_mark(self) -> str | None:
        """
        What keeps a deleted session from being found below; None if it is not.
        """
        if self.now is not None or self.read is None:
            return None
        return hot.deleted_mark(self.read.created_at, self.events[-1].version)

    def _tail_shrank(self) -> bool:
        before = self.read.recent_timeline if self.read else ()
        return self.now is not None and len(self.now.recent_timeline) < len(before)


class Batch:
    """
    Staged changes, replies, dead letters and acknowledgements of one partition.

    Attributes:
        changes: session id → what is done to it.
        kept: `<mad>:<command id>` → the first reply, as the ledger will keep it.
        outcomes: how many commands ended how, by (kind, code).
        traced: the commands whose spans are recorded, and how they ended.
        whereabouts: which instances come into sessions and leave them.
        replicating: works that are replied to when Redis's replicas have the batch,
            with their replies; until then their entries stay pending.
    """

    def __init__(
        self, partition: int, limits: Limits, watchers: Watchers | None = None
    ) -> None:
        self.partition = partition
        self.changes: dict[str, Change] = {}
        self.kept: dict[str, bytes] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._limits = limits
        self._progress: dict[str, Progress] = {}
        self._acks: dict[str, list[str]] = {}
        self._trims: dict[str, str] = {}
        self._replies: list[tuple[Work, int, bytes]] = []
        self._wakes: dict[str, list[bytes | str | msgspec.Raw]] = {}
        self._watchers = watchers
        self._letters: list[tuple[str, bytes]] = []
        self._forget: list[str] = []
        self._held: list[HeldReply] = []
        self.replicating: list[tuple[Work, bytes]] = []
        self.whereabouts = Whereabouts()
        self.traced: list[tuple[Envelope, str]] = []

    def __bool__(self) -> bool:
        return bool(
            self._acks or self._replies or self._letters or self._progress or self._held
        )

    @property
    def letters(self) -> list[str]:
        """
        The causes of the dead letters staged so far.
        """
        return [cause for cause, _ in self._letters]

    def touch(self, session_id: str, session: Session | None) -> Change:
        """
        The change of a session; *session* is how it was before the batch's first.
        """
        change = self.changes.get(session_id)
        if change is None:
            change = self.changes[session_id] = Change(session)
        return change

    def reply(self, work: Work, packed: bytes, flags: int) -> None:
        """
        Stage a reply to its stream, to the ledger, or to both.
        """
        envelope = work.envelope
        if envelope is None:
            return
        if flags & TO_LEDGER:
            self.kept[work.command] = packed
        self._replies.append((work, flags, packed))
        instance = work.instance
        if flags & TO_STREAM and instance:
            channel = keys.wake(work.entry.mad, instance)
            self._wakes.setdefault(channel, []).append(carried(envelope.id, packed))

    def hold(self, work: Work, packed: bytes) -> None:
        """
        Stage a reply that is given when MongoDB holds all committed so far.
        """
        envelope = work.envelope
        if envelope is None:
            return
        instance = work.instance
        self._held.append(
            HeldReply(
                stream=_reply_stream(self.partition, work),
                channel=keys.wake(work.entry.mad, instance) if instance else "",
                command=envelope.id,
                packed=packed,
            )
        )

    def replicate(self, work: Work, packed: bytes) -> None:
        """
        Stage a reply that is given when Redis's replicas have the batch.
        """
        self.replicating.append((work, packed))

    def bury(self, work: Work, cause: str, message: str, at_ms: int) -> None:
        """
        Stage a dead letter.
        """
        envelope = work.envelope
        letter = DeadLetter(
            mad=work.mad,
            entry=work.entry.id,
            index=work.index,
            cause=cause,
            message=message,
            at_ms=at_ms,
            attempts=tuple(work.attempts),
            envelope=None if envelope is None else without_grant(envelope),
            packed=without_tokens(work.packed)[:MAX_KEPT_BYTES]
            if envelope is None
            else b"",
            principal=work.principal.name if work.principal else "",
            role=work.principal.role if work.principal else "",
            tenant=work.principal.tenant if work.principal else "",
        )
        self._letters.append((cause, pack(letter)))

    def settle(self, work: Work, progress: Progress | None, now_s: int) -> None:
        """
        Stage that *work* is over, and its entry's acknowledgement if it was last.
        """
        self.note(work, progress, now_s)
        self.release(work)

    def note(self, work: Work, progress: Progress | None, now_s: int) -> None:
        """
        Stage that *work* has had its effect; its entry stays pending.
        """
        if progress is not None and work.ordinal and work.publisher:
            progress.settle(work.ordinal.n, now_s)
            self._progress[work.publisher] = progress
        if work.suspect:
            self._forget.append(work.name)

    def release(self, work: Work) -> None:
        """
        Stage the acknowledgement of the work's entry if it was the last in it.
        """
        work.entry.unsettled -= 1
        if work.entry.unsettled == 0:
            self.acknowledge(work.entry)

    def acknowledge(self, entry: Entry) -> None:
        """
        Stage the acknowledgement of a whole entry.
        """
        self._acks.setdefault(entry.mad, []).append(entry.id)

    def trim(self, mad: str, below: str) -> None:
        """
        Stage the removal of what lies below id *below* on an ingress.
        """
        self._trims[mad] = below
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
        if self._watchers:
            self._push(self._watchers)
        records = [r for c in self.changes.values() if (r := c.record()) is not None]
        deleted = self._deleted()
        limits = self._limits
        head: list[Argument] = [
            owner,
            len(self.changes),
            len(self._acks),
            len(self._replies),
            keys.GROUP,
            limits.reply_ttl_ms,
            limits.ledger_ttl_ms,
            limits.dead_letters,
            len(records),
            pack_records(records) if records else b"",
            pack(self._held) if self._held else b"",
            len(deleted),
            *deleted.values(),
        ]
        return script("commit", self._keys(deleted), *head, *self._arguments())

    def _push(self, watchers: Watchers) -> None:
        news = ((session_id, c.news()) for session_id, c in self.changes.items())
        for channel, told in watchers.pushes(news):
            self._wakes.setdefault(channel, []).append(told)

    def _deleted(self) -> dict[str, str]:
        return {
            session_id: mark
            for session_id, change in self.changes.items()
            if (mark := change.deleted_mark()) is not None
        }

    def _keys(self, deleted: Iterable[str]) -> list[str]:
        p = self.partition
        every = [*_fixed_keys(p)]
        for session_id in self.changes:
            every += (names.session(p, session_id), names.recent(p, session_id))
        every += (names.gone(p, session_id) for session_id in deleted)
        every += (keys.ingress(p, mad) for mad in self._acks)
        for work, _, _ in self._replies:
            every += (
                _reply_stream(p, work),
                names.ledger(p, work.command),
            )
        if self.whereabouts:
            every += (names.attached(p), names.fences(p), keys.ingress(p, keys.GATEWAY))
        return every

    def _arguments(self) -> list[Argument]:
        arguments: list[Argument] = [
            "" if change.read is None else change.read.version
            for change in self.changes.values()
        ]
        for change in self.changes.values():
            arguments += change.arguments()
        arguments.append(2 * len(self._progress))
        for publisher, progress in self._progress.items():
            arguments += (publisher, progress.pack())
        arguments += (len(self._forget), *self._forget)
        arguments.append(len(self._letters))
        for letter in self._letters:
            arguments += letter
        for mad, ids in self._acks.items():
            arguments += (mad, len(ids), *ids, self._trims.get(mad, ""))
        for _, flags, packed in self._replies:
            arguments += (flags, packed)
        arguments.append(len(self._wakes))
        for channel, told in self._wakes.items():
            arguments += (channel, pack(told))
        if self.whereabouts:
            arguments += self.whereabouts.arguments()
        return arguments


@lru_cache(maxsize=1024)
def _fixed_keys(partition: int) -> tuple[str, ...]:
    return (
        names.owner(partition),
        names.outbox(partition),
        names.backlog(partition),
        names.publishers(partition),
        names.dead(partition),
        names.attempts(partition),
        names.checkpoints(partition),
    )


def _reply_stream(partition: int, work: Work) -> str:
    identifier = work.envelope.id if work.envelope else ""
    # A number is its instance's own; nobody else asks under it.
    asking = "" if work.ordinal is not None else work.instance

    return keys.reply(partition, work.entry.mad, identifier, asking)


def backlog_after(reply: Any) -> int:
    """
    The outbox records that wait for the archiver, from the commit call's reply.

    Raises:
        Superseded: the lane has another owner; nothing was written.
        Disturbed: the lane's knowledge was not true; nothing was written.
    """
    status, backlog, *_ = check_fenced(reply)
    if status == b"stale":
        raise Disturbed("a hot session changed under the lane", cause="stale")
    return int(backlog)


def packed_reply(work: Work, body: Any) -> bytes:
    """
    The wire form of an ok reply; *body* is a value of bus.messages or None.
    """
    envelope = work.envelope
    # Packed as it is, not as a packed part of its own: that would be done twice.
    reply = Reply(
        id=envelope.id if envelope else "",
        body=body,
        trace=envelope.trace if envelope else "",
        fingerprint=fingerprint_of(work),
    )
    return pack(reply)
