"""
The intake of a lane: groups, fenced reads, waits, trims, and the queue behind them.

While several MADs send, each has an equal share of a batch by deficit round robin
(Shreedhar and Varghese, 1995): a flood of one MAD fills no batch that a command of
another one waits for. A MAD that sends alone fills whole batches.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import structlog
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.errors import Malformed
from everbus.bus.keys import GATEWAY
from everbus.bus.server_errors import refusal
from everbus.bus.wire import Command
from everbus.gateway.lane.connection import Disturbed, LaneConnection, check_fenced
from everbus.gateway.lane.delivery import (
    MAX_ENTRY_BYTES,
    MAX_ENTRY_COMMANDS,
    Delivery,
    Entry,
    Queued,
    Undecodable,
    received_in,
)
from everbus.gateway.lane.foreign_readers import ForeignReaders, Span
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import call_of, script
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

# One consumer a lane, whatever its owner: a takeover reads the same pending list.
CONSUMER = "lane"
_READ = call_of("read")
READ_ENTRIES = 256
# A larger entry, or one of more fields, stays in the server; only its size comes.
SENT_BYTES = 2 * MAX_ENTRY_BYTES
SENT_FIELDS = 4 * MAX_ENTRY_COMMANDS
MAX_ID_PART = 2**64 - 1
# The waiting read asks for one entry; it only shows that there are new ones.
WAIT_MS = 2_000
WAIT_MARGIN_S = 1.5

KIB = 1024
# What deciding a command costs beside its bytes, expressed in bytes.
COMMAND_COST = 4 * KIB
# A MAD's share of one batch: some 30 small commands, or 128 KiB.
QUANTUM = 128 * KIB
UNBOUNDED = 1 << 62
# MADs share a lane so long after the last command of the second one.
SHARED_S = 1.0


class IngressBound(NamedTuple):
    """
    Where a read of one ingress ends: entries, commands and bytes.

    Attributes:
        first: entries of its first step, which shows their sizes.
        backlog: a MAD of which so many commands are queued is not read.
    """

    first: int
    entries: int
    commands: int
    bytes: int
    backlog: int


ALONE = IngressBound(8, 256, 2048, 4096 * KIB, backlog=256)
SHARED = IngressBound(2, 64, 64, 256 * KIB, backlog=64)


class FairQueue:
    """
    The queue of one lane.

    Attributes:
        queues: MAD → its commands, in order; only MADs that have some.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.queues: dict[str, deque[Queued]] = {}
        self._clock = clock
        self._credits: dict[str, int] = {}
        self._newest, self._newest_at = "", -math.inf
        self._shared_until = -math.inf

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def __bool__(self) -> bool:
        return bool(self.queues)

    def __iter__(self) -> Iterator[Queued]:
        return chain.from_iterable(self.queues.values())

    @property
    def shared(self) -> bool:
        """
        Whether several MADs have sent of late; the gateway's own commands do not count.
        """
        return len(self.queues) > 1 or self._clock() < self._shared_until

    @property
    def read_bound(self) -> IngressBound:
        """
        Where the next read of each ingress ends.
        """
        return SHARED if self.shared else ALONE

    def backlog(self, mad: str) -> int:
        """
        Number of commands of a MAD.
        """
        return len(self.queues.get(mad, ()))

    def append(self, one: Queued) -> None:
        """
        Queue a command behind the others of its MAD.
        """
        self._of(one.entry.mad).append(one)

    def extend(self, received: Iterable[Queued]) -> None:
        """
        Queue commands, each behind the others of its MAD.
        """
        mad, queue = "", deque[Queued]()
        for one in received:
            if one.entry.mad != mad:
                mad = one.entry.mad
                queue = self._of(mad)
                self._note(mad)
            queue.append(one)

    def put_back(self, commands: list[Queued] | list[Delivery]) -> None:
        """
        Queue commands that waited, in their order, before the others of their MADs.
        """
        for one in reversed(commands):
            self._of(one.entry.mad).appendleft(one)

    def clear(self) -> None:
        """
        Forget all; the commands are still pending on their streams.
        """
        self.queues.clear()
        self._credits.clear()

    def take(self, most: int, most_bytes: int) -> list[Queued]:
        """
        The commands of the next batch; a suspect comes alone, one always comes.

        Args:
            most: commands; most_bytes: their size, with the data given to them.
        """
        batch = _Taken(most, most_bytes)
        if not self.shared:
            for mad in tuple(self.queues):
                self._take_from(mad, batch, UNBOUNDED)
            return batch.commands
        while self.queues and not batch.commands:
            for mad in tuple(self.queues):
                if batch.full:
                    break
                self._take_share(mad, batch)
        return batch.commands

    def _take_share(self, mad: str, batch: "_Taken") -> None:
        """
        Take what the MAD's credit allows; its next turn comes after all others'.
        """
        credit = self._credits.pop(mad, 0) + QUANTUM
        left = self._take_from(mad, batch, credit)
        if mad in self.queues:
            # At the end of the order, for the next batch.
            self.queues[mad] = self.queues.pop(mad)
            self._credits[mad] = left

    def _take_from(self, mad: str, batch: "_Taken", credit: int) -> int:
        """
        Take a MAD's first commands, for at most *credit*; returns what is left of it.
        """
        queue, commands = self.queues[mad], batch.commands
        while queue and not batch.full:
            first = queue[0]
            size = bytes_of(first)
            if size + COMMAND_COST > credit:
                return credit
            if commands and (first.suspect or size > batch.bytes_left):
                batch.full = True
                return credit
            commands.append(queue.popleft())
            credit -= size + COMMAND_COST
            batch.bytes_left -= size
            batch.full = first.suspect or len(commands) >= batch.most
        if not queue:
            del self.queues[mad]
        return credit

    def _of(self, mad: str) -> deque[Queued]:
        queue = self.queues.get(mad)
        if queue is None:
            queue = self.queues[mad] = deque()
        return queue

    def _note(self, mad: str) -> None:
        """
        Note that commands of *mad* arrived.
        """
        if mad == GATEWAY:
            return
        now = self._clock()
        if mad != self._newest:
            if now < self._newest_at + SHARED_S:
                self._shared_until = now + SHARED_S
            self._newest = mad
        self._newest_at = now


