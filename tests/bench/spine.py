"""
How fast the spine is: `python -m tests.bench.spine [--pairs N] [--short]`.

Arms are interleaved in one run, since this kind of machine has fast and slow
phases: judge the ratios. Beside them run the yardsticks, never at the same time:
redis-benchmark with the same commit script, the pieces of a command as plain commands,
the customer's WATCH loop, a bare PING. A pass takes about 40 s, a short one 10 s, on a
machine with other load three times as long; starting takes 12 s.
"""

import argparse
from collections.abc import Sequence
from contextlib import AsyncExitStack

import uvloop

from tests.bench import floor, goals, rig
from tests.bench.arms import COMMANDS_A_COMMIT, SESSIONS, Arms
from tests.bench.floor import AS_OURS, EACH_ALONE, WITH_REPLY_AS_OURS
from tests.bench.goals import Goal, Ratio
from tests.bench.yardstick import PROGRAM, Yardstick, a_reply, commit_call, largest
from tests.servers import RealServer

WATCH = "WATCH per command, 1 a read, /s"
WATCH_100 = "WATCH per command, 100 a read, /s"
ALONE, BATCHED = "redis-benchmark, 1 a call", "redis-benchmark, a batch a call"
NO_REPLY, WITH_REPLY = "no reply, commands/s", "with reply, requests/s"
BACKLOG = "backlog, commands/s"
PAIR, AOF = "2 replicas, ", "AOF, "
SERVER, WORKER = "server CPU us a command", "worker CPU us a command"
RATIOS = {
    "no reply : WATCH": Ratio(NO_REPLY, WATCH),
    "no reply : WATCH, 100 a read": Ratio(NO_REPLY, WATCH_100),
    "with reply : WATCH": Ratio(WITH_REPLY, WATCH),
    "no reply : redis-benchmark, 1 a call": Ratio(NO_REPLY, f"{ALONE}, commands/s"),
    "no reply : redis-benchmark, a batch a call": Ratio(
        NO_REPLY, f"{BATCHED}, commands/s"
    ),
    "worker : server CPU": Ratio(WORKER, SERVER, higher=False),
    "worker : server CPU, with reply": Ratio(
        f"with reply, {WORKER}", f"with reply, {SERVER}", higher=False
    ),
    "server CPU : floor as ours": Ratio(SERVER, AS_OURS, higher=False),
    "server CPU : floor each alone": Ratio(SERVER, EACH_ALONE, higher=False),
    "server CPU : floor as ours, with reply": Ratio(
        f"with reply, {SERVER}", WITH_REPLY_AS_OURS, higher=False
    ),
    "2 replicas : 1, publisher beside": Ratio(PAIR + NO_REPLY, NO_REPLY),
    "2 replicas : 1, backlog": Ratio(PAIR + BACKLOG, BACKLOG),
    "AOF : none": Ratio(AOF + NO_REPLY, NO_REPLY),
    "AOF : none, with reply": Ratio(AOF + WITH_REPLY, WITH_REPLY),
    "appends : WATCH": Ratio("appends published/s", WATCH),
    "50 writers : WATCH": Ratio("50 writers on one session, /s", WATCH),
}
GOALS = (
    Goal(NO_REPLY, 25_000),
    Goal(WITH_REPLY, 15_000),
    Goal("no reply : redis-benchmark, 1 a call", 0.5),
    Goal("no reply : redis-benchmark, a batch a call", 0.5),
    Goal("worker : server CPU", 1.0, at_least=False),
    Goal("worker : server CPU, with reply", 1.0, at_least=False),
    Goal("server CPU : floor as ours", 1.5, at_least=False),
    Goal("server CPU : floor each alone", 1.5, at_least=False),
    Goal("server CPU : floor as ours, with reply", 1.5, at_least=False),
    Goal("no reply : WATCH", 15),
    Goal("no reply : WATCH, 100 a read", 15),
    Goal("2 replicas : 1, backlog", 1.3),
    Goal("2 replicas : 1, publisher beside", 1.3),
    Goal("AOF : none", 0.8),
    Goal("AOF : none, with reply", 0.8),
    Goal("appends published/s", 40_000),
    Goal("50 writers on one session, /s", 5_000),
    Goal("request p50 : PING p50", 3, at_least=False),
    Goal("half load p99 ms", 5, at_least=False),
)
WARM_UP = 2_000
# What may be left out, for a look at one thing.
PARTS = ("replies", "watch", "yardsticks", "replicas", "aof", "latency")


