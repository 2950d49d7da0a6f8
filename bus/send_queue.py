"""
Commands that wait for the bus: in memory, and behind that on the MAD's disk.

Each partition has a queue. Memory is bounded; with a spool further commands wait on
disk and are loaded in their order as memory gets free.
"""

import asyncio
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from everbus.bus.errors import Defect, EverbusError, Malformed, Overloaded
from everbus.bus.messages import MAX_COMMAND_BYTES, ordinal_of, pack, unpack_envelope
from everbus.bus.outgoing_command import INHERITED_EPOCH, OutgoingCommand
from everbus.bus.spool import Spool, SpooledCommand
from everbus.bus.unsettled import Unsettled

log = structlog.get_logger()

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 32 * 1024 * 1024
ENTRY_COMMANDS = 32
# Commands loaded from disk in one step.
CHUNK = 500
# The replicas know a command by its number for 24 hours (gateway/README.md). An
# hour less, since their clock is not ours.
HORIZON_S = 23 * 3600

Entries = dict[int, list[OutgoingCommand]]


class _Flush(NamedTuple):
    behind: dict[int, int]
    done: asyncio.Future[None]


class SendQueue:
    """
    The queues of one publisher.

    Commands sent again were accepted before, under the bounds of `Unsettled`, so they
    are outside of the bounds here: no new command is refused for those the bus lost.

    Attributes:
        count: number of commands in memory.
        bytes: their size.
        on_disk: number of commands on disk only, behind those in memory.
    """

    def __init__(
        self, spool: Spool | None = None, unsettled: Unsettled | None = None
    ) -> None:
        self._unsettled = unsettled
        self.count = 0
        self.bytes = 0
        self.on_disk = 0
        self._queues: defaultdict[int, deque[OutgoingCommand]] = defaultdict(deque)
        # First in their queues: commands sent again, by partition, and all their bytes.
        self._again: Counter[int] = Counter()
        self._again_count = 0
        self._again_bytes = 0
        # Per partition: commands on disk only, and commands that are done.
        self._disk_counts: Counter[int] = Counter()
        self._done: Counter[int] = Counter()
        self._flushes: list[_Flush] = []
        self._spool = spool
        self._read_to = 0
        # The last row of an earlier process.
        self._inherited_to = 0
        if spool is not None:
            self._inherit(spool)

    @property
    def waiting(self) -> int:
        """
        Number of commands that are not on the bus yet.
        """
        return self.count + self.on_disk

    def queue(self, partition: int) -> Sequence[OutgoingCommand]:
        """
        Commands in memory for one partition, oldest first.
        """
        return self._queues.get(partition, ())

    def add(self, partition: int, outgoing: OutgoingCommand, *, healthy: bool) -> None:
        """
        Queue a command behind all others of its partition.

        Args:
            healthy: whether it is likely to be sent at once.

        Raises:
            Overloaded: there is no room, or it would overtake commands on disk.
        """
        unsettled = self._unsettled
        if unsettled is not None and unsettled.full and not outgoing.envelope.reply:
            raise unsettled.overloaded()
        full = (
            self.count - self._again_count >= MAX_WAITING
            or self.bytes - self._again_bytes >= MAX_WAITING_BYTES
        )
        if self._spool is not None and not outgoing.envelope.reply:
            to_disk = full or self.on_disk > 0
            self._store(self._spool, partition, outgoing, healthy and not to_disk)
            if to_disk:
                self._count_on_disk(partition, 1)
                return
            self._read_to = outgoing.row
        elif full or self.on_disk:
            raise self._overloaded()
        self._queue(partition, outgoing)

    def gather(self) -> Entries:
        """
        Commands of the next entry, by partition; they stay queued.
        """
        if self.on_disk:
            self._load()
        gathered: Entries = {}
        for partition, queue in self._queues.items():
            room = MAX_COMMAND_BYTES
            entry: list[OutgoingCommand] = []
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
        Mark *entries* as attempted, on disk too; return the commands that may be
        written.

        A command that may have arrived longer ago than the replicas remember is given
        up: it could be applied twice.

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
        if len(fresh) < sum(map(len, entries.values())):
            _note_again(entries)
        for one in fresh:
            one.attempted_s = now_s

        return {partition: entry for partition, entry in entries.items() if entry}

    def arrived(self, partition: int, entry: Sequence[OutgoingCommand]) -> None:
        """
        Remove the first commands of a partition, which are on the bus.
        """
        if self._unsettled is not None:
            # Requests are kept by their callers, who wait for the replies.
            if not all(one.envelope.reply for one in entry):
                self._unsettled.keep(partition, entry)
        elif self._spool is not None:
            rows = [(one.row, one.row_bytes) for one in entry if one.row]
            if rows:
                self._spool.remove(rows)
        queue = self._queues[partition]
        if self._again_count:
            self._again_done(partition, entry)
        for one in entry:
            queue.popleft()
            self.bytes -= one.size
        self._mark_done(partition, len(entry))

    def put_first(self, partition: int, again: Sequence[OutgoingCommand]) -> None:
        """
        Queue commands that were on the bus once more, before all others.
        """
        size = sum(one.size for one in again)
        self._queues[partition].extendleft(reversed(again))
        self.count += len(again)
        self.bytes += size
        self._again[partition] += len(again)
        self._again_count += len(again)
        self._again_bytes += size
        for flush in self._flushes:
            if partition in flush.behind:
                flush.behind[partition] += len(again)

    def flushed(self) -> asyncio.Future[None]:
        """
        Future that is done when all commands that wait now are on the bus.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        behind = {
            partition: self._done[partition] + count
            for partition in {*self._queues, *self._disk_counts}
            if (count := len(self.queue(partition)) + self._disk_counts[partition])
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
                flush.done.set_exception(error.copy())
        self._flushes.clear()

    def _inherit(self, spool: Spool) -> None:
        """
        Begin with the commands of earlier processes.
        """
        self._inherited_to = spool.last
        for partition, count in spool.counts().items():
            self._count_on_disk(partition, count)
        while self.on_disk and self._has_room(CHUNK):
            self._load()
        if spool.count:
            log.info("spool.inherited", path=str(spool.path), count=spool.count)

    def _store(
        self, spool: Spool, partition: int, outgoing: OutgoingCommand, healthy: bool
    ) -> None:
        bare = msgspec.structs.replace(outgoing.envelope, grant=b"", epoch=0)
        stored = pack(bare)
        outgoing.row = spool.add(partition, stored, attempted=healthy)
        outgoing.row_bytes = len(stored)
        outgoing.marked = healthy

    def _count_on_disk(self, partition: int, count: int) -> None:
        self._disk_counts[partition] += count
        self.on_disk += count

    def _overloaded(self) -> Overloaded:
        if self.on_disk:
            return Overloaded(
                f"{self.on_disk} commands rest in the spool, and this one would "
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

    def _queue(self, partition: int, outgoing: OutgoingCommand) -> None:
        self._queues[partition].append(outgoing)
        self.count += 1
        self.bytes += outgoing.size

    def _mark_done(self, partition: int, count: int) -> None:
        """
        Record that the first *count* commands of a partition are done.
        """
        self.count -= count
        self._done[partition] += count
        for flush in self._flushes:
            if flush.behind.get(partition, sys.maxsize) <= self._done[partition]:
                del flush.behind[partition]
            if not flush.behind and not flush.done.done():
                flush.done.set_result(None)
        if self._flushes:
            self._flushes = [one for one in self._flushes if not one.done.done()]

    def _again_done(self, partition: int, first: Sequence[OutgoingCommand]) -> None:
        """
        Record that the *first* commands of a partition leave their queue.
        """
        done = first[: self._again[partition]]
        size = sum(one.size for one in done)
        self._again[partition] -= len(done)
        self._again_count -= len(done)
        self._again_bytes -= size
        if self._unsettled is not None:
            self._unsettled.back(len(done), size)

    def _has_room(self, count: int) -> bool:
        return self.count + count <= MAX_WAITING and self.bytes < MAX_WAITING_BYTES

    def _load(self) -> None:
        """
        Load commands from disk, as far as there is room.
        """
        if self._spool is None or not self._has_room(CHUNK):
            return
        room = MAX_WAITING_BYTES - self.bytes
        rows = self._spool.read(self._read_to, CHUNK, room)
        if not rows:
            raise Defect(f"{self.on_disk} commands have vanished from the spool")
        for row in rows:
            try:
                self._queue(row.partition, self._restored(row))
            except Malformed as error:
                self._spool.set_aside([row.row], error.message)
                self._report_doubtful(1, error.message)
                self.count += 1
                self._mark_done(row.partition, 1)
            self._read_to = row.row
            self._count_on_disk(row.partition, -1)

    def _restored(self, row: SpooledCommand) -> OutgoingCommand:
        """
        Command in *row*, in the form that this process sends.
        """
        if not row.sound:
            raise Malformed("damaged on disk", cause="damaged")
        epoch = INHERITED_EPOCH if row.row <= self._inherited_to else 0
        envelope = msgspec.structs.replace(unpack_envelope(row.command), epoch=epoch)
        outgoing = OutgoingCommand(envelope)
        if (ordinal := ordinal_of(envelope.id)) is not None:
            outgoing.instance, outgoing.n = ordinal.instance, ordinal.n
        outgoing.row, outgoing.row_bytes = row.row, len(row.command)
        outgoing.marked = row.attempted_s is not None
        outgoing.attempted_s = float(row.attempted_s or 0.0)

        return outgoing

    def _give_up(
        self,
        partition: int,
        entry: list[OutgoingCommand],
        old: Sequence[OutgoingCommand],
    ) -> None:
        """
        Remove commands that may have arrived too long ago from *entry* and its queue.
        """
        cause = (
            f"may have arrived over {HORIZON_S // 3600} h ago; nobody knows any more"
        )
        rows = [one.row for one in old if one.row]
        if rows and self._spool is not None:
            self._spool.set_aside(rows, cause)
        self._report_doubtful(len(old), cause, first=old[0].envelope.id)
        # The old ones are the oldest, so they are first.
        self._again_done(partition, old)
        for one in old:
            entry.remove(one)
            self._queues[partition].remove(one)
            self.bytes -= one.size
        self._mark_done(partition, len(old))

    def _report_doubtful(self, count: int, cause: str, **fields: str) -> None:
        if self._spool is not None:
            look = f"sqlite3 '{self._spool.path}' 'SELECT * FROM doubtful'"  # noqa: S608 - for people
            fields["look"] = f"{look}, while no MAD uses it"
        log.error("commands.doubtful", count=count, cause=cause, **fields)


def _note_again(entries: Entries) -> None:
    for entry in entries.values():
        for one in entry:
            one.again = one.attempted
