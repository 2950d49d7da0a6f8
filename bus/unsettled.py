"""
Commands without a reply, from their arrival on the bus until they are settled.

Nobody replies to them. The managers are asked now and then, once for all of a
partition, which numbers they have settled. The answer names the lineage of the bus's
memory: under another one the bus may have lost what it had taken, so all that is not
settled is sent again, in order and under its numbers.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from everbus.bus.backoff import Backoff
from everbus.bus.errors import Cancelled, EverbusError, Invalid, Overloaded, error_of
from everbus.bus.outgoing_command import OutgoingCommand
from everbus.bus.settled_numbers import RefusedCommand, SettledNumbers
from everbus.bus.spool import Spool
from everbus.bus.waits import set_within

log = structlog.get_logger()

MAX_UNSETTLED = 100_000
MAX_UNSETTLED_BYTES = 64 * 1024 * 1024
ASK_EVERY_S = 2.0
# So many more ask at once, so that memory does not fill between two answers.
ASK_AFTER = 5_000
FIRST_PAUSE_S = 0.01
MAX_PAUSE_S = 0.5
ASKED_AT_ONCE = 32
# Without an answer for so long, the end of a block waits no longer.
UNANSWERED_S = 2.0
# Lineages are numbered by milliseconds; the clock of a MAD may be so far ahead.
CLOCKS_APART_MS = 60_000
MAX_REMEMBERED = 10_000
MAX_UNTOLD = 100

OnRefused = Callable[[RefusedCommand], object]
# Instance and partition: one count of numbers.
Count = tuple[str, int]
# Asks the managers about the numbers of one count.
Ask = Callable[[str, int], Awaitable[SettledNumbers]]


class Unsettled:
    """
    The commands of one client that are on the bus and may not be settled.

    Attributes:
        count: number of these commands.
        bytes: their size.
        full: whether no more commands may wait to be settled; repeated commands
            count, too.
    """

    def __init__(
        self, mad: str, *, spool: Spool | None = None, on_refused: OnRefused | None
    ) -> None:
        self.count = 0
        self.bytes = 0
        self.full = False
        self._nothing: deque[OutgoingCommand] = deque()
        self._mad = mad
        self._spool = spool
        self._on_refused = on_refused
        self._kept: dict[Count, deque[OutgoingCommand]] = {}
        self._lineages: dict[int, int] = {}
        self._again: dict[int, list[OutgoingCommand]] = {}
        self._again_count = 0
        self._again_bytes = 0
        # The last number of the repeated commands that are on their way to the bus.
        self._on_way: dict[Count, int] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._untold: list[RefusedCommand] = []
        self._asked_at_count = 0
        self._supported = True
        self._began_ms = round(time.time() * 1000)
        self._some = asyncio.Event()
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()
        self.on_resend: Callable[[], None] = lambda: None

    def overloaded(self) -> Overloaded:
        """
        The refusal of a command while `full`.
        """
        return Overloaded(
            f"{self._all_count} commands ({self._all_bytes} bytes) are on the bus, and "
            f"the managers have not settled them; the limit is {MAX_UNSETTLED} "
            f"({MAX_UNSETTLED_BYTES} bytes). Await flush() before you go on",
            waiting=self._all_count,
            limit=MAX_UNSETTLED,
        )

    def keep(self, partition: int, entry: Sequence[OutgoingCommand]) -> None:
        """
        Keep the commands of *entry*, which is on the bus now.
        """
        passing: list[tuple[int, int]] = []
        kept, instance = self._nothing, ""
        # The hot path of every append: one look at each command, sums at the end.
        added, size = 0, 0
        for one in entry:
            if one.n and not one.envelope.reply and self._supported:
                if one.instance != instance:
                    instance = one.instance
                    kept = self._kept_of(instance, partition)
                kept.append(one)
                added += 1
                size += one.size
            elif one.row:
                passing.append((one.row, one.row_bytes))
        if added:
            self._added(added, size)
        if passing and self._spool is not None:
            self._spool.remove(passing)

    def _added(self, count: int, size: int) -> None:
        self._change(count, size)
        self._some.set()
        if self._on_way:
            self._note_arrived()
        if self.count - self._asked_at_count > ASK_AFTER:
            self._wanted.set()

    def session_of(self, command_id: str) -> str:
        """
        The session of a command that is kept here; else empty.
        """
        envelopes = (one.envelope for kept in self._kept.values() for one in kept)
        found = (one.session for one in envelopes if one.id == command_id)

        return next(found, "")

    def send_all_again(self) -> None:
        """
        Schedule all commands once more: the connection was lost, and the server on the
        next connection may have lost its data. Newer numbers must not come first: a
        bus without a record takes all numbers below for settled.
        """
        for partition in {partition for _, partition in self._kept}:
            self._schedule(partition)

    def take_again(self) -> dict[int, list[OutgoingCommand]]:
        """
        The commands to send again, by partition, in order; each once.
        """
        again, self._again = self._again, {}
        for partition, commands in again.items():
            for one in commands:
                self._on_way[one.instance, partition] = one.n
        return again

    def back(self, count: int, size: int) -> None:
        """
        Record that commands sent again have arrived, or were given up.
        """
        self._again_count -= count
        self._again_bytes -= size
        self._change(0, 0)

    async def run(self, ask: Ask) -> None:
        """
        Ask until cancelled: every ASK_EVERY_S while there is anything, or when wanted.
        """
        backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        while True:
            await self._some.wait()
            await set_within(self._wanted, ASK_EVERY_S)
            if not self.count:
                self._some.clear()
                continue
            self._wanted.clear()
            before = self.count
            await self._ask_all(ask)
            self._asked_at_count = self.count
            if self.count < before:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def settled(self, patience_s: float) -> bool:
        """
        Wait until all commands kept now, or on their way once more, are settled; False
        if nobody answers for *patience_s*.
        """
        targets = self._last_numbers()
        while any(self._open(count, n) for count, n in targets.items()):
            self._answered.clear()
            self._wanted.set()
            if not await set_within(self._answered, patience_s):
                return False
        return True

    @property
    def crowded(self) -> bool:
        """
        Whether memory, or half of the spool, is full of what may be settled.
        """
        spool = self._spool
        crowded = spool is not None and 2 * spool.bytes > spool.max_bytes

        return self.full or (crowded and bool(self.count or self._resending))

    async def room(self) -> None:
        """
        Wait until there is room again, as long as the managers answer.
        """
        while self.crowded:
            self._answered.clear()
            self._wanted.set()
            if not await set_within(self._answered, UNANSWERED_S):
                return

    def refused(self, refused: RefusedCommand) -> None:
        """
        Report a refused command once: a log, the callback, and the next flush.
        """
        if refused.id in self._known or refused.code == Cancelled.code:
            return
        self._known[refused.id] = None
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        log.error(
            "command.refused",
            mad=self._mad,
            command_id=refused.id,
            kind=refused.kind,
            session=refused.session,
            code=refused.code,
            error=refused.message,
        )
        if len(self._untold) < MAX_UNTOLD:
            self._untold.append(refused)
        if self._on_refused is None:
            return
        try:
            self._on_refused(refused)
        except Exception:  # the MAD's own code must not break ours
            log.exception("on_refused.failed", mad=self._mad, command_id=refused.id)

    def check_refused(self) -> None:
        """
        Raise the refusals since the last check as one error, of the first one's code.

        Raises:
            EverbusError: its detail `refused` lists them.
        """
        if not self._untold:
            return
        untold, self._untold = self._untold, []
        first = untold[0]
        listed = [
            {"id": one.id, "code": one.code, "message": one.message, "kind": one.kind}
            for one in untold
        ]
        raise error_of(
            first.code,
            f"{len(untold)} accepted commands were refused later; the first, "
            f"{first.kind} {first.id}: {first.message}",
            first.details | {"command_id": first.id, "refused": listed},
        )

    @property
    def _all_count(self) -> int:
        return self.count + self._again_count

    @property
    def _all_bytes(self) -> int:
        return self.bytes + self._again_bytes

    @property
    def _resending(self) -> bool:
        return bool(self._again or self._on_way)

    def _note_arrived(self) -> None:
        for count, last in list(self._on_way.items()):
            kept = self._kept[count]
            if kept and kept[-1].n >= last:
                del self._on_way[count]

    def _kept_of(self, instance: str, partition: int) -> deque[OutgoingCommand]:
        kept = self._kept.get((instance, partition))
        if kept is None:
            kept = self._kept[instance, partition] = deque()
            if partition not in self._lineages:
                # The sooner the lineage is known, the fewer commands are in doubt.
                self._wanted.set()
        return kept

    def _last_numbers(self) -> dict[Count, int]:
        last = dict(self._on_way)
        for partition, again in self._again.items():
            last |= {(one.instance, partition): one.n for one in again}
        for count, kept in self._kept.items():
            if kept:
                last[count] = max(kept[-1].n, last.get(count, 0))
        return last

    def _open(self, count: Count, n: int) -> bool:
        kept = self._kept.get(count)
        again = self._again.get(count[1], ())
        return bool((kept and kept[0].n <= n) or again or count in self._on_way)

    async def _ask_all(self, ask: Ask) -> None:
        counts = [count for count, kept in self._kept.items() if kept]
        for first in range(0, len(counts), ASKED_AT_ONCE):
            some = counts[first : first + ASKED_AT_ONCE]
            await asyncio.gather(*(self._ask(ask, count) for count in some))

    async def _ask(self, ask: Ask, count: Count) -> None:
        try:
            answer = await ask(*count)
        except Invalid as error:
            # Managers of before this question: nothing can be known, as before.
            log.warning("settled.unknown", mad=self._mad, error=error.message)
            self._supported = False
            for kept in self._kept.values():
                self._forget(list(kept))
                kept.clear()
        except EverbusError as error:
            log.debug("settled.not_answered", mad=self._mad, error=error.message)
            return
        else:
            self._settle(count, answer)
        self._answered.set()

    def _settle(self, count: Count, answer: SettledNumbers) -> None:
        for refused in answer.refused:
            self.refused(refused)
        if self._sent_again(count, answer.lineage):
            # Its mark may stem from a later number, which arrived before these.
            return
        kept, mark = self._kept[count], answer.mark
        done: list[OutgoingCommand] = []
        still: list[OutgoingCommand] = []
        settles = answer.settles if answer.open else None
        while kept and kept[0].n <= mark:
            one = kept.popleft()
            (done if settles is None or settles(one.n) else still).append(one)
        kept.extendleft(reversed(still))
        self._forget(done)

    def _sent_again(self, count: Count, lineage: int) -> bool:
        """
        Whether the bus may have lost data: then all commands are scheduled once more.
        """
        _, partition = count
        # A lineage younger than this client may not be the lineage that it sent to.
        sent_under = self._began_ms - CLOCKS_APART_MS
        known = self._lineages.get(partition)
        # The first one that is heard of may only show that the bus is young.
        lost = known is not None or lineage > self._began_ms + CLOCKS_APART_MS
        self._lineages[partition] = lineage
        # A lower one is another one, too: a clock was ahead, and the bus was emptied.
        if lineage <= sent_under if known is None else lineage == known:
            return False
        left = self._schedule(partition)
        if left and lost:
            log.warning(
                "commands.sent_again",
                mad=self._mad,
                partition=partition,
                count=left,
                lineage=lineage,
            )
        if left:
            self.on_resend()
        return True

    def _schedule(self, partition: int) -> int:
        """
        Move the kept commands of a partition to those to send again; their number.
        """
        again: list[OutgoingCommand] = []
        for (_, p), kept in self._kept.items():
            if p == partition:
                again += kept
                kept.clear()
        size = sum([one.size for one in again])
        self._again_count += len(again)
        self._again_bytes += size
        self._change(-len(again), -size)
        if again:
            self._again.setdefault(partition, []).extend(again)
        return len(again)

    def _forget(self, done: Sequence[OutgoingCommand]) -> None:
        self._change(-len(done), -sum([one.size for one in done]))
        if self._spool is not None:
            rows = [(one.row, one.row_bytes) for one in done if one.row]
            if rows:
                self._spool.remove(rows)

    def _change(self, count: int, size: int) -> None:
        self.count += count
        self.bytes += size
        self.full = (
            self._all_count >= MAX_UNSETTLED or self._all_bytes >= MAX_UNSETTLED_BYTES
        )
