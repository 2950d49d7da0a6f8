"""
The load: a number of calls in flight, or each call when it is due.

With a rate, a command is due at its time, however long the commands before it take.
Latency counts from the due time, so a stall raises the latency of every command that
was due during it (against coordinated omission).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from everbus.bus.errors import EverbusError, Forbidden, Unauthenticated
from everbus.compose.bench.figures import Figures
from everbus.compose.bench.load_client import LoadClient
from everbus.compose.bench.plan import UNANSWERED, BenchPlan
from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.worker_pool import each

# A worker that waits for its turn notices the end within this time.
NAP_S = 0.1
# A due time that is nearer than this is now.
_INSTANT_S = 1e-6
# Until the next one, after a refusal.
PAUSE_S = 0.02
# A refused or unanswered write takes about 60 bytes of memory.
MOST_DOUBTS = 5_000_000


class Schedule:
    """
    The due time of each command, in seconds since the start; None: no more.

    Attributes:
        given: how many turns were given out.
        ended: why it ended early; empty if it did not.
    """

    def __init__(
        self,
        rate: float | None,
        seconds: float,
        limit: int,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._seconds = seconds
        self._limit = limit
        self._now = now
        self._sleep = sleep
        self._began = now()
        self.given = 0
        self.ended = ""

    @property
    def now_s(self) -> float:
        """
        Seconds since the start.
        """
        return self._now() - self._began

    @property
    def never_sent(self) -> int:
        """
        How many were due and had no turn before the end.
        """
        if self._rate is None or self.ended:
            return 0
        return max(0, int(self._rate * self._seconds) - self.given)

    def begin(self) -> None:
        """
        Start the clock.
        """
        self._began = self._now()

    def end(self, why: str) -> None:
        """
        Give no more turns.
        """
        self.ended = self.ended or why

    async def turn(self) -> float | None:
        """
        When the next command is due, as soon as that is; None if there is none.
        """
        if self._is_over():
            return None
        if self.given >= self._limit:
            self.end(f"--limit {self._limit} is reached")
            return None
        if self._rate is None:
            self.given += 1
            return self.now_s
        due_s = self.given / self._rate
        if due_s >= self._seconds:
            return None
        self.given += 1
        while (left_s := due_s - self.now_s) > _INSTANT_S:
            await self._sleep(min(left_s, NAP_S))
            if self._is_over():
                return None
        return due_s

    def _is_over(self) -> bool:
        return bool(self.ended) or self.now_s >= self._seconds


class Load:
    """
    Workers that take turns, each with one command under way.

    Attributes:
        schedule: of the load that runs or ran.
        under_way: partition → how many commands are under way in it.
    """

    def __init__(
        self,
        plan: BenchPlan,
        clients: Sequence[LoadClient],
        expectations: Sequence[SessionExpectation],
        figures: Figures,
        partitions: int,
    ) -> None:
        self.schedule = Schedule(plan.rate, plan.warm_up_s + plan.seconds, plan.limit)
        self.under_way = [0] * partitions
        self._plan = plan
        self._clients = clients
        self._expectations = expectations
        self._figures = figures
        self._names = list(plan.mix)
        self._weights = list(plan.mix.values())
        # The choice of calls and sessions is no secret.
        self._random = random.Random(plan.seed)  # noqa: S311
        self._doubts = 0

    async def run(self) -> None:
        """
        Send commands until the time is over or the schedule has ended; return when
        every command has ended.

        Raises:
            Forbidden, Unauthenticated: the bus or the managers turn a MAD away.
        """
        self.schedule.begin()
        workers = self._plan.in_flight
        await each(self._work, range(workers), workers)

    async def _work(self, _: int) -> None:
        while (due_s := await self.schedule.turn()) is not None:
            await self._one(due_s)

    async def _one(self, due_s: float) -> None:
        schedule = self.schedule
        client = self._clients[schedule.given % len(self._clients)]
        [name] = self._random.choices(self._names, self._weights)
        expectation = self._random.choice(self._expectations)
        self.under_way[expectation.partition] += 1
        sent_s, code = schedule.now_s, "ok"
        try:
            await client.call(name, expectation)
        except (Forbidden, Unauthenticated):
            raise
        except EverbusError as error:
            code = error.code
        finally:
            self.under_way[expectation.partition] -= 1
        self._figures.note(name, due_s, sent_s, schedule.now_s, code)
        if code != "ok":
            await self._refused(code)
        elif name in UNANSWERED:
            await client.catch_up(expectation)

    async def _refused(self, code: str) -> None:
        self._doubts += 1
        if self._doubts >= MOST_DOUBTS:
            self.schedule.end(f"{MOST_DOUBTS:,} refusals are as many as are remembered")
        if code != "version_conflict":
            await asyncio.sleep(PAUSE_S)
