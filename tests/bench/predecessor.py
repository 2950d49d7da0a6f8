"""
Our figures beside the predecessor's: `python -m tests.bench.predecessor [--short]`.

REQUIREMENTS.md S4 has the table of the service that this one follows: one call at a
time of a class in the caller's own process, which talks to Redis (one GET; one SET;
GET and SET; PUBLISH). Ours are requests to another process, with ledger, outbox and
order. Each of ours runs in turns with a bare PING of redis-py and with the same
plain commands as theirs, so that machines compare by ratios. About 60 s; short 15 s.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import redis.asyncio as redis
import uvloop

from tests.bench import goals, rig
from tests.bench.arms import PATCH, Arms
from tests.bench.goals import Ratio
from tests.bench.patches import another_of

PING = "bare PING, ms"
LOOPED = "in a loop, "
EVENT_WITHIN_S = 10.0
MAX_CONCURRENT = 100
# About as large as a session of theirs, which they keep as one JSON text.
STATE = json.dumps({"id": "0" * 36, "version": 1, "state": {"text": "x" * 300}})


class Theirs(NamedTuple):
    """
    A line of their table.

    Attributes:
        figure: ours, by its name.
        value: theirs; for `ops/s` more is better.
        includes: what ours does for it, and what theirs did.
    """

    figure: str
    value: float
    includes: str


TABLE = (
    Theirs(
        "get, mean ms",
        0.25,
        "ours: ask a replica over the bus, authorise, reply on a stream of its own; "
        "theirs: one GET in the caller's process",
    ),
    Theirs(
        "update, mean ms",
        0.46,
        "ours: the same, and version check, merge, event, outbox, ledger of commands, "
        "order, all in one commit; theirs: GET, compare in the caller, SET, PUBLISH "
        "(two writers can lose an update between GET and SET)",
    ),
    Theirs(
        "create, mean ms",
        0.22,
        "ours: as update, and safe to repeat; theirs: one SET",
    ),
    Theirs(
        "notification, mean ms",
        0.19,
        "ours: from the call of an update to the event in `watch()`: publish, commit, "
        "push; in order, resumable; theirs: a bare PUBLISH, lost if nobody listens",
    ),
    Theirs(
        "operations/s",
        10_000,
        "ours: one replica; gets and updates in turn, each with its reply; theirs: an "
        "estimate, of one instance",
    ),
    Theirs(
        "replica's memory, MB",
        50,
        "ours: RSS after the load, with everything that a manager loads; theirs: "
        "base, without connections",
    ),
)
SAME = {
    "get, mean ms": "their get (GET), ms",
    "update, mean ms": "their update (GET, SET, PUBLISH), ms",
    "create, mean ms": "their create (SET), ms",
    "notification, mean ms": "their notification (PUBLISH), ms",
}
RATIOS = {
    **{f"{name} : PING": Ratio(name, PING, higher=False) for name in SAME},
    **{f"{n} : the same by hand": Ratio(n, by, higher=False) for n, by in SAME.items()},
    "operations/s : PINGs/s, one at a time": Ratio("operations/s", "PINGs/s"),
}


class Arrivals:
    """
    When things came, one after another.
    """

    def __init__(self) -> None:
        self._times: asyncio.Queue[float] = asyncio.Queue()

    def note(self) -> None:
        """
        Something came now.
        """
        self._times.put_nowait(time.perf_counter())

    async def next(self) -> float:
        """
        When the next thing came.
        """
        async with asyncio.timeout(EVENT_WITHIN_S):
            return await self._times.get()


class Predecessor:
    """
    Calls one at a time on one station: ours, a PING, and theirs by hand, in turns.
    """

    def __init__(self, station: rig.Station, figures: dict[str, list[float]]) -> None:
        self._station = station
        self._mad = station.mad
        self._figures = figures
        self._bare: Any = redis.Redis.from_url(station.url)  # redis-py types no calls
        self._took: dict[str, list[float]] = {}
        self._events, self._messages = Arrivals(), Arrivals()
        self._session, self._updates = "", 0

    async def measure(self, count: int) -> None:
        """
        One pass: *count* calls of each, then as many as it can at once.
        """
        self._took.clear()
        self._session, self._updates = (await self._mad.create_session("ada")).id, 0
        async with asyncio.TaskGroup() as tasks:
            heard = [
                tasks.create_task(self._watch()),
                tasks.create_task(self._listen()),
            ]
            await self._until_heard()
            for _ in range(count):
                await self._one_of_each()
            for task in heard:
                task.cancel()
        await self._in_a_loop(count)
        for name, seconds in self._took.items():
            self._note(name, 1000 * sum(seconds) / len(seconds))
        self._note("PINGs/s", 1000 / self._figures[PING][-1])
        last = await self._mad.get_session(self._session)
        if last.version != 1 + self._updates:
            raise AssertionError(f"{self._updates} updates, version {last.version}")
        await self._mixed(count)

    async def close(self) -> None:
        """
        Close what this opened.
        """
        await self._bare.aclose()

    async def _one_of_each(self) -> None:
        mad, bare, session = self._mad, self._bare, self._session
        await self._timed(PING, bare.ping)
        await self._timed("get, mean ms", lambda: mad.get_session(session))
        await self._timed(SAME["get, mean ms"], lambda: bare.get("theirs"))
        started = time.perf_counter()
        await self._timed("update, mean ms", self._update)
        replied = time.perf_counter()
        seen = await self._events.next()
        self._keep("notification, mean ms", seen - started)
        self._keep("notification after the reply, mean ms", seen - replied)
        await self._timed(SAME["update, mean ms"], self._their_update)
        await self._messages.next()
        await self._timed("create, mean ms", lambda: mad.create_session("ada"))
        await self._timed(SAME["create, mean ms"], lambda: bare.set("theirs", STATE))
        started = time.perf_counter()
        await bare.publish("theirs", STATE)
        seen = await self._messages.next()
        self._keep(SAME["notification, mean ms"], seen - started)

    async def _in_a_loop(self, count: int) -> None:
        """
        The same calls one right after another, as theirs were measured: nothing
        sleeps then.
        """
        mad, session = self._mad, self._session
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            PING: self._bare.ping,
            "get, mean ms": lambda: mad.get_session(session),
            "update, mean ms": self._update,
            "create, mean ms": lambda: mad.create_session("ada"),
        }
        for name, call in calls.items():
            for _ in range(count):
                await self._timed(LOOPED + name, call)

    async def _update(self) -> None:
        self._updates += 1
        await self._mad.update_session(self._session, another_of(PATCH))

    async def _their_update(self) -> None:
        """
        As `RedisStateManager.updateSession` does it: read, compare, write, tell.
        """
        found = json.loads(await self._bare.get("theirs") or STATE)
        await self._bare.set("theirs", json.dumps({**found, "version": 1}))
        await self._bare.publish("theirs", STATE)

    async def _mixed(self, count: int) -> None:
        """
        Gets and updates in turn, a hundred at once, each with its reply.
        """
        arms = Arms(self._station, {})
        try:
            await arms.open()

            async def caller(first: int) -> None:
                for i in range(first, 10 * count, MAX_CONCURRENT):
                    session = arms.ids[i % len(arms.ids)]
                    if i % 2:
                        await self._mad.get_session(session, timeout=60)
                    else:
                        patch = another_of(PATCH)
                        await self._mad.update_session(session, patch, timeout=60)

            started = time.perf_counter()
            await asyncio.gather(*(caller(first) for first in range(MAX_CONCURRENT)))
            self._note("operations/s", 10 * count / (time.perf_counter() - started))
            [replica] = self._station.replicas
            self._note("replica's memory, MB", rig.rss_mb(replica.pid))
        finally:
            await arms.close()

    async def _watch(self) -> None:
        async with aclosing(self._mad.watch(self._session)) as events:
            async for _ in events:
                self._events.note()

    async def _listen(self) -> None:
        async with self._bare.pubsub() as channel:
            await channel.subscribe("theirs")
            async for message in channel.listen():
                if message["type"] == "message":
                    self._messages.note()

    async def _until_heard(self) -> None:
        """
        Return when both are listened to: `watch` begins at its first step.
        """
        while not await self._bare.publish("theirs", STATE):
            await asyncio.sleep(0.01)
        await self._messages.next()
        while True:
            await self._update()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._events.next()
                    return

    async def _timed(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        started = time.perf_counter()
        await call()
        self._keep(name, time.perf_counter() - started)

    def _keep(self, name: str, seconds: float) -> None:
        self._took.setdefault(name, []).append(seconds)

    def _note(self, name: str, value: float) -> None:
        self._figures.setdefault(name, []).append(value)


async def measure(pairs: int, count: int) -> dict[str, list[float]]:
    """
    *pairs* passes, *count* calls of each kind in each.
    """
    figures: dict[str, list[float]] = {}
    async with rig.station() as station:
        ours = Predecessor(station, figures)
        try:
            await goals.passes(lambda: ours.measure(count), pairs)
        finally:
            await ours.close()
    return figures


def beside(figures: goals.Figures) -> str:
    """
    Their table, ours beside it, in milliseconds and in PINGs.
    """
    ratios = goals.ratios(figures, RATIOS)
    lines = [
        "| | theirs | ours here | ours here, in a loop | ours : PING here "
        "| ours : theirs by hand here | better than their figure | what it includes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in TABLE:
        got = rig.median(list(figures[row.figure]))
        looped = figures.get(LOOPED + row.figure, [])
        got = rig.median(list(looped)) if looped else got
        better = got > row.value if row.figure == "operations/s" else got < row.value
        cells = [
            row.figure,
            f"{row.value:,g}",
            _shown(figures[row.figure]),
            _shown(looped),
            _shown(ratios.get(f"{row.figure} : PING", [])),
            _shown(ratios.get(f"{row.figure} : the same by hand", [])),
            "yes" if better else "**no**",
            row.includes,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float]) -> str:
    return rig.spread(list(values), goals.digits_of(values)) if values else ""


def main() -> None:
    """
    Measure, and print the tables and one line of JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="passes")
    parser.add_argument("--short", action="store_true", help="a tenth of the calls")
    arguments = parser.parse_args()
    count = 200 if arguments.short else 2_000
    figures = uvloop.run(measure(arguments.pairs, count))
    print(beside(figures), goals.table(figures), sep="\n\n")
    print(goals.line(figures))


if __name__ == "__main__":
    main()
