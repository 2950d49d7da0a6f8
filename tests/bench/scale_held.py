"""
100,000 sessions in MongoDB: listed, found, counted, and read one by one.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from everbus.bus import Mad
from everbus.bus.errors import Unavailable
from everbus.gateway.store.mongo.documents import EVENTS, SESSIONS, TIMELINE
from everbus.handlers.commands import ListSessions
from tests.bench.scale_rig import Scale, say
from tests.bench.tier_rig import TIMEOUT_S, in_flight, timed
from tests.bench.tier_sessions import (
    LONG_AGO,
    a_session,
    bare_database,
    created,
    generated,
    record_of,
    text_of,
)

WRITTEN_AT_ONCE = 500
# So many sessions fit each question.
ALIKE = 20
# Every so manieth session has a tail; the others have no entries.
TAILED_EVERY, TAIL = 20, 20


async def held(scale: Scale) -> None:
    """
    Sessions seeded by the warm tier's own writer (`MongoWarm.write`), as the archiver
    calls it; then read through the bus and by the tier itself.
    """
    stack, count = scale.stack, scale.count(100_000, 2000)
    await _seed(scale, count)
    await _sizes(scale)
    await _operations(scale, count)
    async with stack.manager(), stack.mad() as mad:
        await _warm_gets(scale, mad, count)
        await _found(scale, mad, count)
        await _counted(scale, mad, count)


def _name(number: int) -> str:
    return f"held-{number}"


def _session(number: int, count: int) -> Any:
    """
    One of *count* sessions; each question of `_found` fits ALIKE of them.
    """
    n = number % (count // ALIKE)

    return a_session(
        _name(number),
        last_seq=TAIL if number % TAILED_EVERY == 0 else 0,
        owner_id=f"o{n}",
        last_active=LONG_AGO + timedelta(seconds=number),
        tags=(f"t{n}", "all"),
        participants={f"m{n}": {"role": "", "joined_at": "2024"}},
        acl=(f"m{n}",),
        context_summary={"topic": f"word{n} common"},
        work_in_progress={"draft": text_of(number)},
    )


async def _seed(scale: Scale, count: int) -> None:
    took: list[float] = []
    packed = await generated(1, TAIL)
    for first in range(0, count, WRITTEN_AT_ONCE):
        some = [_session(n, count) for n in range(first, first + WRITTEN_AT_ONCE)]
        records = [created(one, packed if one.last_seq else ()) for one in some]
        with timed(took):
            refused = await scale.stack.warm.write(records)
        if refused:
            raise AssertionError(f"MongoDB refused {len(refused)}: {refused[0]}")
        if (first + WRITTEN_AT_ONCE) % 10_000 == 0:
            say(f"{first + WRITTEN_AT_ONCE:,} of {count:,} written, {sum(took):.0f} s")
    tenth = max(1, len(took) // 10)
    note = scale.figures.note
    note("sessions written/s, first tenth", WRITTEN_AT_ONCE * tenth / sum(took[:tenth]))
    note("sessions written/s, last tenth", WRITTEN_AT_ONCE * tenth / sum(took[-tenth:]))


async def _sizes(scale: Scale) -> None:
    """
    Documents and bytes by collection as the server tells them, and its files.
    """
    bare = bare_database(scale.stack.mongo.url)
    for name in (SESSIONS, TIMELINE, EVENTS):
        told = await bare.command("collStats", name)
        sizes = {k: v for k, v in told.items() if k in _SIZES}
        scale.figures.notes[f"collection {name}"] = sizes
        say(f"{name}: {sizes}")
    bare.client.close()
    size = _bytes_below(scale.stack.folder / "secantus")
    scale.figures.note("MongoDB's files, MB", size / 1e6)


def _bytes_below(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file())

    return sum(path.stat().st_size for path in files)


_SIZES = ("count", "size", "storageSize", "totalIndexSize", "indexSizes", "nindexes")


async def _operations(scale: Scale, count: int) -> None:
    """
    The tier's own calls, one at a time and in turns, without the bus.
    """
    warm, many = scale.stack.warm, scale.count(1000, 50)
    took: dict[str, list[float]] = {}
    for i in range(many):
        number = i * 7919 * TAILED_EVERY % count
        session = _session(number, count)
        life, n = session.created_at, number % (count // ALIKE)
        changed = msgspec.structs.replace(session, version=2)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "a session by id": partial(warm.sessions, [session.id]),
            "its 20 newest entries": partial(warm.entries, session.id, life, 1, TAIL),
            "20 sessions by owner": partial(
                warm.find, ListSessions(limit=ALIKE, owner=f"o{n}"), ""
            ),
            "one change written": partial(
                warm.write, [record_of(changed, state=changed)]
            ),
        }
        for name, call in calls.items():
            with timed(took.setdefault(name, [])):
                await call()
    for name, seconds in took.items():
        scale.quantiles(f"MongoDB: {name}", seconds)


async def _warm_gets(scale: Scale, mad: Mad, count: int) -> None:
    """
    get_session of sessions that are not hot, each once.
    """
    many = min(scale.count(1000, 50), count // TAILED_EVERY // 2)
    wrong = 0
    for turn, at_once in enumerate((1, 4)):
        took: list[float] = []

        async def get(number: int, into: list[float] = took) -> None:
            nonlocal wrong
            with timed(into):
                found = await mad.get_session(_name(number), timeout=TIMEOUT_S)
            wrong += found.last_seq != len(found.recent_timeline)
            wrong += found.work_in_progress != {"draft": text_of(number)}

        first = turn * many
        some = range(first * TAILED_EVERY, (first + many) * TAILED_EVERY, TAILED_EVERY)
        await in_flight(at_once, [partial(get, number) for number in some])
        scale.quantiles(f"warm get, {at_once} in flight", took)
    scale.figures.note("sessions that find nothing, or the wrong", wrong, 2 * many)


async def _found(scale: Scale, mad: Mad, count: int) -> None:
    """
    Finding 20 sessions by what an index has, and going through all pages of many.
    """
    took: dict[str, list[float]] = {}
    wrong = 0
    for i in range(scale.count(200)):
        n = i * 7919 % (count // ALIKE)
        wanted = {_name(k) for k in range(n, count, count // ALIKE)}
        for by, query in _questions(n).items():
            with timed(took.setdefault(by, [])):
                page = await mad.list_sessions(limit=ALIKE, timeout=TIMEOUT_S, **query)
            wrong += {one.id for one in page.sessions} != wanted
    for by, seconds in took.items():
        scale.quantiles(f"find {ALIKE} of {count:,} by {by}", seconds)
    scale.figures.note("sessions that find nothing, or the wrong", wrong, len(took))
    newest = partial(mad.list_sessions, limit=ALIKE, timeout=TIMEOUT_S)
    await _once(scale, f"list the newest {ALIKE} of {count:,}, ms", newest)


def _questions(n: int) -> dict[str, dict[str, Any]]:
    return {
        "owner": {"owner": f"o{n}"},
        "participant": {"participant": f"m{n}"},
        "tag": {"tag": f"t{n}"},
        "a word": {"text": f"word{n}"},
    }


async def _counted(scale: Scale, mad: Mad, count: int) -> None:
    name = f"count {count:,} by tier and state, ms"
    stats = await _once(scale, name, partial(mad.stats, timeout=TIMEOUT_S))
    if stats is not None:
        scale.figures.notes["counted"] = msgspec.to_builtins(stats)
        lacking = max(0, count - stats.tiers["warm"].sessions)
        scale.figures.note("sessions that find nothing, or the wrong", lacking, count)


async def _once(scale: Scale, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
    """
    Time what reads everything; it may be refused for taking too long (None).
    """
    took: list[float] = []
    try:
        with timed(took):
            return await call()
    except Unavailable as error:
        scale.figures.notes[f"refused: {name}"] = error.message
        say(f"{name}: refused, {error.message}")
        return None
    finally:
        for seconds in took:
            scale.figures.note(name, seconds * 1000)
