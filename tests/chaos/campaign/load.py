"""
The load of the campaign: MAD processes, and the expectation of what they said.
"""

import asyncio
import json
import signal
from collections import Counter
from contextlib import suppress
from typing import Any

from everbus.compose.verify.expectation import ClientMarks, SessionExpectation
from everbus.compose.verify.violations import Kind, Violation, Violations
from tests.chaos.campaign.arena import Arena
from tests.chaos.campaign.mad_process import CLASSES, HOT, LATER, REPLICATED, WARM
from tests.processes import PIPE, Process, start_python
from tests.replicas import a_token
from tests.servers import inherited

PROGRAM = "from tests.chaos.campaign.mad_process import main; main()"
READY_S = 60.0
END_S = 75.0
# Levels whose acknowledged writes a fault may take away by contract.
WEAK: dict[str, frozenset[int]] = {
    "": frozenset(),
    "hot": frozenset({HOT, LATER}),
    "replicated": frozenset({HOT, LATER, REPLICATED}),
}


class Book:
    """
    What the MADs of one episode said of its sessions.

    Attributes:
        expectations: one a session, in the order that the MADs know.
        lossy: the strongest level that the fault may take from: "", hot, replicated.
        claims: what MADs saw themselves: session, kind, level, detail.
        refusals: code → how many writes were refused with it.
    """

    def __init__(self, sessions: list[tuple[str, int]]) -> None:
        self.expectations = [
            SessionExpectation(id_, version, exact=True) for id_, version in sessions
        ]
        self.lossy = ""
        self.claims: list[tuple[int, Kind, int, str]] = []
        self.refusals: Counter[str] = Counter()
        self.reads = 0
        self.ended: list[tuple[bool, int]] = []
        self.broken: list[str] = []
        self._inferred: list[tuple[ClientMarks, int, int]] = []
        self._late: list[tuple[int, str, int, int, str]] = []

    def hear(self, said: list[Any]) -> None:
        """
        Take one line of a MAD: what it is about, then its fields.
        """
        getattr(self, f"_hear_{said[0]}")(*said[1:])

    def _hear_given(self, s: int, kind: str, c: int, n: int) -> None:
        marks = self._marks(s, kind, c)
        while marks.last < n:
            marks.give()

    def _hear_answered(self, s: int, kind: str, c: int, n: int, number: int) -> None:
        self._marks(s, kind, c).acknowledge(n, number)

    def _hear_applied(self, s: int, kind: str, c: int, numbers: list[int]) -> None:
        marks = self._marks(s, kind, c)
        for n in numbers:
            if n in marks.doubtful:
                marks.acknowledge(n)
                self._inferred.append((marks, n, c % CLASSES))

    def _hear_refused(self, s: int, kind: str, c: int, n: int, code: str) -> None:
        self.refusals[code] += 1
        self._marks(s, kind, c).refuse(n)

    def _hear_late(self, s: int, kind: str, c: int, n: int, code: str) -> None:
        self.refusals[f"late {code}"] += 1
        self._late.append((s, kind, c, n, code))

    def _hear_seen(self, s: int, kind: Kind, level: int, detail: str) -> None:
        self.claims.append((s, kind, level, detail))

    def _hear_broken(self, what: str) -> None:
        self.broken.append(what)

    def _hear_end(self, done: bool, left: int, reads: int) -> None:
        self.ended.append((done, left))
        self.reads += reads

    def _marks(self, s: int, kind: str, c: int) -> ClientMarks:
        one = self.expectations[s]
        return one.appends_of(c) if kind == "a" else one.updates_of(c)

    @property
    def weak(self) -> frozenset[int]:
        """
        The levels whose acknowledged writes may be gone.
        """
        return WEAK[self.lossy]

    def excused(self, expectation: SessionExpectation) -> set[int | str]:
        """
        The clients of *expectation* whose acknowledged writes may be gone.
        """
        both = {*expectation.appends, *expectation.updates}
        return {c for c in both if int(c) % CLASSES in self.weak}

    def settle(self, violations: Violations) -> None:
        """
        Take back what was only inferred, where the fault allows its loss; count what
        the MADs claim to have seen.
        """
        if self.lossy:
            self._forget_answers()
            # An outcome tells that it was applied, and nothing of its durability.
            for marks, n, level in self._inferred:
                if level not in self.weak:
                    marks.doubtful.add(n)
        for s, kind, c, n, code in self._late:
            marks = self._marks(s, kind, c)
            if not self.lossy:
                detail = f"{kind} {n} of {c} was settled, then refused: {code}"
                violations.note(Violation("lost", self.expectations[s].id, detail, n))
            marks.refuse(n)
        for s, kind, level, detail in self.claims:
            if level not in self.weak:
                violations.note(
                    Violation(kind, self.expectations[s].id, f"seen by a MAD: {detail}")
                )

    def _forget_answers(self) -> None:
        """
        A commit that is lost by contract may come again from its ingress, and has then
        another version or seq than its first answer said.
        """
        for one in self.expectations:
            for client in self.excused(one):
                for marks in (one.appends.get(client), one.updates.get(client)):
                    if marks is not None:
                        del marks.answers[:]

    @property
    def acknowledged(self) -> int:
        """
        The number of acknowledged writes.
        """
        return sum(
            marks.acknowledged
            for one in self.expectations
            for marks in (*one.appends.values(), *one.updates.values())
        )


