"""
One session with a million entries: appended to, its tail read, and its pages.
"""

import random
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from everbus.bus import Mad, keys
from everbus.gateway.store import key_names
from tests.bench import rig
from tests.bench.rig import PARTITIONS
from tests.bench.scale_cost import append, recent_bytes
from tests.bench.scale_rig import MANAGER_TIMEOUT_S, Meter, Scale, say, until_quiet
from tests.bench.tier_rig import TIMEOUT_S, Stack, quantile, timed
from tests.bench.tier_sessions import a_session, created, generated
from tests.replicas import Part, until

STEPS = 10
# Appended to a seeded timeline, and drained by the archiver.
ON_TOP = 5_000
SEEDED_AT_ONCE = 5_000
PAGE, TAIL = 100, 20


async def timeline(scale: Scale) -> None:
    """
    Append all of it through the bus; then read, from MongoDB and Redis.

    With --drained the archiver brings it all to MongoDB. Without, since that takes a
    quarter of an hour, another session is seeded there with as many entries by the
    tier's own `put_entries`, and gets some on top through bus and archiver. The
    archiver is gone when reading is timed.
    """
    stack, length = scale.stack, scale.entries
    async with stack.manager(), stack.mad() as mad:
        session_id = (await mad.create_session("ada", timeout=TIMEOUT_S)).id
        await _append_all(scale, mad, session_id)
    if not scale.drained:
        await rig.empty(stack.wire)
        session_id, length = await _seeded(scale), length + ON_TOP
    async with stack.manager() as replica, stack.mad() as mad:
        async with stack.archiver():
            if not scale.drained:
                await _append_on_top(scale, mad, session_id)
            scale.figures.note("drained, s", await until_quiet(stack, "drain"))
        await _tails(scale, mad, replica, session_id)
        await _pages(scale, mad, session_id, length)
        for what, size in (await recent_bytes(stack, session_id)).items():
            scale.figures.note(f"Redis bytes of the long session: {what}", size)
    by = "the archiver" if scale.drained else "MongoWarm.put_entries"
    scale.figures.notes["long timeline"] = {"entries": length, "in MongoDB by": by}


def _entry(n: int) -> dict[str, Any]:
    return {"n": n, "text": "so it was said, and it was heard"}


async def _append_all(scale: Scale, mad: Mad, session_id: str) -> None:
    """
    Fire-and-forget, each tenth timed from its first publish to its last commit.
    """
    stack, step = scale.stack, scale.entries // STEPS
    rates: list[float] = []
    settled = await stack.settled()
    for tenth in range(STEPS):
        started = time.perf_counter()
        for n in range(tenth * step, (tenth + 1) * step):
            await append(mad, session_id, _entry(n + 1))
        await mad.flush(timeout=TIMEOUT_S)
        await _until_settled(stack, settled + (tenth + 1) * step)
        rates.append(step / (time.perf_counter() - started))
        say(f"{(tenth + 1) * step:,} entries, {rates[-1]:,.0f}/s")
    session = await mad.get_session(session_id, timeout=TIMEOUT_S)
    if session.last_seq != scale.entries:
        raise AssertionError(f"{scale.entries} appended, last seq {session.last_seq}")
    note, first, last = scale.figures.note, rates[0], rates[-1]
    note("appends/s, first 100,000 (a tenth)", first, step)
    note("appends/s, last 100,000 (a tenth)", last, step)
    note("append, us each, last 100,000 (a tenth) : first", first / last, step)
    scale.figures.notes["appends/s by tenth"] = [round(rate) for rate in rates]


async def _until_settled(stack: Stack, count: int) -> None:
    async def enough() -> bool:
        return await stack.settled() >= count

    await until(enough, MANAGER_TIMEOUT_S)


async def _seeded(scale: Scale) -> str:
    """
    A session that only MongoDB has, with its whole timeline, as it would be there
    long after the last of them was drained.
    """
    session = a_session("seeded", last_seq=scale.entries, owner_id="ada")
    took: list[float] = []
    with timed(took):
        await scale.stack.warm.write([created(session)])
        for first in range(1, scale.entries + 1, SEEDED_AT_ONCE):
            last = min(first + SEEDED_AT_ONCE - 1, scale.entries)
            entries = await generated(first, last)
            await scale.stack.warm.put_entries("seeded", session.created_at, entries)
            if last % (10 * SEEDED_AT_ONCE) == 0:
                say(f"{last:,} of {scale.entries:,} entries seeded")
    scale.figures.note("entries seeded/s", scale.entries / took[0], scale.entries)

    return session.id