class _Taken:
    """
    A batch that is filled up to its bounds.
    """

    __slots__ = ("bytes_left", "commands", "full", "most")

    def __init__(self, most: int, most_bytes: int) -> None:
        self.commands: list[Queued] = []
        self.full = False
        self.most = most
        self.bytes_left = most_bytes


def bytes_of(one: Queued) -> int:
    """
    The size of a command, with the data of lower tiers given to it.
    """
    size = len(one.packed)
    return size + one.given_bytes if isinstance(one, Delivery) else size


class Intake:
    """
    The ingress streams of one lane.

    Attributes:
        others: readers of our group that are no lane.
        pending: MAD → ids of entries read and not yet acknowledged, in order.
        paused: MADs whose ingress is not read for now, as too much of theirs waits.
    """

    def __init__(
        self,
        wire: LaneConnection,
        partition: int,
        partitions: int,
        queue: FairQueue | None = None,
    ) -> None:
        self._wire = wire
        self._queue = FairQueue() if queue is None else queue
        self._partition = partition
        self._owner_key = key_names.owner(partition)
        self._partitions = partitions
        self._cursors: dict[str, str] = {}
        self._untrimmed: set[str] = set()
        self._seen: dict[str, str] = {}
        self._unread: list[Span] = []
        self._astray = False
        self.others = ForeignReaders(wire, partition, CONSUMER)
        self.pending: dict[str, dict[str, None]] = {}
        self.paused: frozenset[str] = frozenset()

    @property
    def readable(self) -> list[str]:
        """
        The MADs whose ingress is read now: not paused, and without a backlog.
        """
        backlog, most = self._queue.backlog, self._queue.read_bound.backlog
        return [
            mad
            for mad in self._cursors
            if mad not in self.paused and backlog(mad) < most
        ]

    @property
    def astray(self) -> bool:
        """
        Whether an interrupted wait may have received entries that we do not know.
        """
        return self._astray

    async def admit(self, mads: Iterable[str], *, replays: bool = False) -> None:
        """
        Read these MADs' ingress too; makes missing groups and streams. What others have
        read of it is pending for us then; the caller *replays* it, or begins anew.

        A group starts at the trim point below which everything is settled, not
        at `$`, which would skip commands that are older than their first reader.

        Raises:
            Disturbed: others had read some of it, and nobody replays.
            WireFailed: the connection broke.
        """
        fresh = [mad for mad in mads if mad not in self._cursors]
        if not fresh:
            return
        p = self._partition
        await self._make_groups(fresh)
        groups = await self._wire.exchange(
            [("XINFO", "GROUPS", keys.ingress(p, mad)) for mad in fresh]
        )
        for mad, reply in zip(fresh, groups, strict=True):
            if isinstance(reply, ResponseError):
                raise Disturbed(f"ingress of {mad} vanished: {reply}", cause="nogroup")
            self._cursors[mad] = _last_delivered(reply)
            self.pending[mad] = {}
        take_back = self.others.take_back if replays else self._take_back
        await take_back(map(Span, fresh))

    async def replay(self) -> list[Queued]:
        """
        The commands that an earlier owner read and did not settle, in order by ingress.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        received: list[Queued] = []
        for mad in self._cursors:
            after = "0"
            while entries := await self._pending_page(mad, after):
                after = entries[-1][0].decode()
                received += self._received(mad, entries)
        return received

    def read(self) -> Command:
        """
        The fenced read of the next entries, at most READ_ENTRIES in all.

        After an interrupted wait it reads the entries that the wait may have
        received behind our back: the pending ones behind the last that we know.
        """
        bound = self._queue.read_bound
        share = max(1, READ_ENTRIES // max(1, len(self._cursors)))
        bound = bound._replace(entries=min(share, bound.entries))
        if self._astray:
            return self._read_command("pending", self._cursors, bound)
        news = {mad: self._cursors[mad] for mad in self.readable}
        return self._read_command("news", news, bound)

    def accept(self, reply: Any) -> tuple[int, list[Queued]]:
        """
        Server time in ms and the commands in the reply to `read`.

        Raises:
            LaneLost: the lane has another owner.
            Disturbed: a group is gone; the lane must begin anew.
        """
        now_ms, streams = _checked(reply)
        received: list[Queued] = []
        for key, entries, *skips in streams or ():
            # A read of pending entries names its stream also without any entry.
            if entries:
                mad = key.decode().partition(":in:")[2]
                if skips:
                    first = entries[0][0].decode()
                    self._unread.append(Span(mad, self._cursors[mad], first))
                received += self._received(mad, entries)
                self._cursors[mad] = entries[-1][0].decode()
        self._astray = self._astray and bool(received)
        if any(_after(seen, self._cursors[mad]) for mad, seen in self._seen.items()):
            # The wait saw an entry that the read cannot have.
            self.others.look_at = 0.0
        else:
            self._seen.clear()
        return now_ms, received

    async def look_for_others(self) -> bool:
        """
        Take back what others have read of our ingress, if it is time to look; whether
        everything below the last entries that we know was read by us.

        Raises:
            Disturbed: there was some; the lane must begin anew, in order.
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        due = self._unread or time.monotonic() >= self.others.look_at
        if self._astray or not due:
            return False
        ends = [Span(mad, last) for mad, last in self._cursors.items()]
        await self._take_back([*self._unread, *ends])
        self._unread.clear()
        for mad, seen in self._seen.items():
            # Nobody has that entry any more: it must not wake us for ever.
            if _after(seen, self._cursors[mad]):
                self._cursors[mad] = seen
        self._seen.clear()

        return True

    async def _take_back(self, spans: Iterable[Span]) -> None:
        if count := await self.others.take_back(spans):
            raise Disturbed(
                f"somebody else has read {count} entries with the group {keys.GROUP}",
                cause="taken",
            )

    async def wait(self, wait_ms: int) -> Any:
        """
        The reply to a fenced read, made at the first new entry or after *wait_ms*.

        The waiting read takes nothing away; the fenced one is written behind it,
        so that the server goes on to it without another round trip.

        Raises:
            WireFailed: no answer in time (connected, but deaf), or interrupted; we
                may have received entries behind our back.
        """
        if self._astray:
            # Written behind a wait, it would come late; and the wait would see new
            # entries that a read of pending ones cannot have.
            [pending] = await self._wire.exchange([self.read()])
            return pending
        mads = self.readable
        waiting: Command = (
            *("XREAD", "COUNT", 1, "BLOCK", max(1, wait_ms), "STREAMS"),
            *(keys.ingress(self._partition, mad) for mad in mads),
            *(self._cursors[mad] for mad in mads),
        )
        reading = self.read()
        self._astray = True
        seen, reply = await self._wire.exchange(
            [waiting, reading], timeout_s=wait_ms / 1000 + WAIT_MARGIN_S
        )
        self._astray = False
        if isinstance(seen, ResponseError):
            raise refusal(seen)
        for key, entries in seen or ():
            self._seen[key.decode().partition(":in:")[2]] = entries[-1][0].decode()

        return reply

    def settled(self, acknowledged: dict[str, list[str]]) -> None:
        """
        Note which entries a commit acknowledged.
        """
        for mad, ids in acknowledged.items():
            pending = self.pending[mad]
            for identifier in ids:
                pending.pop(identifier, None)
            if ids:
                self._untrimmed.add(mad)

    def trims(self) -> dict[str, str]:
        """
        MAD → the id below which its ingress is settled, where it has moved.

        Never by length, which would eat unread commands, and never by XDEL,
        which makes the group's lag unknowable.
        """
        found = {mad: self._settled_below(mad) for mad in self._untrimmed}
        self._untrimmed.clear()

        return found

    def oldest_ms(self) -> int | None:
        """
        When the oldest pending entry arrived; None if nothing is pending.
        """
        firsts = [next(iter(ids)) for ids in self.pending.values() if ids]
        return min((int(i.partition("-")[0]) for i in firsts), default=None)

    def _settled_below(self, mad: str) -> str:
        for identifier in self.pending[mad]:
            return identifier
        return _following(self._cursors[mad])

    async def _make_groups(self, mads: list[str]) -> None:
        p = self._partition
        points = await self._wire.call("HMGET", key_names.trim_points(p), *mads)
        streams = [keys.ingress(p, mad) for mad in mads]
        starts = map(_before, points)
        made = await self._wire.call(*script("groups", streams, keys.GROUP, *starts))
        for mad, point, is_new in zip(mads, points, made, strict=True):
            if is_new:
                # A trim point without a group: both existed, one was lost.
                level = log.error if point is not None else log.debug
                level("group.created", mad=mad, lane=p, start=_before(point))

    async def _pending_page(self, mad: str, after: str) -> list[Any]:
        command = self._read_command("pending", {mad: after}, ALONE)
        [reply] = await self._wire.exchange([command])
        _, streams = _checked(reply)
        if not streams:
            return []
        entries: list[Any] = streams[0][1]
        return entries

    def _read_command(
        self, which: str, after: Mapping[str, str], bound: IngressBound
    ) -> Command:
        p = self._partition
        return (
            *(*_READ, 1 + len(after), self._owner_key),
            *(keys.ingress(p, mad) for mad in after),
            *(self._wire.owner, keys.GROUP, CONSUMER),
            *(min(bound.first, bound.entries), *bound[1:4], SENT_BYTES, SENT_FIELDS),
            which,
            *after.values(),
        )

    def _received(self, mad: str, entries: list[Any]) -> list[Queued]:
        received: list[Queued] = []
        for identifier, fields in entries:
            name = identifier.decode()
            self.pending[mad][name] = None
            if fields is None:
                received.append(_lost(mad, name))
                continue
            if len(fields) == 1:
                received.append(_too_large(mad, name, fields[0]))
                continue
            received += received_in(
                mad, name, fields, self._partition, self._partitions
            )
        return received


