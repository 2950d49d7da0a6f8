"""
What sessions, replicas and MADs cost while nothing happens: memory, commands, CPU.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from everbus.bus import Mad, connect, keys
from everbus.bus.errors import Overloaded
from everbus.gateway.store import key_names
from tests.bench.rig import PARTITIONS
from tests.bench.scale_rig import (
    MAX_CONCURRENT,
    Meter,
    Scale,
    made,
    rss_mb,
    say,
    until_quiet,
    used_memory,
)
from tests.bench.scale_work import PATCH, TEXT
from tests.bench.tier_rig import TIMEOUT_S, Stack, in_flight
from tests.replicas import a_token, until

TAIL = 20
IDLE_MADS = 50
# Until groups, scripts and first looks of everything new are over; in a short run
# they are part of the figures.
SETTLING_S = 20.0


async def memory(scale: Scale) -> None:
    """
    The replica's memory with 10,000 sessions that were all used, step by step; and
    what Redis holds of a session that nobody uses.
    """
    stack, note = scale.stack, scale.figures.note
    count = scale.count(10_000, 500)
    async with stack.archiver(), stack.manager() as replica, stack.mad() as mad:
        # The first 64 are there, so what is made once is made.
        await until_quiet(stack, "before")
        note("replica RSS, no sessions, MB", rss_mb(replica.pid))
        await _forget_replies(stack)
        before = await used_memory(stack.wire)
        ids = await made(mad, count)
        steps = {
            "created": _nothing,
            "joined, changed and read": _used,
            f"with {TAIL} entries each": filled,
        }
        for step, act in steps.items():
            await act(stack, mad, ids)
            note(f"replica RSS, {count:,} {step}, MB", rss_mb(replica.pid), count)
            # 200,000 entries more would take SecantusDB a quarter of an hour.
            if act is not filled:
                await until_quiet(stack, step)
                await _forget_replies(stack)
                delta = (await used_memory(stack.wire) - before) / count
                note(f"Redis bytes a session, {step}, all in all", delta, count)
            for kind, size in (await _by_kind(stack, count)).items():
                note(f"Redis bytes a session, {step}: {kind}", size, count)
        await _check(mad, ids)
        note(f"replica RSS, {count:,} read again, MB", rss_mb(replica.pid), count)


async def _nothing(stack: Stack, mad: Mad, ids: Sequence[str]) -> None:
    pass


async def _used(stack: Stack, mad: Mad, ids: Sequence[str]) -> None:
    patch = {"fields": PATCH}
    for call in (mad.join, partial(mad.update_session, patch=patch), mad.get_session):
        calls: list[Any] = [partial(call, i, timeout=TIMEOUT_S) for i in ids]
        await in_flight(MAX_CONCURRENT, calls)


async def filled(stack: Stack, mad: Mad, ids: Sequence[str]) -> None:
    """
    Give each session as many entries as a tail has, numbered from 1.
    """
    settled = await stack.settled()
    for n in range(TAIL):
        for session in ids:
            await append(mad, session, {"n": n + 1, "text": TEXT[:200]})
    await mad.flush(timeout=TIMEOUT_S)

    async def enough() -> bool:
        return await stack.settled() >= settled + TAIL * len(ids)

    await until(enough, 300)


async def append(mad: Mad, session: str, entry: Any) -> None:
    """
    Append fire-and-forget, as fast as the bus takes it.
    """
    while True:
        try:
            mad.append(session, entry)
        except Overloaded:
            await mad.flush(timeout=TIMEOUT_S)
        else:
            return


async def _check(mad: Mad, ids: Sequence[str]) -> None:
    async def one(session_id: str) -> None:
        session = await mad.get_session(session_id, timeout=TIMEOUT_S)
        if (session.version, session.last_seq) != (3, TAIL):
            raise AssertionError(f"{session_id} is not as it was made: {session}")

    await in_flight(MAX_CONCURRENT, [partial(one, session_id) for session_id in ids])


async def _forget_replies(stack: Stack) -> None:
    """
    Remove what removes itself: ledger entries go after ten minutes, replies that
    nobody fetched after one.
    """
    for kind in ("ledger", "reply"):
        async for some in _scanned(stack, f"eb:{{*}}:{kind}:*"):
            await stack.wire.exchange([("UNLINK", key) for key in some])


async def _by_kind(stack: Stack, count: int) -> dict[str, float]:
    """
    Bytes of all keys of a kind, over the number of sessions: hot state, tail, and
    what the partitions hold of all sessions together.
    """
    sizes: defaultdict[str, int] = defaultdict(int)
    async for some in _scanned(stack, "eb:{*}:*"):
        asked = [("MEMORY", "USAGE", key, "SAMPLES", 0) for key in some]
        for key, size in zip(some, await stack.wire.exchange(asked), strict=True):
            sizes[key.decode().split(":")[2]] += size or 0

    return {kind: size / count for kind, size in sizes.items() if size / count >= 1}


async def _scanned(stack: Stack, pattern: str) -> Any:
    cursor = b"0"
    while True:
        asked = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        cursor, some = await stack.wire.call(*asked)
        if some:
            yield some
        if cursor == b"0":
            return


async def idle(scale: Scale) -> None:
    """
    What is asked of the server while nothing happens, by nobody, by one replica, by
    three, by an archiver, and by MADs.
    """
    seconds = scale.seconds(60, 5)
    async with AsyncExitStack() as running:
        enter = running.enter_async_context
        nobody = await _watched(scale, "nobody", seconds, [])
        pids = [(await enter(scale.stack.manager("bench-1"))).pid]
        one = await _watched(scale, "1 replica", seconds, pids)
        others = [await enter(scale.stack.manager(f"bench-{n}")) for n in (2, 3)]
        pids += [other.pid for other in others]
        three = await _watched(scale, "3 replicas", seconds, pids)
        archiver = await enter(scale.stack.archiver())
        with_archiver = await _watched(scale, "3 + archiver", seconds, [archiver.pid])
        url = scale.stack.bus.url
        for n in range(scale.count(IDLE_MADS, 5)):
            await enter(connect(url, mad=f"mad{n}", token=a_token(f"mad{n}")))
        with_mads = await _watched(scale, "3 + archiver + MADs", seconds, pids)
    note, mads = scale.figures.note, scale.count(IDLE_MADS, 5)
    note("commands/min, nobody", sum(nobody.values()))
    _per(scale, "replica, of 1", _minus(one, nobody), 1)
    _per(scale, "replica, of 3", _minus(three, nobody), 3)
    _per(scale, "archiver", _minus(with_archiver, three), 1)
    _per(scale, f"MAD, of {mads}", _minus(with_mads, with_archiver), mads)


def _minus(one: Counter[str], other: Counter[str]) -> Counter[str]:
    return Counter({name: one[name] - other[name] for name in one | other})


def _per(scale: Scale, what: str, calls: Counter[str], number: int) -> None:
    """
    Commands a minute of one, in all and by command.
    """
    total = sum(calls.values()) / number
    scale.figures.note(f"commands/min of an idle {what}", total, number)
    split = {name: round(n / number, 1) for name, n in calls.most_common() if n}
    scale.figures.notes[f"of an idle {what}, a minute"] = split
    say(f"{what}: {split}")


async def _watched(
    scale: Scale, who: str, seconds: float, pids: Sequence[int]
) -> Counter[str]:
    """
    Calls a minute by command, while nobody does anything; the CPU is noted.
    """
    server = scale.stack.bus.pid
    await asyncio.sleep(scale.seconds(SETTLING_S, 6))
    meter = Meter(scale.stack.wire, server, *pids)
    await meter.begin()
    await asyncio.sleep(seconds)
    spent = await meter.spent()
    note = scale.figures.note
    note(f"CPU % of the server, {who}", 100 * spent.cpu_s[server] / seconds)
    if pids:
        used = sum(spent.cpu_s[pid] for pid in pids) / len(pids)
        whose = "archiver" if who == "3 + archiver" else "a replica"
        note(f"CPU % of {whose}, {who}", 100 * used / seconds, len(pids))

    return Counter({name: n * 60 / seconds for name, n in spent.calls.items()})


async def recent_bytes(stack: Stack, session_id: str) -> dict[str, int]:
    """
    What Redis holds of one session: hot state and tail.
    """
    p = keys.partition_of(session_id, PARTITIONS)
    found = {
        "hot state": key_names.session(p, session_id),
        "tail": key_names.recent(p, session_id),
    }
    asked = [("MEMORY", "USAGE", key, "SAMPLES", 0) for key in found.values()]
    sizes = await stack.wire.exchange(asked)

    return {name: size or 0 for name, size in zip(found, sizes, strict=True)}