class MadProcess:
    """
    One MAD, in one process after another.
    """

    def __init__(self, arena: Arena, number: int) -> None:
        self.name = f"load{number}"
        self._arena = arena
        self._number = number
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self.book: Book | None = None
        self._log = arena.folder / f"{self.name}.log"
        self.misc: list[str] = []
        self.rate = 0.0
        self._clients = number

    @property
    def pid(self) -> int:
        """
        The process's id.
        """
        return self._process.pid if self._process else 0

    async def begin(self) -> None:
        """
        Start a process; returns when one is connected.

        A bus that refuses the user, as a fault may have it, ends a new MAD at once.
        """
        async with asyncio.timeout(READY_S):
            while not await self._begun():
                await asyncio.sleep(0.1)

    async def _begun(self) -> bool:
        self._ready.clear()
        url = self._arena.url("mads")
        with self._log.open("ab") as log:
            process = self._process = await start_python(
                *("-c", PROGRAM, url, self.name, a_token(self.name)),
                env={**inherited(), "EVERBUS_LOG_LEVEL": "error"},
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
            )
        self._reading = asyncio.create_task(self._read(process))
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._reading}, return_when="FIRST_COMPLETED")
        ready.cancel()
        return self._ready.is_set()

    def go(self, book: Book, misc: list[str], seed: int, rate: float) -> None:
        """
        Let it send.
        """
        self.book, self.misc, self.rate = book, misc, rate
        self._clients += 100
        self._ended.clear()
        levels = [HOT, WARM]
        if self._arena.replicated:
            levels.append(REPLICATED)
        self._order(
            {
                "go": {
                    "sessions": [one.id for one in book.expectations],
                    "misc": misc,
                    "client": self._clients,
                    "seed": seed,
                    "rate": rate,
                    "levels": levels,
                }
            }
        )

    async def stop(self) -> bool:
        """
        Let it settle all; whether it said that it has.
        """
        if self._process is None or self._process.returncode is not None:
            if self.book is not None:
                self.book.broken.append(f"{self.name} ended by itself")
            await self.begin()
            return True
        self._order({"stop": 1})
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._ended.wait()
        return self._ended.is_set()

    def send(self, number: int) -> None:
        """
        Send the process a signal.
        """
        if self._process is not None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """
        End it by SIGKILL; what it had said is heard.
        """
        if self._process is None:
            return
        self.send(signal.SIGKILL)
        await self._process.wait()
        if self._reading is not None:
            await self._reading

    def _order(self, order: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue
            if not line:
                break
            if not line.startswith(b"["):
                continue
            with suppress(ValueError):
                said = json.loads(line)
                if said == ["ready"]:
                    self._ready.set()
                elif self.book is not None:
                    self.book.hear(said)
                    if said[0] == "end":
                        self._ended.set()
        self._ended.set()
