"""
`everbus doctor`: every health indicator, with a verdict and a remedy.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from everbus.bus.cluster_wire import wire_to
from everbus.compose.command_output import OutputOption, print_json
from everbus.compose.diagnosis import Diagnosis
from everbus.compose.doctor_junit import write_junit
from everbus.compose.doctor_report import print_report
from everbus.compose.exit_codes import FINDING
from everbus.compose.lane_pings import served_reply_ms
from everbus.compose.logs import configure_logs
from everbus.compose.replay_command import Output
from everbus.compose.settings import Settings, load_settings
from everbus.compose.settings_checks import check_settings
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.readings import read_bus, read_servers
from everbus.gateway.health.verdicts import examine

_Watch = Annotated[
    float | None,
    typer.Option(min=1, help="Repeat after so many seconds, until Ctrl-C."),
]
_Junit = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also write a JUnit report for CI: a suite for each part, a case for each "
        "indicator.",
    ),
]


def doctor(
    output: OutputOption = Output.table, watch: _Watch = None, junit: _Junit = None
) -> None:
    """
    Examine the bus, its lanes and tiers, and name a remedy for each problem.

    The findings are grouped by part, troubles first. Every server is judged, also each
    node of a Cluster and each replica; the worst one of an indicator is named.

    Needs the EVERBUS_REDIS_URL of the managers. The exit code is 0 without a failure
    (warnings count as success), 1 with one, and 3 if the bus is unreachable.

    Example: everbus doctor --junit doctor.xml
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    diagnosis = _examined(settings, output, junit)
    while watch is not None:
        time.sleep(watch)
        diagnosis = _examined(settings, output, junit)
    if diagnosis.verdicts["fail"]:
        raise typer.Exit(FINDING)


def _examined(settings: Settings, output: Output, junit: Path | None) -> Diagnosis:
    """
    One examination, written to *junit* and printed.
    """
    diagnosis = asyncio.run(diagnose(settings))
    if junit is not None:
        write_junit(junit, diagnosis)
    if output is Output.json:
        print_json(diagnosis.document())
    else:
        print_report(diagnosis)

    return diagnosis


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

    return Diagnosis(readings.now_ms, findings)
