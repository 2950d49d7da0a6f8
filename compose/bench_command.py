"""
`everbus bench`: load, figures, and the verdict whether a command was lost.

The report goes to stdout, notices and progress bars to stderr. `compose.bench` does
the work; this module has the options and prints the report.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from everbus.bus.messages import Durability
from everbus.compose.bench.plan import (
    MAX_BYTES,
    MAX_IN_FLIGHT,
    MAX_MADS,
    MAX_SESSIONS,
    MIXES,
    BenchPlan,
    Workload,
    check_own_stack,
    checked,
    mix_in,
)
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.replay_command import Output
from everbus.compose.settings import load_settings

if TYPE_CHECKING:
    from everbus.compose.bench.execution import BenchOutcome
    from everbus.compose.bench.report import BenchReport

_HEADS = ("until", "count", "/s", "p50 ms", "p90", "p99", "p99.9", "max")

_Work = Annotated[Workload, typer.Option(help="A named mix of calls.")]
_Mix = Annotated[
    str,
    typer.Option(help="A mix of your own: update=5,append=4,get=1."),
]
_Seconds = Annotated[float, typer.Option(help="Seconds of measurement.")]
_WarmUp = Annotated[
    float, typer.Option(min=0, help="Seconds of load before the measurement.")
]
_Rate = Annotated[
    float | None,
    typer.Option(
        help="Commands a second, sent when due (open loop); default: as fast as "
        "--in-flight allows."
    ),
]
_Mads = Annotated[int, typer.Option(min=1, max=MAX_MADS, help="Number of MADs.")]
_Sessions = Annotated[
    int,
    typer.Option(min=1, max=MAX_SESSIONS, help="Number of sessions that they share."),
]
_Bytes = Annotated[
    int,
    typer.Option(
        "--bytes", min=0, max=MAX_BYTES, help="Bytes of text in each update and append."
    ),
]
_InFlight = Annotated[
    int, typer.Option(min=1, max=MAX_IN_FLIGHT, help="Maximum of commands in flight.")
]
_Expect = Annotated[
    bool,
    typer.Option("--expect", help="Updates expect the last known version."),
]
_Durability = Annotated[
    Durability, typer.Option(help="Safety of a write before its reply.")
]
_Timeout = Annotated[float, typer.Option(help="Seconds to wait for a reply.")]
_Limit = Annotated[
    int,
    typer.Option(min=1, max=50_000_000, help="Stop after so many commands."),
]
_OwnStack = Annotated[
    bool,
    typer.Option(
        "--own-stack", help="Use a temporary Valkey with replicas of its own."
    ),
]
_Replicas = Annotated[
    int,
    typer.Option(
        "--replicas",
        "--managers",
        min=1,
        max=64,
        help="Number of replicas on this stack.",
    ),
]
_Aof = Annotated[bool, typer.Option("--aof/--no-aof", help="AOF of this Valkey.")]
_KillEvery = Annotated[
    float | None,
    typer.Option(help="Seconds between two kills of one of these replicas."),
]
_Output = Annotated[Output, typer.Option("--output", "-o", help="Output format.")]
_Json = Annotated[bool, typer.Option("--json", help="Same as -o json.")]
_Html = Annotated[
    Path | None, typer.Option(help="Write the report with charts to this file.")
]
_Keep = Annotated[
    bool,
    typer.Option("--keep", help="Keep the sessions and the folder of the stack."),
]
_Seed = Annotated[int, typer.Option(help="Seed of the choice of calls and sessions.")]


def bench(
    work: _Work = Workload.mix,
    mix: _Mix = "",
    seconds: _Seconds = 10.0,
    warm_up: _WarmUp = 1.0,
    rate: _Rate = None,
    mads: _Mads = 4,
    sessions: _Sessions = 100,
    size: _Bytes = 300,
    in_flight: _InFlight = 64,
    expect: _Expect = False,
    durability: _Durability = "hot",
    timeout: _Timeout = 10.0,
    limit: _Limit = 1_000_000,
    own_stack: _OwnStack = False,
    replicas: _Replicas = 2,
    aof: _Aof = True,
    kill_every: _KillEvery = None,
    output: _Output = Output.table,
    as_json: _Json = False,
    html: _Html = None,
    keep: _Keep = False,
    seed: _Seed = 0,
) -> None:
    """
    Put load on a bus, measure it, and check that nothing was lost by it.

    The SDK sends every command with a mark. Afterwards the bench reads all sessions
    back: each acknowledged command must be there, once and in order; else the exit
    code is 1. The bench takes about 1 byte of memory for an acknowledged update, none
    for other commands, and 60 bytes for a refused or unanswered command.

    Example: everbus bench --own-stack --replicas 2 --kill-every 3 --html bench.html

    On the bus of the environment (EVERBUS_REDIS_URL and EVERBUS_TOKEN, or
    EVERBUS_JWT_SECRET): everbus bench --work updates --rate 500 --seconds 30
    """
    plan = BenchPlan(
        mix=mix_in(mix) if mix else dict(MIXES[work]),
        seconds=seconds,
        warm_up_s=warm_up,
        rate=rate,
        mads=mads,
        sessions=sessions,
        bytes=size,
        in_flight=in_flight,
        expect=expect,
        durability=durability,
        timeout_s=timeout,
        limit=limit,
        seed=seed,
    )
    check_own_stack(checked(plan), own_stack, kill_every)
    _check_file(html)
    settings = load_settings(os.environ)
    # The report contains the outages; the SDK's warnings would repeat them.
    level = settings.log_level if os.environ.get("EVERBUS_LOG_LEVEL") else "error"
    configure_logs(settings.log_format, level)
    # Imported late: other commands do not need it.
    from everbus.compose.bench.execution import BenchRequest, carried_out

    count = replicas if own_stack else 0
    outcome = carried_out(BenchRequest(plan, settings, count, aof, kill_every, keep))
    _report(outcome, Output.json if as_json else output, html)
    if not outcome.report.clean:
        raise typer.Exit(FINDING)
    if outcome.signal:
        raise typer.Exit(128 + outcome.signal)


def _check_file(html: Path | None) -> None:
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise Failed(f"--html {html}: wanted a file in an existing folder", USAGE)


def _report(outcome: "BenchOutcome", output: Output, html: Path | None) -> None:
    from everbus.compose.bench.page import page_of
    from everbus.compose.bench.report import json_of

    report = outcome.report
    if output is Output.json:
        typer.echo(json_of(report))
    else:
        _print(report)
    if html is None:
        return
    try:
        html.write_text(page_of(report, outcome.figures))
    except OSError as error:
        raise Failed(f"--html {html}: {error.strerror}", USAGE) from error
    typer.echo(f"charts: {html}", err=True)


def _print(report: "BenchReport") -> None:
    from everbus.compose.bench.report import notes

    table = Table(pad_edge=False, collapse_padding=True)
    table.add_column("call", no_wrap=True)
    for head in _HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        times = (row.p50_ms, row.p90_ms, row.p99_ms, row.p999_ms, row.max_ms)
        table.add_row(
            row.call,
            "reply" if row.answered else "bus",
            f"{row.count:,}",
            f"{row.per_s:,.0f}",
            *map(_short, times),
        )
    Console(markup=False, highlight=False).print(table)
    for line in notes(report):
        typer.echo(line)
    for finding in report.first:
        typer.echo(str(finding))
    typer.echo(report.verdict)


def _short(ms: float) -> str:
    """
    A time with about three digits.
    """
    digits = 2 if ms < 10 else 1 if ms < 100 else 0

    return f"{ms:,.{digits}f}"
