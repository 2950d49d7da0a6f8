"""
`everbus bench`: load, figures, and the verdict whether anything was lost by it.

The report goes to stdout, talk and progress bars to stderr. What is done is in
`compose.bench`; here are the options, the stack of its own, and Ctrl-C.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from bus.messages import Durability
from compose.bench.plan import (
    MAX_BYTES,
    MAX_IN_FLIGHT,
    MAX_MADS,
    MAX_SESSIONS,
    MIXES,
    Plan,
    Work,
    check_own_stack,
    checked,
    mix_in,
)
from compose.exits import FINDING, USAGE, Failed
from compose.logs import configure_logs
from compose.replay_command import Output
from compose.settings import load_settings

if TYPE_CHECKING:
    from compose.bench.order import Outcome
    from compose.bench.report import Report

_HEADS = ("until", "count", "/s", "p50 ms", "p90", "p99", "p99.9", "max")

_Work = Annotated[Work, typer.Option(help="Which calls, as a mix that has a name.")]
_Mix = Annotated[
    str,
    typer.Option(help="Or a mix of your own: update=5,append=4,get=1."),
]
_Seconds = Annotated[float, typer.Option(help="How long to measure.")]
_WarmUp = Annotated[float, typer.Option(min=0, help="Seconds ahead of that.")]
_Rate = Annotated[
    float | None,
    typer.Option(
        help="Commands a second, sent when due (open loop); default: as fast as "
        "--in-flight lets them."
    ),
]
_Mads = Annotated[int, typer.Option(min=1, max=MAX_MADS, help="How many MADs.")]
_Sessions = Annotated[
    int, typer.Option(min=1, max=MAX_SESSIONS, help="How many sessions they share.")
]
_Bytes = Annotated[
    int,
    typer.Option(
        "--bytes", min=0, max=MAX_BYTES, help="Text in each update and append."
    ),
]
_InFlight = Annotated[
    int, typer.Option(min=1, max=MAX_IN_FLIGHT, help="Commands under way, at most.")
]
_Expect = Annotated[
    bool,
    typer.Option("--expect", help="Updates expect the version last heard of."),
]
_Durability = Annotated[
    Durability, typer.Option(help="How safe a write is before its reply.")
]
_Timeout = Annotated[float, typer.Option(help="Seconds to wait for a reply.")]
_Limit = Annotated[
    int,
    typer.Option(min=1, max=50_000_000, help="Commands, at most; then it stops."),
]
_OwnStack = Annotated[
    bool,
    typer.Option(
        "--own-stack", help="On a throw-away Valkey with replicas of its own."
    ),
]
_Replicas = Annotated[
    int,
    typer.Option(
        "--replicas", "--managers", min=1, max=64, help="How many it starts there."
    ),
]
_Aof = Annotated[
    bool, typer.Option("--aof/--no-aof", help="Whether that Valkey has an AOF.")
]
_KillEvery = Annotated[
    float | None,
    typer.Option(help="Kill one of these replicas every so many seconds."),
]
_Output = Annotated[
    Output, typer.Option("--output", "-o", help="How to print the report.")
]
_Json = Annotated[bool, typer.Option("--json", help="The same as -o json.")]
_Html = Annotated[
    Path | None, typer.Option(help="Write the report with its charts to this file.")
]
_Keep = Annotated[
    bool,
    typer.Option("--keep", help="Leave the sessions, and the stack's folder, behind."),
]
_Seed = Annotated[int, typer.Option(help="Decides which call goes to which session.")]


def bench(
    work: _Work = Work.mix,
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
    Put load on a bus, measure it, and judge that nothing was lost by it.

    Every command is made through the SDK and marked. Afterwards all sessions are read
    back: what was acknowledged has to be there, once and in order. Exits with 1 if it
    is not. It takes about 1 byte of memory for an acknowledged update, nothing for
    other commands, and 60 bytes for one that was refused or never answered.

    Example: everbus bench --own-stack --replicas 2 --kill-every 3 --html bench.html

    On the bus of the environment (EVERBUS_REDIS_URL and EVERBUS_TOKEN, or
    EVERBUS_JWT_SECRET): everbus bench --work updates --rate 500 --seconds 30
    """
    plan = Plan(
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
    # The SDK's warnings are what this is about; the report tells of them.
    level = settings.log_level if os.environ.get("EVERBUS_LOG_LEVEL") else "error"
    configure_logs(settings.log_format, level)
    # Late: other commands do without.
    from compose.bench.order import Order, carried_out

    count = replicas if own_stack else 0
    outcome = carried_out(Order(plan, settings, count, aof, kill_every, keep))
    _tell(outcome, Output.json if as_json else output, html)
    if not outcome.report.clean:
        raise typer.Exit(FINDING)
    if outcome.signal:
        raise typer.Exit(128 + outcome.signal)


def _check_file(html: Path | None) -> None:
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise Failed(f"--html {html}: wanted a file in a folder that exists", USAGE)


def _tell(outcome: "Outcome", output: Output, html: Path | None) -> None:
    from compose.bench.page import page_of
    from compose.bench.report import json_of

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


def _print(report: "Report") -> None:
    from compose.bench.report import notes

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
    Three digits are enough in a column.
    """
    digits = 2 if ms < 10 else 1 if ms < 100 else 0

    return f"{ms:,.{digits}f}"
