"""
`everbus doctor`: every health indicator, with a verdict and a remedy.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from everbus.bus.cluster_wire import wire_to
from everbus.compose.command_output import OutputOption, cell_text
from everbus.compose.exit_codes import FINDING
from everbus.compose.lane_pings import served_reply_ms
from everbus.compose.logs import configure_logs
from everbus.compose.replay_command import Output
from everbus.compose.settings import Settings, load_settings
from everbus.compose.settings_checks import check_settings
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.readings import read_bus, read_servers
from everbus.gateway.health.verdicts import IndicatorResult, Verdict, examine

_STYLES: dict[Verdict, str] = {"pass": "", "warn": "yellow", "fail": "bold red"}
_Watch = Annotated[
    float | None,
    typer.Option(min=1, help="Repeat after so many seconds, until Ctrl-C."),
]


class Diagnosis(msgspec.Struct, frozen=True):
    """
    The result of one examination.

    Attributes:
        at_ms: the time on the bus's clock.
        verdicts: number of indicators by verdict.
    """

    at_ms: int
    verdicts: dict[Verdict, int]
    findings: list[IndicatorResult]


def doctor(output: OutputOption = Output.table, watch: _Watch = None) -> None:
    """
    Examine the bus, its lanes and tiers, and name a remedy for each problem.

    Every server is judged, also each node of a Cluster and each replica; the worst one
    of an indicator is named.

    Needs the EVERBUS_REDIS_URL of the managers. The exit code is 0 without a failure
    (warnings count as success), 1 with one, and 3 if the bus is unreachable.

    Example: everbus doctor -o json
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    diagnosis = asyncio.run(diagnose(settings))
    _print(diagnosis, output)
    while watch is not None:
        time.sleep(watch)
        diagnosis = asyncio.run(diagnose(settings))
        _print(diagnosis, output)
    if diagnosis.verdicts["fail"]:
        raise typer.Exit(FINDING)


async def diagnose(settings: Settings) -> Diagnosis:
    """
    The verdict of every indicator, and of the settings here.

    Raises:
        Unavailable: the bus is unreachable, or no manager ever started on it.
        Forbidden, Unauthenticated: the bus refuses the user in its URL.
    """
    wire = wire_to(settings.redis_url, name="everbus-doctor")
    try:
        readings = await read_bus(wire, outbox_limit=settings.outbox_max_records)
        readings = readings._replace(
            servers=await read_servers(settings.redis_url),
            ping_ms=await served_reply_ms(wire, readings.lanes),
        )
    finally:
        await wire.close()
    findings = [*examine(readings, INDICATORS), *await check_settings(settings)]
    counted = Counter(finding.verdict for finding in findings)
    verdicts = {verdict: counted[verdict] for verdict in _STYLES}

    return Diagnosis(readings.now_ms, verdicts, findings)


def _print(diagnosis: Diagnosis, output: Output) -> None:
    if output is Output.json:
        document = {
            "at_ms": diagnosis.at_ms,
            "verdicts": diagnosis.verdicts,
            "findings": [finding._asdict() for finding in diagnosis.findings],
        }
        typer.echo(msgspec.json.encode(document))
        return
    # Without markup: brackets in names are not colours.
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(_table(diagnosis.findings))
    for finding in diagnosis.findings:
        if finding.verdict != "pass":
            console.print(f"{finding.verdict}: {finding.name}: {finding.means}")
            console.print(Padding(f"→ {finding.remedy}", (0, 0, 0, 6)))
    console.print(_summary(diagnosis))


def _table(findings: Sequence[IndicatorResult]) -> Table:
    table = Table("indicator", "verdict", "value", "threshold")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.overflow = "fold"
    for finding in findings:
        table.add_row(
            finding.name,
            finding.verdict,
            cell_text(finding.shown),
            finding.threshold or "-",
            style=_STYLES[finding.verdict],
        )
    return table


def _summary(diagnosis: Diagnosis) -> str:
    counted = ", ".join(f"{n} {verdict}" for verdict, n in diagnosis.verdicts.items())

    return f"{len(diagnosis.findings)} indicators: {counted}"
