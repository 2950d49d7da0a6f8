"""
The judgement on an episode: `compose.verify` on all that its MADs were told.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from everbus.archiver.lease import NAME as LEASE
from everbus.bus.errors import EverbusError
from everbus.bus.messages import TimelinePage
from everbus.compose.bench.checking import observed_session
from everbus.compose.bench.marks import mark_in_entry, mark_in_patch
from everbus.compose.retried_calls import read_retrying
from everbus.compose.verify.copies import CopyCheck
from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.verify.hot_reader import HotReader
from everbus.compose.verify.readers import timeline_entries
from everbus.compose.verify.session_checks import LogCheck, check_log_end
from everbus.compose.verify.violations import Violations
from everbus.gateway.store import key_names
from everbus.handlers.outcomes import Event
from tests.chaos.campaign.arena import PARTITIONS, Arena
from tests.chaos.campaign.load import Book
from tests.chaos.campaign.mad_process import CLASSES

PAGE = 1000
DRAINED_S = 45.0
NAMES = ("hot", "replicated", "warm", "later")


async def judge(
    arena: Arena, book: Book, misc: list[str], violations: Violations
) -> Counter[str]:
    """
    Check every session of the episode; what was lost by contract, by level.
    """
    sessions = [*(one.id for one in book.expectations), *misc]
    try:
        async with asyncio.timeout(DRAINED_S):
            await asyncio.gather(*(_drained(arena, one) for one in sessions))
    except TimeoutError:
        found = await _outboxes(arena)
        raise AssertionError(f"not drained in {DRAINED_S:g} s: {found}") from None
    book.settle(violations)
    lost: Counter[str] = Counter()
    await asyncio.gather(
        *(_session(arena, book, one, violations, lost) for one in book.expectations)
    )
    hot = HotReader(arena.wire, PARTITIONS)
    await hot.load_windows(violations)
    assert arena.warm is not None
    copies = CopyCheck(arena.warm, arena.archives, hot.read, hot.is_settled, violations)
    for session in sessions:
        await copies.check(session)
    return lost


async def _drained(arena: Arena, session: str) -> None:
    """
    Return when MongoDB holds all of a session.
    """
    while True:
        with suppress(EverbusError):
            await arena.judge.durable(session, wait=True, timeout=5)
            return
        await asyncio.sleep(0.1)


async def _outboxes(arena: Arena) -> list[Any]:
    """
    What is in the way, for people.
    """
    found = []
    for p in range(PARTITIONS):
        outbox = key_names.outbox(p)
        found.append(
            [
                p,
                await arena.ask("XLEN", outbox),
                await arena.ask("XRANGE", outbox, "-", "+", "COUNT", 1),
                await arena.ask("XINFO", "GROUPS", outbox),
                await arena.ask("XPENDING", outbox, key_names.ARCHIVER_GROUP),
                await arena.ask("GET", key_names.drainer(p)),
            ]
        )
    return [*found, await arena.ask("GET", key_names.owner(LEASE))]


async def _session(
    arena: Arena,
    book: Book,
    expectation: SessionExpectation,
    violations: Violations,
    lost: Counter[str],
) -> None:
    observed = await observed_session(arena.judge, expectation.id)
    excused = book.excused(expectation)
    # Only where the bus forgets under a connection that lives on, can a MAD not know
    # that it has to send something again first.
    late = excused if book.lossy == "replicated" else set()
    timeline = LogCheck(expectation, violations, "append", late)
    page = partial(_page, arena, expectation.id)
    async for entry in timeline_entries(page):
        timeline.see(entry.seq, mark_in_entry(entry.entry))
    updates = LogCheck(expectation, violations, "update", late)
    async for event in _events(arena, expectation.id):
        if event.kind == "session.updated":
            patch: Any = event.patch or {}
            mark = mark_in_patch(patch.get("context_summary") or {})
            updates.see(event.version, mark, event.command_id)
    for check in (timeline, updates):
        for client, count in check.end(excused).items():
            lost[NAMES[int(client) % CLASSES]] += count
        lost["late"] += check.late
    check_log_end(expectation, observed, (updates, timeline), violations)


async def _page(arena: Arena, session: str, after: int) -> TimelinePage:
    return await read_retrying(
        partial(arena.judge.timeline, session, after=after, limit=PAGE)
    )


async def _events(arena: Arena, session: str) -> AsyncIterator[Event]:
    assert arena.warm is not None
    held = (await arena.warm.sessions([session])).get(session)
    if held is None:
        return
    after = (1, 0)
    while True:
        some = await arena.warm.events(session, held.session.created_at, after, PAGE)
        for event in some:
            # Beyond is what a dead branch left; nobody reads it.
            if event.version <= held.session.version:
                yield event
        if len(some) < PAGE:
            return
        after = (some[-1].version, some[-1].notices)
