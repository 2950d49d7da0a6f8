"""
`everbus doctor`: every health indicator, with a verdict and what to do about it.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from redis.exceptions import ResponseError
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from bus.errors import Forbidden
from bus.wire import Wire
from compose.answers import OutputOption, shown
from compose.exits import FINDING
from compose.lane_pings import slowest_reply_ms
from compose.logs import configure_logs
from compose.replay_command import Output
from compose.settings import Settings, load_settings
from compose.settings_checks import check_settings
from compose.starting import refuse_cluster
from gateway.health.indicators import INDICATORS
from gateway.health.readings import Readings, follower_priorities, read_bus
from gateway.health.verdicts import Finding, Verdict, examine

_STYLES: dict[Verdict, str] = {"pass": "", "warn": "yellow", "fail": "bold red"}
_Watch = Annotated[
    float | None,
    typer.Option(min=1, help="Look again every so many seconds, until Ctrl-C."),
]


class Diagnosis(msgspec.Struct, frozen=True):
    """
    What doctor has found.

    Attributes:
        at_ms: when, on the bus's clock.
        verdicts: how many passed, warned and failed.
    """

    at_ms: int
    verdicts: dict[Verdict, int]
    findings: list[Finding]


def doctor(output: OutputOption = Output.table, watch: _Watch = None) -> None:
    """
    Examine the bus, its lanes and tiers, and say what to do about each trouble.

    Needs the managers' own EVERBUS_REDIS_URL. Exits with 0 if all is well or only
    warned of, with 1 if something failed, with 3 if the bus cannot be reached.

    Example: everbus doctor -o json
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    refuse_cluster(settings, "doctor", "it examines one server")
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
    Every indicator's verdict, and that on what is set here.

    Raises:
        Unavailable: the bus cannot be reached, or nobody ever set it up.
        Forbidden, Unauthenticated: the bus does not let us in.
    """
    wire = Wire(settings.redis_url, name="everbus-doctor")
    try:
        readings = await read_bus(wire, outbox_limit=settings.outbox_max_records)
        readings = readings._replace(
            priorities=await follower_priorities(settings.redis_url, readings.server),
            ping_ms=await _ping_ms(wire, readings),
        )
    finally:
        await wire.close()
    findings = [*examine(readings, INDICATORS), *await check_settings(settings)]
    counted = Counter(finding.verdict for finding in findings)
    verdicts = {verdict: counted[verdict] for verdict in _STYLES}

    return Diagnosis(readings.now_ms, verdicts, findings)


async def _ping_ms(wire: Wire, readings: Readings) -> float | None:
    """
    How long the slowest of the served lanes takes to reply; None if there is none,
    or if we may not ask.
    """
    served = [
        int(one.name) for one in readings.lanes if one.owner and _counts(one.name)
    ]
    if not served:
        return None
    try:
        return await slowest_reply_ms(wire, served)
    except (Forbidden, ResponseError):
        return None


def _counts(lane: str) -> bool:
    return lane.isdecimal()


def _print(diagnosis: Diagnosis, output: Output) -> None:
    if output is Output.json:
        told = {
            "at_ms": diagnosis.at_ms,
            "verdicts": diagnosis.verdicts,
            "findings": [finding._asdict() for finding in diagnosis.findings],
        }
        typer.echo(msgspec.json.encode(told))
        return
    # Without markup: brackets in somebody's names are no colours.
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(_table(diagnosis.findings))
    for finding in diagnosis.findings:
        if finding.verdict != "pass":
            console.print(f"{finding.verdict}: {finding.name}: {finding.means}")
            console.print(Padding(f"→ {finding.remedy}", (0, 0, 0, 6)))
    console.print(_summary(diagnosis))


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("indicator", "verdict", "value", "threshold")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.overflow = "fold"
    for finding in findings:
        table.add_row(
            finding.name,
            finding.verdict,
            shown(finding.shown),
            finding.threshold or "-",
            style=_STYLES[finding.verdict],
        )
    return table


def _summary(diagnosis: Diagnosis) -> str:
    counted = ", ".join(f"{n} {verdict}" for verdict, n in diagnosis.verdicts.items())

    return f"{len(diagnosis.findings)} indicators: {counted}"
