"""
`everbus replay`: a file of recorded conversations, played and checked.

Results go to stdout, the progress bar and log records to stderr.
"""

import asyncio
import math
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from everbus.bus.principal_names import check_short_name
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.recordings import Recording, read_recordings, roles_of
from everbus.compose.replay import (
    REPORTED,
    Progress,
    ReplayReport,
    bus_url,
    replay,
    tokens_for,
)
from everbus.compose.settings import load_settings

MAX_SHOWN = 50


class Output(StrEnum):
    """
    How results are printed.
    """

    table = "table"
    json = "json"


_File = Annotated[
    Path, typer.Argument(help="One conversation a line, as JSON.", metavar="FILE")
]
_Rate = Annotated[
    float | None, typer.Option(help="Messages per second; default: all it takes.")
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Play only the first so many.")]
_Output = Annotated[
    Output, typer.Option("--output", "-o", help="How to print the result.")
]
_Suffix = Annotated[
    str, typer.Option(help="End of the sessions' ids; default: a new one a run.")
]


def replay_file(
    file: _File,
    rate: _Rate = None,
    limit: _Limit = None,
    output: _Output = Output.table,
    sessions_suffix: _Suffix = "",
) -> None:
    """
    Play recorded conversations, read them back, and compare.

    One MAD per role; a line is {"conversation_id", "user_id", "messages":
    [{"role", ...}, ...]}. Exits with 1 if anything is not as recorded.

    Example: everbus replay conversations.jsonl --rate 500 -o json
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    _check_rate(rate)
    suffix = check_short_name(
        sessions_suffix or secrets.token_hex(4), "--sessions-suffix"
    )
    recordings = read_recordings(file, suffix, limit)
    tokens = tokens_for(settings, roles_of(recordings))
    with _bars(recordings) as progress:
        played = replay(recordings, bus_url(settings), tokens, rate, progress)
        report = asyncio.run(played)
    _print(report, output)
    if not report.clean:
        raise typer.Exit(FINDING)


@contextmanager
def _bars(recordings: Sequence[Recording]) -> Iterator[Progress]:
    """
    Progress bars on stderr, if that is a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    # Late: only a terminal needs it.
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    total = sum(len(recording.messages) for recording in recordings)
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        phases = {
            phase: bars.add_task(phase, total=total) for phase in ("played", "checked")
        }
        yield lambda phase, more: bars.advance(phases[phase], more)


def _print(report: ReplayReport, output: Output) -> None:
    if output is Output.json:
        found = {"violations": report.violations}
        typer.echo(msgspec.json.encode(report.summary() | found))
        return
    table = Table("", "replay", show_header=False)
    for name, value in report.summary().items():
        table.add_row(name.replace("_per_", "/").replace("_", " "), f"{value:,}")
    Console().print(table)
    for violation in report.violations[:MAX_SHOWN]:
        typer.echo(violation)
    more = sum(report.counts.values()) - MAX_SHOWN
    if more > 0:
        typer.echo(f"and {more} more; -o json has up to {REPORTED} of each kind")


def _check_rate(rate: float | None) -> None:
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise Failed(f"--rate {rate:g}: wanted messages per second, above 0", USAGE)