def _checked(reply: Any) -> list[Any]:
    answer = check_fenced(reply)
    if answer[0] == b"nogroup":
        raise Disturbed("a consumer group is gone", cause="nogroup")
    return [*answer, None][:2]


def _lost(mad: str, identifier: str) -> Undecodable:
    """
    A pending entry that somebody trimmed away: a lost command, logged as an error.
    """
    log.error("entry.trimmed", mad=mad, entry=identifier)
    metrics.TRIMMED.inc()
    entry = Entry(mad, identifier)
    entry.unsettled = 1
    trouble = Malformed("trimmed while it was pending: lost", cause="trimmed")

    return Undecodable(entry, 0, b"", trouble)


def _too_large(mad: str, identifier: str, size: bytes) -> Undecodable:
    """
    An entry that the server did not send, as it is too large.
    """
    entry = Entry(mad, identifier)
    entry.unsettled = 1
    trouble = Malformed(
        f"entry of {int(size)} bytes; at most {MAX_ENTRY_COMMANDS} commands and "
        f"{MAX_ENTRY_BYTES} bytes",
        cause="too_large",
    )
    return Undecodable(entry, 0, b"", trouble)


def _last_delivered(groups: list[Any]) -> str:
    for group in groups:
        fields = dict(zip(group[::2], group[1::2], strict=True))
        if fields[b"name"] == keys.GROUP.encode():
            last: bytes = fields[b"last-delivered-id"]
            return last.decode()
    return "0-0"


def _before(point: bytes | None) -> str:
    """
    The last id below the trim point *point*, where a group has to start.
    """
    if point is None:
        return "0"
    ms, _, n = point.decode().partition("-")
    return f"{ms}-{int(n) - 1}" if int(n or 0) > 0 else f"{int(ms) - 1}-{MAX_ID_PART}"


def _following(identifier: str) -> str:
    """
    The next higher stream id; empty at the end of all ids.

    A hostile publisher can use the highest id on its own ingress, and a script
    that gets an id beyond it would fail midway.
    """
    ms, _, n = identifier.partition("-")
    if int(n or 0) < MAX_ID_PART:
        return f"{ms}-{int(n or 0) + 1}"
    return f"{int(ms) + 1}-0" if int(ms) < MAX_ID_PART else ""


def _after(one: str, other: str) -> bool:
    return tuple(map(int, one.split("-"))) > tuple(map(int, other.split("-")))
