"""
Many sessions used by many MADs for a long time, and whether all of it is true after.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple

from everbus.bus import Mad, Session
from everbus.gateway.store.mongo.documents import TIMELINE
from tests.bench.scale_accounts import Accounts
from tests.bench.scale_clients import Client, client
from tests.bench.scale_cost import TAIL, filled
from tests.bench.scale_rig import (
    MAX_CONCURRENT,
    Meter,
    Scale,
    Spent,
    made,
    rss_mb,
    say,
    until_quiet,
    used_memory,
)
from tests.bench.scale_work import Plan, Report
from tests.bench.tier_rig import TIMEOUT_S, Stack, in_flight
from tests.bench.tier_sessions import bare_database
from tests.replicas import Part

MADS, PROCESSES, CROWD = 50, 2, 10
LOOK_EVERY_S = 10.0
# What a deployment has; the archiver must keep up, or the bus refuses.
OUTBOX_RECORDS = 50_000


async def sessions(scale: Scale) -> None:
    """
    10,000 sessions and 50 MADs in two client processes, with archiver and MongoDB.
    """
    stack = scale.stack
    async with (
        stack.archiver() as archiver,
        stack.manager(outbox_max_records=OUTBOX_RECORDS) as replica,
        stack.mad() as mad,
        AsyncExitStack() as running,
    ):
        ids = await made(mad, scale.count(10_000, 200))
        if scale.tails:
            # What grows from now on is a leak.
            await filled(stack, mad, ids)
        clients = await _clients(scale, ids, running)
        await _all(clients, "join")
        await until_quiet(stack, "before")
        series = Series(stack, (replica, archiver), scale.minutes * 60)
        pids = _pids(stack, replica, archiver, clients)
        await (meter := Meter(stack.wire, *pids)).begin()
        began = time.monotonic()
        async with series.running():
            await _all(clients, "run")
        took_s = time.monotonic() - began
        _note_cpu(scale, pids, await meter.spent(), took_s)
        await series.look()
        scale.figures.note("drained after, s", await until_quiet(stack, "after"))
        _note_load(scale, clients, took_s)
        series.note(scale)
        await _judge(scale, mad, ids, clients)


async def _all(clients: Sequence[Client], line: str) -> None:
    await asyncio.gather(*(one.tell(line) for one in clients))


def _pids(
    stack: Stack, replica: Part, archiver: Part, clients: Sequence[Client]
) -> dict[int, str]:
    """
    Pid → whose it is, of all that shares the machine in this.
    """
    servers = {stack.bus.pid: "Redis", stack.mongo.pid: "MongoDB"}
    parts = {replica.pid: "replica", archiver.pid: "archiver"}

    return servers | parts | {one.pid: "clients" for one in clients}


def _note_cpu(
    scale: Scale, pids: Mapping[int, str], spent: Spent, took_s: float
) -> None:
    used: Counter[str] = Counter()
    for pid, whose in pids.items():
        used[whose] += spent.cpu_s[pid]
    for whose, seconds in used.items():
        scale.figures.note(f"CPU % of one core, {whose}", 100 * seconds / took_s)


async def _clients(
    scale: Scale, ids: Sequence[str], running: AsyncExitStack
) -> list[Client]:
    mads = [f"mad{n}" for n in range(MADS)]
    clients = []
    for n in range(PROCESSES):
        plan = Plan(
            work="mix",
            url=scale.stack.bus.url,
            mads=tuple(mads[n::PROCESSES]),
            sessions=tuple(ids),
            crowd=tuple(ids[:CROWD]),
            joins=tuple(ids[n::PROCESSES]),
            rate=scale.rate / PROCESSES,
            seconds=scale.minutes * 60,
            report=str(scale.stack.folder / f"report-{n}"),
        )
        clients.append(await running.enter_async_context(client(plan)))
    return clients


class Look(NamedTuple):
    """
    How it was at one moment.
    """

    at_s: int
    replica_mb: float
    archiver_mb: float
    redis_mb: float
    backlog: int


class Series:
    """
    How memory and backlog went, all the time.
    """

    def __init__(self, stack: Stack, parts: tuple[Part, Part], seconds: float) -> None:
        self._stack = stack
        self._parts = parts
        self._seconds = seconds
        self._began = time.monotonic()
        self.looks: list[Look] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """
        Look at once, and again and again while the block runs.
        """
        stop = asyncio.Event()
        looking = asyncio.create_task(self._look_until(stop))
        try:
            yield
        finally:
            # To its end: a connection is for one task at a time.
            stop.set()
            await looking

    async def look(self) -> None:
        """
        Look once, and tell.
        """
        replica, archiver = (rss_mb(part.pid) for part in self._parts)
        redis_mb = await used_memory(self._stack.wire) / 1e6
        at_s = round(time.monotonic() - self._began)
        backlog = await self._stack.backlog()
        self.looks.append(Look(at_s, replica, archiver, redis_mb, backlog))
        say(
            f"{at_s} s: replica {replica:.0f} MB, archiver {archiver:.0f} MB, "
            f"Redis {redis_mb:.0f} MB, backlog {backlog:,}"
        )

    async def _look_until(self, stop: asyncio.Event) -> None:
        every_s = min(LOOK_EVERY_S, self._seconds / 10)
        while not stop.is_set():
            await self.look()
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await stop.wait()

    def note(self, scale: Scale) -> None:
        """
        Keep what the series says.
        """
        first, last = self.looks[0], self.looks[-1]
        # A minute, or in a shorter run a tenth of it.
        early_s = min(60.0, self._seconds / 10)
        early = next(look for look in self.looks if look.at_s >= early_s)
        note, n = scale.figures.note, len(self.looks)
        note("replica RSS at the start, MB", first.replica_mb)
        note("replica RSS after 1 min (a tenth), MB", early.replica_mb)
        note("replica RSS at the end, MB", last.replica_mb, n)
        growth = last.replica_mb / early.replica_mb
        note("replica RSS, end : after 1 min (a tenth)", growth, n)
        note("archiver RSS at the end, MB", last.archiver_mb, n)
        note("Redis memory at the start, MB", first.redis_mb)
        note("Redis memory at the end, MB", last.redis_mb, n)
        note("backlog, most, records", max(look.backlog for look in self.looks), n)
        note("backlog at the end, records", last.backlog)
        scale.figures.notes["series"] = [tuple(look) for look in self.looks]


def _note_load(scale: Scale, clients: Sequence[Client], took_s: float) -> None:
    note, reports = scale.figures.note, [one.report() for one in clients]
    requests = sum(report.requests for report in reports)
    note("requests/s", requests / took_s, requests)
    for kind in sorted({kind for report in reports for kind in report.took_s}):
        if kind != "said":
            took = [s for r in reports for s in r.took_s.get(kind, ())]
            scale.figures.times(kind, took, (50, 99, 99.9))
    errors = sum((report.errors for report in reports), Counter())
    note("requests that failed", errors.total(), requests)
    note("version conflicts, retried", sum(r.conflicts for r in reports), requests)
    note("false conflicts", sum(r.false_conflicts for r in reports), requests)
    scale.figures.notes["errors"] = dict(errors)


async def _judge(
    scale: Scale, mad: Mad, ids: Sequence[str], clients: Sequence[Client]
) -> None:
    """
    Compare what was acknowledged with what the bus tells and what MongoDB holds.
    """
    begun_with = {mad.name: TAIL} if scale.tails else {}
    ours = Report(appended=dict.fromkeys(ids, begun_with))
    accounts = Accounts([ours, *(one.report() for one in clients)])
    note, told = scale.figures.note, await _told(mad, ids)
    held, entries = await _held(scale.stack, ids), await _entries(scale.stack)
    own = set(ids)
    entries = {session: found for session, found in entries.items() if session in own}
    total = sum(map(len, entries.values()))
    for where, found in (("on the bus", told), ("in MongoDB", held)):
        versions = {session: one[0] for session, one in found.items()}
        missing = len(own - versions.keys())
        wrong = accounts.wrong_versions(versions) + missing
        note(f"versions wrong {where}", wrong, accounts.versions.total())
        seqs = sum(one[1] != len(entries.get(s, ())) for s, one in found.items())
        note(f"last seq wrong {where}", seqs, len(ids))
    counts = {session: told[session][2] for session in ids[:CROWD]}
    total_counted = accounts.counted.total()
    note("contended counts wrong", accounts.wrong_counts(counts), total_counted)
    wrong = accounts.wrong_entries(entries)
    note("entries lost, doubled or out of order", wrong, total)


async def _told(mad: Mad, ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """
    Session → its version, last seq and count, as the bus tells them.
    """
    found: dict[str, tuple[int, int, int]] = {}

    def asking(session_id: str) -> Any:
        async def ask() -> None:
            session: Session = await mad.get_session(session_id, timeout=TIMEOUT_S)
            count = session.work_in_progress.get("count", 0)
            found[session_id] = session.version, session.last_seq, count

        return ask

    await in_flight(MAX_CONCURRENT, [asking(session_id) for session_id in ids])

    return found


async def _held(stack: Stack, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    held = await stack.warm.sessions(ids)

    return {s: (one.session.version, one.session.last_seq) for s, one in held.items()}


async def _entries(stack: Stack) -> dict[str, list[tuple[int, str, int]]]:
    """
    Session → seq, author and number of each entry that MongoDB holds.
    """
    bare = bare_database(stack.mongo.url)
    fields = {"session": 1, "seq": 1, "author": 1, "entry.n": 1}
    found: dict[str, list[tuple[int, str, int]]] = {}
    async for document in bare[TIMELINE].find({}, fields, batch_size=5000):
        one = (document["seq"], document["author"], document["entry"]["n"])
        found.setdefault(document["session"], []).append(one)
    bare.client.close()

    return found
