"""
What MADs do in the measures of scale, and the account that they keep of it.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from everbus.bus import Mad
from everbus.bus.errors import EverbusError, VersionConflict
from tests.bench.patches import another
from tests.bench.scale_rig import MAX_CONCURRENT, paced
from tests.bench.tier_rig import TIMEOUT_S, in_flight

TEXT = "It was so late that the tide had turned, and nobody was left to say so. " * 3
PATCH = {"a": "x" * 100, "b": "y" * 100, "c": "z" * 60}
# Of a hundred requests; a contended one reads, changes, and begins anew if refused.
MIX = {"get": 40, "append": 20, "said": 10, "update": 20, "contended": 10}
# Of a MAD's writes, those to the session it talks in at the time; the others, and
# all that it reads, are to any of all.
AT_HOME = 0.9


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """
    What one client process is to do.

    Attributes:
        work: `mix` or `hammer`.
        sessions: which it uses; of a hammer: among which its load is spread.
        crowd: those that all MADs change at the same time.
        joins: those that its MADs join first, and then talk in, one after another.
        rate: requests a second, *seconds* long; a hammer that is not told to keep
            to it goes as fast as it can.
    """

    work: str
    url: str
    mads: tuple[str, ...]
    sessions: tuple[str, ...]
    crowd: tuple[str, ...]
    joins: tuple[str, ...] = ()
    rate: float = 0.0
    seconds: float = 0.0
    report: str = ""


class Report(msgspec.Struct):
    """
    What became of the commands of one process.

    Attributes:
        versions: session → how many changes of its state were acknowledged.
        counted: session of the crowd → how many contended ones of them.
        appended: session → MAD → how many entries it was given, numbered from 1.
        unknown: session, MAD and number of the entries that nobody told the end of.
        doubtful: sessions with a change that nobody told the end of.
        took_s: kind → how long each request took since it was due.
    """

    versions: Counter[str] = msgspec.field(default_factory=Counter)
    counted: Counter[str] = msgspec.field(default_factory=Counter)
    appended: dict[str, dict[str, int]] = {}
    unknown: list[tuple[str, str, int]] = []
    doubtful: list[str] = []
    took_s: dict[str, list[float]] = {}
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    conflicts: int = 0
    false_conflicts: int = 0
    requests: int = 0


class Mix:
    """
    Requests at a fixed rate: each MAD talks in one of its sessions for a while, then
    in the next, until it was in all of them; and now and then in any session.
    """

    def __init__(self, plan: Plan, mads: list[Mad]) -> None:
        self.report = Report()
        self._plan = plan
        self._mads = mads
        self._chance = random.Random(plan.mads[0])
        self._kinds = list(MIX)
        self._weights = list(MIX.values())

    async def join(self) -> None:
        """
        Have each session joined by one MAD.
        """
        turns = zip(range(len(self._plan.joins)), self._plan.joins, strict=True)
        calls = [self._joining(n, session) for n, session in turns]
        await in_flight(MAX_CONCURRENT, calls)

    async def run(self) -> None:
        """
        Make the requests, and write the report.
        """
        plan, report = self._plan, self.report
        report.requests = await paced(plan.rate, plan.seconds, self._request)
        for mad in self._mads:
            await mad.flush(timeout=TIMEOUT_S)
        _write(plan, report)

    def _joining(self, n: int, session: str) -> Callable[[], Awaitable[None]]:
        async def join() -> None:
            await self._mads[n % len(self._mads)].join(session, timeout=TIMEOUT_S)
            self.report.versions[session] += 1

        return join

    async def _request(self, n: int, due: float) -> None:
        [kind] = self._chance.choices(self._kinds, self._weights)
        place = self._chance.randrange(len(self._mads))
        mad, session = self._mads[place], self._session(kind, place, n)
        try:
            await getattr(self, f"_{kind}")(mad, session)
        except EverbusError as error:
            self.report.errors[f"{kind}: {error.code}"] += 1
        took_s = time.perf_counter() - due
        self.report.took_s.setdefault(kind, []).append(took_s)

    def _session(self, kind: str, place: int, n: int) -> str:
        plan = self._plan
        if kind == "contended":
            return self._chance.choice(plan.crowd)
        if kind == "get" or self._chance.random() > AT_HOME:
            return self._chance.choice(plan.sessions)
        own = plan.joins[place :: len(self._mads)]

        return own[int(n / (plan.rate * plan.seconds) * len(own))]

    async def _get(self, mad: Mad, session: str) -> None:
        await mad.get_session(session, timeout=TIMEOUT_S)

    async def _append(self, mad: Mad, session: str) -> None:
        n = self._next(mad, session)
        try:
            entry = {"role": "assistant", "n": n, "text": TEXT}
            await mad.append_and_wait(session, entry, timeout=TIMEOUT_S)
        except EverbusError:
            self.report.unknown.append((session, mad.name, n))
            raise

    async def _said(self, mad: Mad, session: str) -> None:
        n = self._next(mad, session)
        mad.append(session, {"role": "assistant", "n": n, "text": TEXT})

    async def _update(self, mad: Mad, session: str) -> None:
        patch = {"fields": another(PATCH) | {"by": mad.name}}
        await self._change(mad, session, patch)

    async def _contended(self, mad: Mad, session: str) -> None:
        """
        Count one up in a session that others count in, too.
        """
        while True:
            read = await mad.get_session(session, timeout=TIMEOUT_S)
            count = read.work_in_progress.get("count", 0)
            patch = {"work_in_progress": {"count": count + 1}}
            try:
                await self._change(mad, session, patch, expected=read.version)
            except VersionConflict as error:
                self.report.conflicts += 1
                self.report.false_conflicts += error.current_version == read.version
            else:
                self.report.counted[session] += 1
                return

    async def _change(
        self, mad: Mad, session: str, patch: Any, expected: int | None = None
    ) -> None:
        try:
            await mad.update_session(
                session, patch, expected_version=expected, timeout=TIMEOUT_S
            )
        except VersionConflict:
            raise
        except EverbusError:
            self.report.doubtful.append(session)
            raise
        self.report.versions[session] += 1

    def _next(self, mad: Mad, session: str) -> int:
        numbers = self.report.appended.setdefault(session, {})
        numbers[mad.name] = numbers.get(mad.name, 0) + 1

        return numbers[mad.name]


class Hammer:
    """
    One writer a MAD, each with one update in flight: on the crowd, or spread.
    """

    def __init__(self, plan: Plan, mads: list[Mad]) -> None:
        self.report = Report()
        self._plan = plan
        self._mads = mads
        self._task: asyncio.Task[Any] | None = None

    async def hot(self) -> None:
        """
        Begin to write to the crowd, as fast as the replies come.
        """
        self._begin(self._plan.crowd)

    async def spread(self) -> None:
        """
        Begin to write to all sessions alike, as fast as the replies come.
        """
        self._begin(self._plan.sessions)

    async def paced(self) -> None:
        """
        Begin to write to the crowd at the plan's rate.
        """
        self._begin(self._plan.crowd, each_s=len(self._mads) / self._plan.rate)

    async def off(self) -> None:
        """
        Write no more, and bring the report up to date.
        """
        if self._task is not None:
            self._stop.set()
            await self._task
            self._task = None
        _write(self._plan, self.report)

    def _begin(self, sessions: tuple[str, ...], each_s: float = 0.0) -> None:
        self._stop = asyncio.Event()
        writers = [self._write(mad, sessions, each_s) for mad in self._mads]
        self._task = asyncio.ensure_future(asyncio.gather(*writers))

    async def _write(self, mad: Mad, sessions: tuple[str, ...], each_s: float) -> None:
        chance = random.Random(mad.name)
        due = time.perf_counter() + chance.random() * each_s
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due += each_s
            session = chance.choice(sessions)
            patch = {"fields": another(PATCH)}
            await mad.update_session(session, patch, timeout=TIMEOUT_S)
            self.report.versions[session] += 1
            self.report.requests += 1


def read_report(plan: Plan) -> Report:
    """
    What the process of that plan wrote last.
    """
    written = Path(plan.report).read_bytes()

    return msgspec.msgpack.decode(
        written, type=Report, dec_hook=lambda _, counts: Counter(counts)
    )


def _write(plan: Plan, report: Report) -> None:
    Path(plan.report).write_bytes(msgspec.msgpack.encode(report))
