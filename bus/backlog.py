"""
What waits for the bus: in memory, and behind that on the MAD's disk.

Per partition it is a queue. Only so much is in memory; what a spool takes beyond
that rests on disk, and is loaded in its order as room comes.
"""

import asyncio
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from bus.codec import pack, unpack_envelope
from bus.errors import Defect, EverbusError, Malformed, Overloaded
from bus.messages import MAX_COMMAND_BYTES
from bus.outgoing import AFTERLIFE, Outgoing
from bus.spool import Row, Spool

log = structlog.get_logger()

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 32 * 1024 * 1024
ENTRY_COMMANDS = 32
# What is loaded from disk in one go.
CHUNK = 500
# The replicas know a command by its number for 24 hours (gateway/README.md). An
# hour less, since their clock is not ours.
HORIZON_S = 23 * 3600

Entries = dict[int, list[Outgoing]]


class _Flush(NamedTuple):
    behind: dict[int, int]
    done: asyncio.Future[None]


class Backlog:
    """
    The queues of one publisher.

    Attributes:
        count: how many commands are in memory.
        bytes: and how large they are.
        resting: how many are on disk only, behind those in memory.
    """

    def __init__(self, spool: Spool | None = None) -> None:
        self.count = 0
        self.bytes = 0
        self.resting = 0
        self._queues: defaultdict[int, deque[Outgoing]] = defaultdict(deque)
        # Per partition, how many rest on disk, and how many are done with.
        self._rests: Counter[int] = Counter()
        self._gone: Counter[int] = Counter()
        self._flushes: list[_Flush] = []
        self._spool = spool
        self._read_to = 0
        # What an earlier process left behind ends here.
        self._inherited_to = 0
        if spool is not None:
            self._inherit(spool)

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self.count + self.resting

    def queue(self, partition: int) -> Sequence[Outgoing]:
        """
        What waits in memory for one partition, oldest first.
        """
        return self._queues.get(partition, ())

    def add(self, partition: int, outgoing: Outgoing, *, well: bool) -> None:
        """
        Queue a command behind all others of its partition.

        Args:
            well: whether it is likely to be sent at once.

        Raises:
            Overloaded: there is no room, or it would overtake what rests on disk.
        """
        full = self.count >= MAX_WAITING or self.bytes >= MAX_WAITING_BYTES
        if self._spool is not None and not outgoing.envelope.reply:
            rests = full or self.resting > 0
            self._keep(self._spool, partition, outgoing, well and not rests)
            if rests:
                self._rest(partition, 1)
                return
            self._read_to = outgoing.row
        elif full or self.resting:
            raise self._overloaded()
        self._queue(partition, outgoing)

    def gather(self) -> Entries:
        """
        Per partition the commands of its next entry; they stay queued.
        """
        if self.resting:
            self._load()
        gathered: Entries = {}
        for partition, queue in self._queues.items():
            room = MAX_COMMAND_BYTES
            entry: list[Outgoing] = []
            for outgoing in queue:
                room -= outgoing.size
                if len(entry) == ENTRY_COMMANDS or (entry and room < 0):
                    break
                entry.append(outgoing)
            if entry:
                gathered[partition] = entry
        return gathered

    def attempt(self, entries: Entries) -> Entries:
        """
        Those of *entries* that may be written now, noted as attempted on disk, too.

        What may have arrived longer ago than the replicas remember is given up: it
        could be applied twice.

        Raises:
            EverbusError: the spool cannot be written; nothing may be sent.
        """
        now_s = time.time()
        for partition, entry in entries.items():
            old = [one for one in entry if 0.0 < one.attempted_s < now_s - HORIZON_S]
            if old:
                self._give_up(partition, entry, old)
        fresh = [
            one for entry in entries.values() for one in entry if not one.attempted_s
        ]
        unmarked = [one.row for one in fresh if not one.marked]
        if unmarked and self._spool is not None:
            self._spool.mark(unmarked, now_s)
        for one in fresh:
            one.attempted_s = now_s

        return {partition: entry for partition, entry in entries.items() if entry}

    def arrived(self, partition: int, entry: Sequence[Outgoing]) -> None:
        """
        Drop the first commands of a partition, which are on the bus.
        """
        if self._spool is not None:
            rows = [(one.row, one.row_bytes) for one in entry if one.row]
            if rows:
                self._spool.remove(rows)
        queue = self._queues[partition]
        for one in entry:
            queue.popleft()
            self.bytes -= one.size
        self._pass(partition, len(entry))

    def flushed(self) -> asyncio.Future[None]:
        """
        Done when everything that waits now is on the bus.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        behind = {
            partition: self._gone[partition] + count
            for partition in {*self._queues, *self._rests}
            if (count := len(self.queue(partition)) + self._rests[partition])
        }
        if behind:
            self._flushes.append(_Flush(behind, done))
        else:
            done.set_result(None)
        return done

    def fail(self, error: EverbusError) -> None:
        """
        End every flush with *error*.
        """
        for flush in self._flushes:
            if not flush.done.done():
                flush.done.set_exception(error)
        self._flushes.clear()

    def _inherit(self, spool: Spool) -> None:
        """
        Begin with what earlier processes left behind.
        """
        self._inherited_to = spool.last
        for partition, count in spool.counts().items():
            self._rest(partition, count)
        while self.resting and self._has_room(CHUNK):
            self._load()
        if spool.count:
            log.info("spool.inherited", path=str(spool.path), count=spool.count)

    def _keep(
        self, spool: Spool, partition: int, outgoing: Outgoing, well: bool
    ) -> None:
        bare = msgspec.structs.replace(outgoing.envelope, grant=b"", epoch=0)
        stored = pack(bare)
        outgoing.row = spool.add(partition, stored, attempted=well)
        outgoing.row_bytes = len(stored)
        outgoing.marked = well

    def _rest(self, partition: int, count: int) -> None:
        self._rests[partition] += count
        self.resting += count

    def _overloaded(self) -> Overloaded:
        if self.resting:
            return Overloaded(
                f"{self.resting} commands rest in the spool, and this one would "
                "overtake them. Await flush() before you go on",
                waiting=self.waiting,
                limit=MAX_WAITING,
            )
        return Overloaded(
            f"{self.count} commands ({self.bytes} bytes) wait for the bus; "
            f"the limit is {MAX_WAITING} ({MAX_WAITING_BYTES} bytes). "
            "Await flush() before you go on",
            waiting=self.count,
            limit=MAX_WAITING,
        )

    def _queue(self, partition: int, outgoing: Outgoing) -> None:
        self._queues[partition].append(outgoing)
        self.count += 1
        self.bytes += outgoing.size

    def _pass(self, partition: int, count: int) -> None:
        """
        Note that the first *count* in the queue of a partition are done with.
        """
        self.count -= count
        self._gone[partition] += count
        for flush in self._flushes:
            if flush.behind.get(partition, sys.maxsize) <= self._gone[partition]:
                del flush.behind[partition]
            if not flush.behind and not flush.done.done():
                flush.done.set_result(None)
        if self._flushes:
            self._flushes = [one for one in self._flushes if not one.done.done()]

    def _has_room(self, count: int) -> bool:
        return self.count + count <= MAX_WAITING and self.bytes < MAX_WAITING_BYTES

    def _load(self) -> None:
        """
        Load what rests on disk, as far as there is room.
        """
        if self._spool is None or not self._has_room(CHUNK):
            return
        room = MAX_WAITING_BYTES - self.bytes
        rows = self._spool.read(self._read_to, CHUNK, room)
        if not rows:
            raise Defect(f"{self.resting} commands have vanished from the spool")
        for row in rows:
            try:
                self._queue(row.partition, self._restored(row))
            except Malformed as error:
                self._spool.set_aside([row.row], error.message)
                self._tell_doubtful(1, error.message)
                self.count += 1
                self._pass(row.partition, 1)
            self._read_to = row.row
            self._rest(row.partition, -1)

    def _restored(self, row: Row) -> Outgoing:
        """
        The command in *row*, as this process sends it.
        """
        if not row.sound:
            raise Malformed("damaged on disk", cause="damaged")
        epoch = AFTERLIFE if row.row <= self._inherited_to else 0
        envelope = msgspec.structs.replace(unpack_envelope(row.command), epoch=epoch)
        outgoing = Outgoing(envelope)
        outgoing.row, outgoing.row_bytes = row.row, len(row.command)
        outgoing.marked = row.attempted_s is not None
        outgoing.attempted_s = float(row.attempted_s or 0.0)

        return outgoing

    def _give_up(
        self, partition: int, entry: list[Outgoing], old: Sequence[Outgoing]
    ) -> None:
        """
        Take out of *entry* and its queue what may have arrived too long ago.
        """
        cause = (
            f"may have arrived over {HORIZON_S // 3600} h ago; nobody knows any more"
        )
        rows = [one.row for one in old if one.row]
        if rows and self._spool is not None:
            self._spool.set_aside(rows, cause)
        self._tell_doubtful(len(old), cause, first=old[0].envelope.id)
        for one in old:
            entry.remove(one)
            self._queues[partition].remove(one)
            self.bytes -= one.size
        self._pass(partition, len(old))

    def _tell_doubtful(self, count: int, cause: str, **fields: str) -> None:
        if self._spool is not None:
            look = f"sqlite3 '{self._spool.path}' 'SELECT * FROM doubtful'"  # noqa: S608 - for people
            fields["look"] = f"{look}, while no MAD uses it"
        log.error("commands.doubtful", count=count, cause=cause, **fields)