async def _append_on_top(scale: Scale, mad: Mad, session_id: str) -> None:
    settled = await scale.stack.settled()
    for n in range(ON_TOP):
        await append(mad, session_id, _entry(scale.entries + n + 1))
    await _until_settled(scale.stack, settled + ON_TOP)


async def _tails(scale: Scale, mad: Mad, replica: Part, session_id: str) -> None:
    """
    The 20 newest entries, in turns with a request that reads nothing.

    Server side is what Redis and replica spend on one, by the server's own clock
    (INFO commandstats) and the kernel's: a bound, since waking up is in there.
    """
    empty = (await mad.create_session("ada", timeout=TIMEOUT_S)).id
    count = scale.count(2000, 200)
    took: dict[str, list[float]] = {"tail": [], "bare": []}
    for _ in range(count):
        for name, asked in (("tail", session_id), ("bare", empty)):
            with timed(took[name]):
                page = await mad.timeline(asked, after=None, limit=TAIL)
            if name == "tail" and len(page.entries) != TAIL:
                raise AssertionError(f"the tail has {len(page.entries)} entries")
    for name, seconds in took.items():
        scale.quantiles(f"{name} request, 1 in flight", seconds)
    beyond = quantile(took["tail"], 0.5) - quantile(took["bare"], 0.5)
    scale.figures.note("tail, request p50 beyond a bare one's, ms", beyond * 1000)
    meter = Meter(scale.stack.wire, replica.pid)
    await meter.begin()
    for _ in range(count):
        await mad.timeline(session_id, after=None, limit=TAIL)
    spent = await meter.spent()
    # What is called by a script is in the script's own time.
    redis_us = sum(
        spent.usec.get(name, 0) for name in ("evalsha", "xread", "publish", "unlink")
    )
    await _note_server_side(scale, session_id, spent.cpu_s[replica.pid], redis_us)


async def _note_server_side(
    scale: Scale, session_id: str, replica_s: float, redis_us: int
) -> None:
    count, stack = scale.count(2000, 200), scale.stack
    note = scale.figures.note
    note("tail, Redis, us", redis_us / count, count)
    note("tail, replica CPU, us", replica_s * 1e6 / count, count)
    total = redis_us / count + replica_s * 1e6 / count
    note("tail, server side, us: Redis + replica", total, count)
    recent = key_names.recent(keys.partition_of(session_id, PARTITIONS), session_id)
    meter = Meter(stack.wire)
    await meter.begin()
    await stack.wire.exchange([("LRANGE", recent, 0, -1)] * count)
    spent = await meter.spent()
    note("tail, the LRANGE of a load alone, us", spent.usec["lrange"] / count, count)


async def _pages(scale: Scale, mad: Mad, session_id: str, length: int) -> None:
    """
    Pages of 100 at random positions below the tail, and pages within the tail.
    """
    chance, wrong = random.Random(6), 0
    took: dict[str, list[float]] = {
        "page of 100 from MongoDB": [],
        "page from Redis": [],
    }
    last_at: dict[int, datetime] = {}
    for _ in range(scale.count(1000, 100)):
        after = chance.randrange(0, length - TAIL - PAGE)
        with timed(took["page of 100 from MongoDB"]):
            page = await mad.timeline(session_id, after=after, limit=PAGE)
        wrong += not _is_page(page.entries, after, PAGE, last_at)
        after = length - chance.randrange(1, TAIL)
        with timed(took["page from Redis"]):
            page = await mad.timeline(session_id, after=after, limit=PAGE)
        wrong += not _is_page(page.entries, after, length - after, last_at)
    for name, seconds in took.items():
        scale.quantiles(name, seconds)
    scale.figures.note("pages that are wrong", wrong, 2 * scale.count(1000, 100))


def _is_page(
    entries: Sequence[Any], after: int, count: int, seen: dict[int, datetime]
) -> bool:
    """
    Whether it is the *count* entries behind *after*, the same as ever.
    """
    seqs = [entry.seq for entry in entries]
    same = all(seen.setdefault(e.seq, e.at) == e.at for e in entries)

    return same and seqs == list(range(after + 1, after + count + 1))
