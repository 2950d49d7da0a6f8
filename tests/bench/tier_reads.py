"""
What reading from the tiers takes: warm, cold, beside a session that waits, finding.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from everbus.bus import Mad
from everbus.bus.errors import EverbusError
from everbus.gateway.store.mongo.documents import SESSIONS
from everbus.handlers.commands import ListSessions
from tests.bench import rig
from tests.bench.tier_rig import TIMEOUT_S, Run, in_flight, quantile, timed
from tests.bench.tier_sessions import (
    a_session,
    archive_again,
    archive_generated,
    bare_database,
    seed,
    seed_many,
)
from tests.proxy import Proxy

# Each fits 20 sessions.
QUERIES: dict[str, dict[str, Any]] = {
    "owner": {"owner": "o7"},
    "participant": {"participant": "m7"},
    "tag": {"tag": "t7"},
    "text": {"text": "word7"},
}
# Each has to look at more sessions than it returns, unless the server is clever.
WIDE: dict[str, dict[str, Any]] = {
    "two words": {"text": "word7 common"},
    "nothing (the newest)": {},
}


async def warm_get(run: Run) -> None:
    """
    get_session of sessions that are in MongoDB only, beside a bare find_one.
    """
    count = run.count(1000)
    ids = [f"warm-{i}" for i in range(3 * count)]
    await seed(run.stack, ids, entries=20)
    sessions = bare_database(run.stack.mongo.url)[SESSIONS]
    await sessions.find_one({"_id": ids[0]})
    gets: list[float] = []
    finds: list[float] = []

    async def get(session_id: str) -> None:
        with timed(gets):
            session = await mad.get_session(session_id, timeout=TIMEOUT_S)
        if session.last_seq != 20 or len(session.recent_timeline) != 20:
            raise AssertionError(f"{session_id} is not whole: {session}")

    async def bare(session_id: str) -> None:
        with timed(finds):
            await sessions.find_one({"_id": session_id})

    async with run.stack.manager(), run.stack.mad() as mad:
        for session_id in ids[:count]:
            await get(session_id)
            await bare(session_id)
        _against(run, "warm get, 1 in flight", gets, finds)
        for at_once, first in ((4, count), (16, 2 * count)):
            gets.clear()
            finds.clear()
            some = ids[first : first + count]
            await in_flight(at_once, [partial(get, i) for i in some])
            await in_flight(at_once, [partial(bare, i) for i in some])
            _against(run, f"warm get, {at_once} in flight", gets, finds)


async def waits(run: Run) -> None:
    """
    Hot gets of one partition, with and without a session in it that waits.
    """
    turns = run.count(10, least=3)
    await seed(run.stack, [f"slow-{i}" for i in range(turns + 1)], entries=20)
    arms: dict[bool, list[float]] = {False: [], True: []}
    slow: list[float] = []
    async with Proxy("127.0.0.1", run.stack.mongo.port) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true"
        settings = {"mongo_url": url, "partitions": 1}
        async with run.stack.manager(**settings), run.stack.mad() as mad:
            hot = [(await mad.create_session("ada")).id for _ in range(50)]
            await mad.get_session(f"slow-{turns}")
            for turn in range(turns):
                await _hot_gets(mad, hot, 2.2, arms[False])
                # Two questions, each 0.5 s there and 0.5 s back.
                proxy.delay(0.5)
                waiting = asyncio.create_task(_timed_get(mad, f"slow-{turn}", slow))
                await _hot_gets(mad, hot, 2.0, arms[True])
                await waiting
                proxy.heal()
    run.figures.note("the session that waits, s", rig.median(slow), len(slow))
    run.figures.times("hot get, nobody waits", arms[False])
    run.figures.times("hot get, beside a waiting session", arms[True])
    p99 = [quantile(arms[arm], 0.99) for arm in (False, True)]
    run.figures.note("hot get p99, beside a waiting session : without", p99[1] / p99[0])


async def cold_get(run: Run) -> None:
    """
    What a stub takes to answer, by its length; a manager process for each arm, which
    has brought back one small session before.
    """
    lengths = [1000, run.count(1_000_000)]
    for length in (10, *lengths):
        session = a_session(f"cold-{length}", last_seq=length)
        await archive_generated(run.stack, session)
    for length in lengths:
        await _cold_session(run, length)
        await _cold_page(run, length)


async def _cold_session(run: Run, length: int) -> None:
    session_id, name = f"cold-{length}", f"{length:,} entries, s"
    took: list[float] = []
    async with run.stack.manager("session"), run.stack.mad() as mad:
        await _timed_get(mad, "cold-10", took)
        run.figures.note("cold get_session, a process's first, s", took[-1])
        await _timed_get(mad, session_id, took)
        run.figures.note(f"cold get_session, {name}", took[-1])
        for which in ("", ", again"):
            with timed(took):
                page = await mad.timeline(session_id, after=length // 2, limit=100)
            _check_page(page.entries, length // 2 + 1)
            run.figures.note(f"page in the middle from S3{which}, {name}", took[-1])
    await archive_again(run.stack, "cold-10")
    await archive_again(run.stack, session_id)


async def _cold_page(run: Run, length: int) -> None:
    session_id = f"cold-{length}"
    took: list[float] = []
    async with run.stack.manager("page"), run.stack.mad() as mad:
        await _timed_get(mad, "cold-10", took)
        with timed(took):
            page = await mad.timeline(session_id, after=0, limit=100)
        _check_page(page.entries, 1)
        run.figures.note(f"cold first page, {length:,} entries, s", took[-1])
    await archive_again(run.stack, "cold-10")


async def find(run: Run) -> None:
    """
    20 of many sessions, end to end, beside a scan of the collection.
    """
    count = run.count(100_000)
    await seed_many(run.stack, count)
    took: dict[str, list[float]] = {name: [] for name in QUERIES | WIDE}
    async with run.stack.manager(), run.stack.mad() as mad:
        for _ in range(run.count(200)):
            for name, query in QUERIES.items():
                with timed(took[name]):
                    page = await mad.list_sessions(limit=20, **query)
                if len(page.sessions) != 20:
                    raise AssertionError(f"{len(page.sessions)} by {name}, not 20")
        for name, query in WIDE.items():
            await _wide(run, mad, name, query, took[name])
    for name in QUERIES:
        run.figures.times(f"20 of {count:,} by {name}", took[name])
    for name in WIDE:
        _slowest(run, f"20 of {count:,} by {name}", took[name])
    for name, query in (QUERIES | WIDE).items():
        plan = await run.stack.warm.explain(ListSessions(limit=20, **query), "")
        run.figures.notes[f"plan by {name}"] = _stages(plan)
    await _scan(run, count)


async def _scan(run: Run, count: int) -> None:
    sessions = bare_database(run.stack.mongo.url)[SESSIONS]
    took: list[float] = []
    for number in range(3):
        with timed(took):
            # Of a field without an index.
            await sessions.find({"context_bytes": -number - 1}).to_list(None)
    _slowest(run, f"scan of {count:,}", took)
    told = await sessions.find({"context_bytes": -1}).explain()
    run.figures.notes["plan of the scan"] = _stages(told["queryPlanner"]["winningPlan"])


def _slowest(run: Run, name: str, seconds: Sequence[float]) -> None:
    run.figures.note(f"{name}, slowest ms", max(seconds) * 1000, len(seconds))


async def _wide(
    run: Run, mad: Mad, name: str, query: dict[str, Any], into: list[float]
) -> None:
    for _ in range(2):
        try:
            with timed(into):
                await mad.list_sessions(limit=20, timeout=TIMEOUT_S, **query)
        except EverbusError as error:
            run.figures.notes[f"refused by {name}"] = error.message


def _against(run: Run, name: str, ours: Sequence[float], bare: Sequence[float]) -> None:
    run.figures.times(name, ours)
    run.figures.times(f"bare find_one beside {name}", bare)
    ratio = quantile(ours, 0.5) / quantile(bare, 0.5)
    run.figures.note(f"{name} : bare find_one, p50", ratio)


async def _hot_gets(
    mad: Mad, ids: Sequence[str], seconds: float, into: list[float]
) -> None:
    until_s = time.perf_counter() + seconds
    i = 0
    while time.perf_counter() < until_s:
        i += 1
        with timed(into):
            await mad.get_session(ids[i % len(ids)])


async def _timed_get(mad: Mad, session_id: str, into: list[float]) -> None:
    with timed(into):
        await mad.get_session(session_id, timeout=TIMEOUT_S)


def _check_page(entries: Sequence[Any], first: int) -> None:
    if [entry.seq for entry in entries] != list(range(first, first + 100)):
        raise AssertionError(f"not the 100 entries from {first}")


def _stages(plan: Mapping[str, Any]) -> list[str]:
    """
    What a winning plan consists of, outermost first.
    """
    found: list[str] = []
    stage: Mapping[str, Any] | None = plan
    while stage:
        found.append(f"{stage['stage']} {stage.get('indexName', '')}".strip())
        stage = stage.get("inputStage")
    return found
