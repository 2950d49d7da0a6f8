"""
Episodes: load, a fault or two, healing, recovery, judgement.
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress

import msgspec

from everbus.bus.errors import EverbusError
from everbus.bus.keys import partition_of
from everbus.compose.verify.violations import Violation, Violations
from tests.chaos.campaign.arena import PARTITIONS, Arena
from tests.chaos.campaign.judging import judge
from tests.chaos.campaign.kinds import FaultKind, Hurt, kinds_on, pairs_of
from tests.chaos.campaign.load import Book, MadProcess

SESSIONS = 6
MISC = 2
MADS = 2
RATE = 900.0
BEFORE_S = 0.5
AFTER_S = 0.4
PROBE_S = 2.0
RECOVERED_S = 60.0
STRUCK_WITHIN_S = 90.0
# One episode in so many has two faults at once.
TWO_IN = 4


class Verdict(msgspec.Struct, kw_only=True):
    """
    What came of one episode.

    Attributes:
        bit: kind → the proof that it bit; 0: it did not, and the episode is no proof.
        recovery_s: from the heal until every partition took a write again.
        failover_s: the longest time in which a partition took no write; None without a
            failover.
        lost_by_contract: level → acknowledged writes that the fault may take.
    """

    topology: str
    seed: int
    episode: int
    kinds: list[str]
    bit: dict[str, int]
    notes: list[str]
    acknowledged: int
    reads: int
    refused: dict[str, int]
    unknown: int
    lost_by_contract: dict[str, int]
    violations: dict[str, int]
    first: list[str]
    recovery_s: float
    failover_s: float | None
    took_s: float

    @property
    def counts(self) -> bool:
        """
        Whether every fault bit.
        """
        return all(self.bit.values())


class Prober:
    """
    Writes to each partition all the time; tells since when all of them work.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._sessions: dict[int, str] = {}
        # Partition → the longest time without a write that succeeded.
        self.longest = [0.0] * PARTITIONS
        # Partition → when the last write that succeeded was begun and ended.
        self.began = [0.0] * PARTITIONS
        self.ended = [0.0] * PARTITIONS
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """
        Make a session on each partition, and write to them from now on.
        """
        while len(self._sessions) < PARTITIONS:
            made = await self._arena.judge.create_session(
                "judge", durability="warm", timeout=20
            )
            self._sessions.setdefault(partition_of(made.id, PARTITIONS), made.id)
        self._tasks = [asyncio.create_task(self._probe(p)) for p in self._sessions]

    async def end(self) -> None:
        """
        Stop writing.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def served_since(self, since: float, within_s: float) -> float:
        """
        When each partition had answered a write that was sent after *since*.

        Raises:
            TimeoutError: one did not.
        """
        first = [0.0] * PARTITIONS
        async with asyncio.timeout(within_s):
            while not all(first):
                for p in range(PARTITIONS):
                    if not first[p] and self.began[p] > since:
                        first[p] = self.ended[p]
                await asyncio.sleep(0.02)
        return max(first)

    def _note(self, p: int, began: float, ended: float) -> None:
        if self.ended[p]:
            self.longest[p] = max(self.longest[p], ended - self.ended[p])
        self.began[p], self.ended[p] = began, ended

    async def _probe(self, partition: int) -> None:
        while True:
            began = time.monotonic()
            with suppress(EverbusError):
                await self._arena.judge.append_and_wait(
                    self._sessions[partition], "probe", timeout=PROBE_S
                )
                self._note(partition, began, time.monotonic())
            await asyncio.sleep(0.05)


class Runner:
    """
    Runs episodes on one arena, one after another.
    """

    def __init__(self, arena: Arena, seed: int, rate: float = RATE) -> None:
        self._arena = arena
        self._seed = seed
        self._rate = rate
        self._mads = [MadProcess(arena, n) for n in range(MADS)]
        self._prober = Prober(arena)
        self._stuck = ""

    async def __aenter__(self) -> "Runner":
        await self._prober.begin()
        for mad in self._mads:
            await mad.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._prober.end()
        for mad in self._mads:
            await mad.kill()

    def plan(self, episode: int) -> list[FaultKind]:
        """
        The kinds of an episode: each in turn, and pairs in between.
        """
        known = kinds_on(self._arena.topology)
        pairs = list(pairs_of(self._arena.topology))
        if pairs and episode % TWO_IN == TWO_IN - 1:
            chance = random.Random(f"{self._seed}:{self._arena.topology}")
            chance.shuffle(pairs)
            return list(pairs[(episode // TWO_IN) % len(pairs)])
        single = episode - episode // TWO_IN if pairs else episode
        return [known[single % len(known)]]

    async def run(self, episode: int, kinds: list[FaultKind] | None = None) -> Verdict:
        """
        Run episode number *episode*; one that breaks, since the bus does not answer as
        it should, is a violation, too.
        """
        began = time.monotonic()
        await self._arena.mend()
        try:
            return await self._run(episode, kinds, began)
        except EverbusError as error:
            planned = kinds or self.plan(episode)
            await self._begin_anew()
            return Verdict(
                topology=self._arena.topology,
                seed=self._seed,
                episode=episode,
                kinds=[k.name for k in planned],
                bit={k.name: 1 for k in planned},
                notes=[],
                acknowledged=0,
                reads=0,
                refused={},
                unknown=0,
                lost_by_contract={},
                violations={"lost": 1},
                first=[f"the episode broke: {type(error).__name__}: {error.message}"],
                recovery_s=RECOVERED_S,
                failover_s=None,
                took_s=round(time.monotonic() - began, 2),
            )

    async def _run(
        self, episode: int, kinds: list[FaultKind] | None, began: float
    ) -> Verdict:
        chance = random.Random(f"{self._seed}:{self._arena.topology}:{episode}")
        planned = kinds or self.plan(episode)
        violations, book, misc = Violations(3), *await self._sessions()
        for mad in self._mads:
            mad.go(book, misc, chance.randrange(2**31), self._rate / MADS)
        await asyncio.sleep(BEFORE_S)
        hurts = [self._hurt(chance) for _ in planned]
        self._stuck = ""
        await self._strike(planned, hurts)
        book.lossy = max((h.lossy for h in hurts), key=("", "hot", "replicated").index)
        recovery_s = await self._recovered()
        await asyncio.sleep(AFTER_S)
        await self._settled(book)
        lost = await self._judged(book, misc, violations)
        failovers = any(hurt.failover for hurt in hurts)
        return Verdict(
            topology=self._arena.topology,
            seed=self._seed,
            episode=episode,
            kinds=[k.name for k in planned],
            bit={k.name: h.bit for k, h in zip(planned, hurts, strict=True)},
            notes=[note for h in hurts for note in h.notes],
            acknowledged=book.acknowledged,
            reads=book.reads,
            refused=dict(book.refusals),
            unknown=sum(left for _, left in book.ended),
            lost_by_contract={level: n for level, n in lost.items() if n},
            violations={str(k): n for k, n in violations.counts.items()},
            first=[str(one) for one in violations.first],
            recovery_s=round(recovery_s, 3),
            failover_s=round(max(self._prober.longest), 3) if failovers else None,
            took_s=round(time.monotonic() - began, 2),
        )

    async def _strike(self, planned: list[FaultKind], hurts: list[Hurt]) -> None:
        """
        Let the faults strike and heal.
        """
        self._prober.longest = [0.0] * PARTITIONS
        pairs = zip(planned, hurts, strict=True)
        try:
            async with asyncio.timeout(STRUCK_WITHIN_S):
                await asyncio.gather(*(k.strike(h) for k, h in pairs))
        except (TimeoutError, AssertionError, EverbusError) as error:
            self._stuck = f"the fault did not end: {type(error).__name__}: {error}"

    async def _recovered(self) -> float:
        """
        How long it takes until every partition has taken a write.
        """
        healed = time.monotonic()
        supervising = asyncio.create_task(self._supervise())
        try:
            return await self._prober.served_since(healed, RECOVERED_S) - healed
        except TimeoutError:
            self._stuck = f"a partition took no write within {RECOVERED_S:g} s"
            return RECOVERED_S
        finally:
            supervising.cancel()

    async def _supervise(self) -> None:
        """
        Start what ends by itself, such as a manager whose bus was away at its start.
        """
        while True:
            await asyncio.sleep(0.5)
            await self._arena.mend()

    async def _settled(self, book: Book) -> None:
        """
        Let the MADs settle what they sent.
        """
        settled = await asyncio.gather(*(mad.stop() for mad in self._mads))
        if not all(settled):
            self._stuck = self._stuck or "a MAD could not settle"
        elif not all(done for done, _ in book.ended):
            self._stuck = self._stuck or "writes without a reply were never settled"

    async def _judged(
        self, book: Book, misc: list[str], violations: Violations
    ) -> Counter[str]:
        """
        What was lost by contract, by level; all else is a violation.
        """
        lost: Counter[str] = Counter()
        try:
            lost = await judge(self._arena, book, misc, violations)
        except (AssertionError, EverbusError) as error:
            last = self._arena.parts["archiver"].output().splitlines()[-6:]
            self._stuck = self._stuck or f"not judged: {error}; the archiver: {last}"
        for what in book.broken:
            violations.note(Violation("damaged", "", f"a MAD broke: {what}"))
        if self._stuck:
            violations.note(Violation("lost", "", self._stuck))
            await self._begin_anew()
        return lost

    async def _begin_anew(self) -> None:
        """
        Let no later episode suffer from what this one left unsettled.
        """
        for mad in self._mads:
            await mad.kill()
            await mad.begin()

    def _hurt(self, chance: random.Random) -> Hurt:
        return Hurt(self._arena, self._mads, random.Random(chance.randrange(2**31)))

    async def _sessions(self) -> tuple[Book, list[str]]:
        judge = self._arena.judge
        made = await asyncio.gather(
            *(
                judge.create_session("judge", durability="warm", timeout=20)
                for _ in range(SESSIONS + MISC)
            )
        )
        checked, misc = made[:SESSIONS], made[SESSIONS:]
        book = Book([(one.id, one.version) for one in checked])
        return book, [one.id for one in misc]