class Spine:
    """
    The stations of one run, and one pass over them.
    """

    def __init__(self, parts: Sequence[str], scale: float) -> None:
        self.figures: dict[str, list[float]] = {}
        self._parts = frozenset(parts)
        self._scale = scale
        self._arms: dict[str, Arms] = {}
        self._server: RealServer | None = None

    async def open(self, stack: AsyncExitStack) -> None:
        """
        Start the stations; *stack* ends them.
        """
        shapes: list[tuple[str, bool, int]] = [("", False, 1)]
        if "replicas" in self._parts:
            shapes.append((PAIR, False, 2))
        if "aof" in self._parts:
            shapes.append((AOF, True, 1))
        for prefix, aof, replicas in shapes:
            made = rig.station(aof=aof, replicas=replicas)
            station = await stack.enter_async_context(made)
            arms = self._arms[prefix] = Arms(station, self.figures, prefix)
            stack.push_async_callback(arms.close)
            await arms.open()
            # The first commands find grants, caches and connections missing.
            await arms.no_reply(WARM_UP)
            self._server = self._server or station.server
        self.figures.clear()

    async def a_pass(self) -> None:
        """
        Every arm once; what is compared comes close together.
        """
        plain = self._arms[""]
        for arms in self._arms.values():
            await arms.no_reply(self._count(80_000))
        if "yardsticks" in self._parts:
            await self._yardsticks(plain)
        if "watch" in self._parts:
            await plain.watch(self._count(5_000), 1)
            await plain.watch(self._count(5_000), 100)
        await self._backlogs()
        if "replies" in self._parts:
            await self._replies(plain)
        if "latency" in self._parts:
            await plain.latency(self._count(2_000))
        for arms in self._arms.values():
            await arms.check()
        await plain.appends(self._count(100_000))

    async def _backlogs(self) -> None:
        for prefix in ("", PAIR):
            if prefix in self._arms:
                await self._arms[prefix].backlog(max(10_000, self._count(40_000)))

    async def _replies(self, plain: Arms) -> None:
        rate = await plain.with_reply(self._count(40_000))
        if AOF in self._arms:
            await self._arms[AOF].with_reply(self._count(40_000))
        await plain.half_load(rate, max(1.0, 5.0 * self._scale))
        await plain.one_session(50, self._count(200))

    async def _yardsticks(self, plain: Arms) -> None:
        if self._server is None:
            raise AssertionError("open() comes first")
        size = round(rig.median(self.figures[COMMANDS_A_COMMIT]))
        alone = commit_call(1, plain.body)
        batch = largest(size, plain.body, SESSIONS // rig.PARTITIONS)
        if PROGRAM:
            yardstick = Yardstick(self._server)
            for name, call, least in ((ALONE, alone, 10_000), (BATCHED, batch, 40_000)):
                found = await yardstick.measure(
                    call, max(least, self._count(5 * least))
                )
                plain.note(f"{name}, commands/s", found[0])
                plain.note(f"{name}, server CPU us a command", found[1])
            await yardstick.close()
        pieces = floor.Floor(
            *(self._server, alone, batch, plain.command(), a_reply(plain.body))
        )
        for name, us in (await pieces.measure(self._count(20_000))).items():
            plain.note(name, us)
        await pieces.close()

    def _count(self, whole: int) -> int:
        return int(whole * self._scale)


async def measure(
    pairs: int, scale: float, parts: Sequence[str], *, until: float = float("inf")
) -> Spine:
    """
    All arms, *pairs* times, interleaved; no pass but the first begins after *until*,
    of time.monotonic().
    """
    spine = Spine(parts, scale)
    async with AsyncExitStack() as stack:
        await spine.open(stack)
        await goals.passes(spine.a_pass, pairs, until)
    return spine


def report(figures: goals.Figures) -> str:
    """
    The three tables: what was measured, the ratios, and what was wanted.
    """
    found = goals.ratios(figures, RATIOS)
    missing = (
        "" if PROGRAM else "\nredis-benchmark is not on the PATH: no figures of it.\n"
    )
    tables = (
        goals.table(figures),
        goals.table(found),
        goals.verdicts({**figures, **found}, GOALS),
    )
    return "\n\n".join(tables) + missing


def main() -> None:
    """
    Measure, and print the tables and one line of JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="passes of all arms")
    parser.add_argument("--short", action="store_true", help="a tenth of the work")
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="these parts beside the plain throughput; may be repeated",
    )
    arguments = parser.parse_args()
    scale = 0.1 if arguments.short else 1.0
    spine = uvloop.run(measure(arguments.pairs, scale, arguments.only or PARTS))
    print(report(spine.figures))
    print(goals.line(spine.figures))


if __name__ == "__main__":
    main()
