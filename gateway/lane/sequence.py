"""
The sequence window of one publisher: idempotency in constant memory.

A publisher numbers its commands 1, 2, 3 … per partition, and its ingress keeps
their order, so one high-water mark tells old from new exactly (as idempotent
producers have it in Kafka, KIP-98). Numbers below it that are not settled yet,
because their session waits or because they never arrived, are open. They are kept
as runs: a burst to one session that waits is one run, however long it is.

A full window never forgets: its producer's commands wait, in order, until open
numbers are settled. Its other commands that fit go on, and so do other producers.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

import structlog

from everbus.gateway.lane.delivery import Delivery, Queued
from everbus.gateway.lane.fencing import Fences
from everbus.gateway.lane.intake import FairQueue
from everbus.gateway.lane.waiting import HeldCommands

# A record of so many runs has some 10 KB, and each commit of its publisher writes it.
MAX_RUNS = 1024

# The first and the last number of a run of open numbers.
Run = tuple[int, int]
log = structlog.get_logger()


class ProducerWindow:
    """
    The settled numbers of one publisher instance in one partition.

    It never forgets an open number by itself: where a settlement would need a run more
    than MAX_RUNS, `takes` says so, and the producer waits (`producers.py`).

    Attributes:
        high_water: the highest settled number.
        runs: the open numbers below it, ascending, no two of them adjacent.
        floor: up to it, nobody knows which numbers were applied; all count as settled.
        seen_s: unix seconds of the last settlement; old records are forgotten.
        fences: the fenced epochs of the instance; they have a record of their own,
            so `pack` leaves them out.
        stored: the record as the hot tier has it; empty if it has none.
        undecodable: the record of the hot tier does not decode: nobody knows what is
            settled, and it is never written over.
    """

    __slots__ = (
        "fences",
        "floor",
        "high_water",
        "runs",
        "seen_s",
        "stored",
        "undecodable",
    )

    def __init__(self, high_water: int = 0, seen_s: int = 0, floor: int = 0) -> None:
        self.high_water = high_water
        self.runs: list[Run] = []
        self.floor = floor
        self.seen_s = seen_s
        self.fences: Fences = ()
        self.stored: bytes | str = b""
        self.undecodable = False

    @classmethod
    def starting_at(cls, n: int) -> Self:
        """
        The window of a publisher first seen at *n*: all numbers before are settled.

        Nobody can tell numbers before *n* from settled ones any more, since the record
        was forgotten for its age, and applying one twice would be worse than refusing
        it.
        """
        return cls(n - 1, floor=n - 1)

    @classmethod
    def parse(cls, packed: bytes) -> Self:
        """
        The window that `pack` wrote; also an older one's, which lists single numbers.

        Raises:
            ValueError: it is no such record.
        """
        high_water, seen_s, *parts = packed.decode().split(",")
        window = cls(int(high_water), int(seen_s))
        for part in parts:
            window._add(part)
        ends = [n for run in window.runs for n in run]
        if ends != sorted(ends) or (
            ends and not 0 < ends[0] <= ends[-1] <= window.high_water
        ):
            raise ValueError("its open numbers are out of order")
        window.stored = packed

        return window

    @classmethod
    def read(cls, packed: bytes) -> Self:
        """
        As `parse`; of a record that does not decode, an `undecodable` window.
        """
        try:
            return cls.parse(packed)
        except ValueError:
            window = cls()
            window.undecodable = True
            return window

    def pack(self) -> str:
        """
        One compact line: high-water mark, last settlement, floor, runs, ascending.

        The floor stands as a negative number, and one or two numbers stand alone: so a
        replica of an older version, which knows single numbers only, reads it as long
        as no burst waits.
        """
        parts = [str(self.high_water), str(self.seen_s)]
        if self.floor:
            parts.append(str(-self.floor))
        for first, last in self.runs:
            if last - first > 1:
                parts.append(f"{first}-{last}")
            else:
                parts += map(str, range(first, last + 1))
        return ",".join(parts)

    def settled(self, n: int) -> bool:
        """
        Whether number *n* is settled.
        """
        if n > self.high_water or self.undecodable:
            return False
        return not self.runs or self._run_of(n) is None

    def takes(self, n: int) -> bool:
        """
        Whether *n* can be settled without more than MAX_RUNS runs.
        """
        if len(self.runs) < MAX_RUNS or n == self.high_water + 1:
            return True
        if n > self.high_water:
            return False
        place = self._run_of(n)

        return place is None or n in self.runs[place]

    def settle(self, n: int, now_s: int) -> None:
        """
        Note *n* as settled; a jump ahead leaves the numbers between as a run.
        """
        self.seen_s = now_s
        if n > self.high_water:
            if n > self.high_water + 1:
                self.runs.append((self.high_water + 1, n - 1))
            self.high_water = n
            return
        place = self._run_of(n) if self.runs else None
        if place is not None:
            first, last = self.runs[place]
            parts = [(first, n - 1)] if first < n else []
            parts += [(n + 1, last)] if n < last else []
            self.runs[place : place + 1] = parts

    def drop_oldest(self) -> None:
        """
        Count the oldest run as settled: none of its numbers is on the bus.
        """
        self.floor = self.runs.pop(0)[1]

    def _run_of(self, n: int) -> int | None:
        place = bisect_right(self.runs, n, key=_first) - 1

        return place if place >= 0 and n <= self.runs[place][1] else None

    def _add(self, part: str) -> None:
        if part.startswith("-"):
            self.floor = -int(part)
            return
        first, _, last = part.partition("-")
        begin, end = int(first), int(last or first)
        if self.runs and self.runs[-1][1] + 1 == begin:
            begin = self.runs.pop()[0]
        self.runs.append((begin, end))


def _first(run: Run) -> int:
    return run[0]


class WaitingProducers:
    """
    The commands that wait for room in their producer's window.

    Args:
        windows: publisher → its window, as far as the lane has them.
        held: counts the commands, beside those of waiting sessions.
        queue: the commands that were read and neither wait nor are decided yet.

    Attributes:
        queues: publisher → its commands, in order; empty if no producer waits.
        batch: the commands that are decided now.
    """

    def __init__(
        self,
        windows: Mapping[str, ProducerWindow],
        held: HeldCommands,
        queue: FairQueue,
    ) -> None:
        self.queues: dict[str, deque[Delivery]] = {}
        self.batch: Sequence[Queued] = ()
        self._windows = windows
        self._held = held
        self._queue = queue

    def clear(self) -> None:
        """
        Forget all; the commands are still pending on their streams.
        """
        self.queues.clear()
        self.batch = ()

    def enqueue_behind(self, delivery: Delivery) -> bool:
        """
        Queue *delivery* if one of its producer and its session waits here.
        """
        queue = self.queues.get(delivery.publisher or "", ())
        if not any(one.session == delivery.session for one in queue):
            return False
        self._enqueue(delivery)
        return True

    def block(self, delivery: Delivery) -> bool:
        """
        Let *delivery* wait if its settlement finds no room in the window.
        """
        if self._fits(delivery):
            return False
        self._enqueue(delivery)
        return True

    def _enqueue(self, delivery: Delivery) -> None:
        publisher = delivery.publisher or ""
        if publisher not in self.queues:
            log.warning("producer.waits", publisher=publisher, runs=MAX_RUNS)
            self.queues[publisher] = deque()
        self.queues[publisher].append(delivery)
        self._held.add(delivery)

    def release(self) -> list[Delivery]:
        """
        Take out the commands of all producers of which any can go on, in order.

        The first command of each session counts: the one at the end of a run fits,
        while the one before it, in the midst of a run, may not.
        """
        fit = [
            name
            for name, queue in self.queues.items()
            if any(map(self._fits, _first_of_each_session(queue)))
        ]
        released = [one for name in fit for one in self.queues.pop(name)]
        for one in released:
            self._held.remove(one)
        return released

    def withdraw(self, chosen: Callable[[Delivery], bool]) -> list[Delivery]:
        """
        Take out the *chosen* commands of all producers; the others wait on.
        """
        taken = [one for queue in self.queues.values() for one in queue if chosen(one)]
        for one in taken:
            publisher = one.publisher or ""
            self.queues[publisher].remove(one)
            if not self.queues[publisher]:
                del self.queues[publisher]
            self._held.remove(one)
        return taken

    def _fits(self, delivery: Delivery) -> bool:
        publisher = delivery.publisher or ""
        window = self._windows.get(publisher)
        if window is None or delivery.ordinal is None:
            return True
        if window.takes(delivery.ordinal.n):
            return True
        self._drop_never_arrived(publisher, window)

        return window.takes(delivery.ordinal.n)

    def _drop_never_arrived(self, publisher: str, window: ProducerWindow) -> None:
        """
        Make room by the oldest runs, as far as the lane has no command of them.

        An ingress keeps its publisher's order: what did not come before a thousand
        later runs comes no more, and would else hold up its producer for ever.
        """
        had = self._held.numbers(publisher) | {
            one.ordinal.n
            for one in (*self.batch, *self._queue)
            if one.publisher == publisher and one.ordinal is not None
        }
        while len(window.runs) >= MAX_RUNS:
            first, last = window.runs[0]
            if any(first <= n <= last for n in had):
                return
            log.warning("numbers.dropped", publisher=publisher, first=first, last=last)
            window.drop_oldest()


def _first_of_each_session(queue: Iterable[Delivery]) -> Iterable[Delivery]:
    first: dict[str, Delivery] = {}
    for one in queue:
        first.setdefault(one.session, one)
    return first.values()
