"""
The execution of a bench: its bus, its identities, its end, and its clean-up.
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

from everbus.compose.bench.checking import CheckMethod
from everbus.compose.bench.figures import Figures
from everbus.compose.bench.plan import BenchPlan
from everbus.compose.bench.report import BenchReport, report_of
from everbus.compose.bench.run import Bench, BenchIdentity, opened
from everbus.compose.dev_command import passed_on
from everbus.compose.exit_codes import UNREACHABLE, Failed
from everbus.compose.progress import Advance, counting_bar
from everbus.compose.replay import bus_url, tokens_for
from everbus.compose.settings import Settings, load_settings, masked_url

if TYPE_CHECKING:
    from everbus.compose.bench.own_stack import OwnStack

# Names of the MADs, where tokens for them can be made.
NAME = "bench"
TICK_S = 0.25
_NOT_INSTALLED = "{} is not installed. Remedy: pip install 'everbus[embedded]'"


class BenchRequest(NamedTuple):
    """
    A plan and its bus: without *replicas* the bus of the settings.
    """

    plan: BenchPlan
    settings: Settings
    replicas: int = 0
    aof: bool = True
    kill_every_s: float | None = None
    keep: bool = False


class BenchOutcome(NamedTuple):
    """
    The report; *signal* is the number of the signal that ended the load early, or 0.
    """

    report: BenchReport
    figures: Figures
    signal: int


class _BenchStack(NamedTuple):
    """
    The bus, and the stack if the bench started one.
    """

    settings: Settings
    description: str
    stack: "OwnStack | None" = None


def carried_out(order: BenchRequest) -> BenchOutcome:
    """
    Run the bench, as a command does.

    Raises:
        Exit: it was interrupted before there was anything to check.
        Failed: a package is not installed, or there is no token.
    """
    return uvloop.run(_Run(order).until_signal())


class _Run:
    def __init__(self, order: BenchRequest) -> None:
        self._order = order
        self._bench: Bench | None = None
        self._asked: list[int] = []

    async def until_signal(self) -> BenchOutcome:
        """
        Run; the first Ctrl-C ends the load and the check follows; the second ends
        the bench.
        """
        running = asyncio.ensure_future(self._run())

        def end(number: int) -> None:
            self._asked.append(number)
            if self._bench is not None and len(self._asked) == 1:
                _say("interrupted; what was sent is checked (again: stop at once)")
                self._bench.end("interrupted")
            elif len(self._asked) <= 2:  # a third must not leave parts behind
                running.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        with suppress(asyncio.CancelledError):
            return await running

        raise typer.Exit(128 + self._asked[0])

    async def _run(self) -> BenchOutcome:
        order = self._order
        async with _place(order) as place:
            identities = _identities(place.settings, order.plan.mads)
            url = bus_url(place.settings)
            async with opened(order.plan, url, identities) as bench:
                self._bench = bench
                method = await self._phases(bench, place)
                report = report_of(bench, method, place.description)
                if place.stack is None:
                    await _tidy(bench, keep=order.keep or not report.clean)
        number = self._asked[0] if self._asked else 0

        return BenchOutcome(report, bench.figures, number)

    async def _phases(self, bench: Bench, place: _BenchStack) -> CheckMethod:
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
        with counting_bar("checked", plan.sessions) as advance:
            return await bench.check(advance, outboxes)


@asynccontextmanager
async def _place(order: BenchRequest) -> AsyncIterator[_BenchStack]:
    if not order.replicas:
        settings = order.settings
        yield _BenchStack(settings, f"the bus at {masked_url(bus_url(settings))}")
        return
    try:
        from everbus.compose.bench.own_stack import OwnStack
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
            description = (
                f"a Valkey of its own {aof}, {order.replicas} replicas, no archiver"
            )
            yield _BenchStack(settings, description, stack)
    finally:
        if order.keep:
            _say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _identities(settings: Settings, count: int) -> Sequence[BenchIdentity]:
    """
    A MAD of its own each, if tokens can be made; else instances of one.
    """
    if settings.jwt_secret.get_secret_value():
        tokens = tokens_for(settings, [f"{NAME}-{n}" for n in range(1, count + 1)])
        return [BenchIdentity(name, token) for name, token in tokens.items()]
    tokens = tokens_for(settings, [settings.mad])

    return [BenchIdentity(settings.mad, tokens[settings.mad])] * count


async def _tick(advance: Advance) -> None:
    loop = asyncio.get_running_loop()
    began, shown = loop.time(), 0
    while True:
        await asyncio.sleep(TICK_S)
        more = int(loop.time() - began) - shown
        advance(more)
        shown += more


async def _tidy(bench: Bench, *, keep: bool) -> None:
    """
    Delete the sessions, unless the user keeps them.
    """
    left = len(bench.expectations) if keep else await bench.delete()
    if left:
        _say(f"{left} sessions are left behind; the first: {bench.expectations[0].id}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
