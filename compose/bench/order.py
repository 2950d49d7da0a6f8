"""
A bench carried out: on whose bus, as whom, until when, and what is left behind.
"""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer
import uvloop

from compose.bench.figures import Figures
from compose.bench.plan import Plan
from compose.bench.report import Report, report_of
from compose.bench.run import Bench, Identity, opened
from compose.bench.witnesses import Seen
from compose.dev import passed_on
from compose.exits import UNREACHABLE, Failed
from compose.progress import Advance, counting_bar
from compose.replay import bus_url, tokens_for
from compose.settings import Settings, load_settings, shown_url

if TYPE_CHECKING:
    from compose.bench.own_stack import OwnStack

# Names of the MADs, where tokens for them can be made.
NAME = "bench"
TICK_S = 0.25
_NOT_INSTALLED = "{} is not installed. Remedy: pip install 'everbus[embedded]'"


class Order(NamedTuple):
    """
    What to run, and on what; without *replicas* on the bus of the settings.
    """

    plan: Plan
    settings: Settings
    replicas: int = 0
    aof: bool = True
    kill_every_s: float | None = None
    keep: bool = False


class Outcome(NamedTuple):
    """
    What came of it; *signal* is the number of the one that ended it early, or 0.
    """

    report: Report
    figures: Figures
    signal: int


class _Place(NamedTuple):
    """
    Where it runs.
    """

    settings: Settings
    told: str
    stack: "OwnStack | None" = None


def carried_out(order: Order) -> Outcome:
    """
    Run the bench, as a command does.

    Raises:
        Exit: it was interrupted before there was anything to judge.
        Failed: what it needs is not installed, or there is no token.
    """
    return uvloop.run(_Run(order).until_signal())


class _Run:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._bench: Bench | None = None
        self._asked: list[int] = []

    async def until_signal(self) -> Outcome:
        """
        Run; the first Ctrl-C ends the load, and what was sent is judged; the second
        ends it all.
        """
        running = asyncio.ensure_future(self._run())

        def end(number: int) -> None:
            self._asked.append(number)
            if self._bench is not None and len(self._asked) == 1:
                _say("interrupted; what was sent is judged (again: stop at once)")
                self._bench.end("interrupted")
            elif len(self._asked) <= 2:  # a third must not leave parts behind
                running.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        with suppress(asyncio.CancelledError):
            return await running

        raise typer.Exit(128 + self._asked[0])

    async def _run(self) -> Outcome:
        order = self._order
        async with _place(order) as place:
            identities = _identities(place.settings, order.plan.mads)
            url = bus_url(place.settings)
            async with opened(order.plan, url, identities) as bench:
                self._bench = bench
                seen = await self._phases(bench, place)
                report = report_of(bench, seen, place.told)
                if place.stack is None:
                    await _tidy(bench, keep=order.keep or not report.clean)
        number = self._asked[0] if self._asked else 0

        return Outcome(report, bench.figures, number)

    async def _phases(self, bench: Bench, place: _Place) -> Seen:
        plan = bench.plan
        with counting_bar("sessions", plan.sessions) as advance:
            await bench.create(advance)
        seconds = plan.warm_up_s + plan.seconds
        with counting_bar("load, s", round(seconds)) as advance:
            ticking = asyncio.create_task(_tick(advance), name="progress")
            try:
                await bench.run_load(place.stack, self._order.kill_every_s)
            finally:
                ticking.cancel()
        await bench.settle()
        outboxes = place.settings.redis_url if place.stack else ""
        with counting_bar("judged", plan.sessions) as advance:
            return await bench.judge(advance, outboxes)


@asynccontextmanager
async def _place(order: Order) -> AsyncIterator[_Place]:
    if not order.replicas:
        settings = order.settings
        yield _Place(settings, f"the bus at {shown_url(bus_url(settings))}")
        return
    try:
        from compose.bench.own_stack import OwnStack
    except ModuleNotFoundError as error:
        raise Failed(_NOT_INSTALLED.format(error.name), UNREACHABLE) from error
    folder = Path(tempfile.mkdtemp(prefix="everbus-bench-"))
    stack = OwnStack(
        folder, order.replicas, aof=order.aof, extra=passed_on(environ), say=_say
    )
    try:
        async with stack:
            settings = load_settings(stack.environment())
            aof = "with AOF (everysec)" if order.aof else "without AOF"
            told = f"a Valkey of its own {aof}, {order.replicas} replicas, no archiver"
            yield _Place(settings, told, stack)
    finally:
        if order.keep:
            _say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _identities(settings: Settings, count: int) -> Sequence[Identity]:
    """
    A MAD of its own each, if tokens can be made; else instances of one.
    """
    if settings.jwt_secret.get_secret_value():
        tokens = tokens_for(settings, [f"{NAME}-{n}" for n in range(1, count + 1)])
        return [Identity(name, token) for name, token in tokens.items()]
    tokens = tokens_for(settings, [settings.mad])

    return [Identity(settings.mad, tokens[settings.mad])] * count


async def _tick(advance: Advance) -> None:
    loop = asyncio.get_running_loop()
    began, told = loop.time(), 0
    while True:
        await asyncio.sleep(TICK_S)
        more = int(loop.time() - began) - told
        advance(more)
        told += more


async def _tidy(bench: Bench, *, keep: bool) -> None:
    """
    Leave no sessions behind, unless they are wanted.
    """
    left = len(bench.books) if keep else await bench.delete()
    if left:
        _say(f"{left} sessions are left behind; the first: {bench.books[0].id}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
