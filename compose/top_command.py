"""
`everbus top`: what the bus does now, redrawn on a terminal.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from everbus.bus.errors import EverbusError
from everbus.compose.bus_access import BusAccess, bus_access
from everbus.compose.bus_snapshot import BusSnapshot, Rates, read_snapshot
from everbus.compose.command_output import (
    OutputOption,
    cell_text,
    made_table,
    print_json,
)
from everbus.compose.lanes_command import COLUMNS, lane_row
from everbus.compose.replay_command import Output
from everbus.gateway.health.readings import LaneReading

# Lines of the screen that no row of a table takes: titles, borders, figures.
OTHER_LINES = 15
FEWEST_ROWS = 3

_Once = Annotated[
    bool, typer.Option("--once", help="Print one snapshot; so does a pipe.")
]
_Interval = Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")]
_Json = Annotated[bool, typer.Option("--json", help="One snapshot, as -o json.")]


def top(
    once: _Once = False,
    interval: _Interval = 2.0,
    output: OutputOption = Output.table,
    as_json: _Json = False,
) -> None:
    """
    Show rates, latencies, what waits, lanes with their owners, and MADs; live.

    Managers report their counts every 5 seconds, so rates follow them. Ctrl-C ends it.
    Needs the EVERBUS_REDIS_URL of the managers.

    Example: everbus top --once
    """
    if as_json or output is Output.json:
        found = asyncio.run(_look())
        lanes = [lane._asdict() for lane in found.lanes]
        print_json({**msgspec.structs.asdict(found), "lanes": lanes})
    elif once or not sys.stdout.isatty():
        _console().print(_drawn(asyncio.run(_look()), rows=None))
    else:
        asyncio.run(_redraw(interval))


async def _look() -> BusSnapshot:
    async with bus_access("top") as access:
        return await read_snapshot(access, Rates())


async def _redraw(interval_s: float) -> None:
    """
    Draw a snapshot at each interval; an outage is shown, and does not end it.
    """
    console = _console()
    async with bus_access("top") as access:
        rates = Rates()
        found = await read_snapshot(access, rates)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            trouble = ""
            while True:
                rows = max(FEWEST_ROWS, (console.height - OTHER_LINES) // 2)
                live.update(_drawn(found, rows=rows, trouble=trouble), refresh=True)
                await asyncio.sleep(interval_s)
                found, trouble = await _look_again(access, rates, found)


async def _look_again(
    access: BusAccess, rates: Rates, before: BusSnapshot
) -> tuple[BusSnapshot, str]:
    try:
        return await read_snapshot(access, rates), ""
    except EverbusError as error:
        return before, f"{time.strftime('%H:%M:%S')} {error.message}"


def _console() -> Console:
    # Without markup: brackets in names are not colours.
    return Console(markup=False, highlight=False, emoji=False)


def _drawn(
    found: BusSnapshot, *, rows: int | None, trouble: str = ""
) -> RenderableType:
    """
    The snapshot for people, with at most *rows* rows a table.
    """
    lanes = found.lanes if rows is None else sorted(found.lanes, key=_calmness)
    mads = [
        (one.mad, f"{one.alive:,}", f"{one.lost:,}", _age(one.heard_s))
        for one in found.mads
    ]
    parts: list[RenderableType] = [
        Text(f"everbus top  {cell_text(found.at)}"),
        Text(trouble, style="bold red") if trouble else _processes(found),
        _figures(found),
        *_cut(COLUMNS, [lane_row(lane) for lane in lanes], rows, "lanes"),
        *_cut(("MAD", "alive", "lost", "last heartbeat"), mads, rows, "MADs"),
    ]

    return Group(*parts)


def _calmness(lane: LaneReading) -> tuple[bool, float, str]:
    """
    Order of lanes: without an owner, then the longest waits, first.
    """
    return (bool(lane.owner), -max(lane.pending_s, lane.unread_s), lane.name)


def _processes(found: BusSnapshot) -> Text:
    archiver = found.archiver or "nobody"

    return Text(f"managers: {len(found.managers)}; archiver: {archiver}")


def _figures(found: BusSnapshot) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    reply, commit = _ms(found.reply_ms), _ms(found.commit_p99_ms)
    per_s = {name: f"{rate:,.1f}/s" for name, rate in found.rates.items()}
    for row in (
        ("commands", per_s["commands"], "reply", reply, "oldest pending"),
        ("drained", per_s["drained"], "commit p99", commit, "oldest unread"),
        (
            "heartbeats",
            per_s["heartbeats"],
            "dead letters",
            f"{found.dead:,}",
            "outbox",
        ),
    ):
        waits = {
            "oldest pending": f"{found.pending_s:.1f} s",
            "oldest unread": f"{found.unread_s:.1f} s",
            "outbox": f"{found.backlog:,}",
        }
        table.add_row(*row, waits[row[-1]])

    return table


def _cut(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    most: int | None,
    name: str,
) -> list[RenderableType]:
    shown = rows if most is None else rows[:most]
    left = len(rows) - len(shown)
    more = [Text(f"and {left:,} more {name}: everbus top --once")] if left else []

    return [made_table(columns, shown), *more]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _age(heard_s: float | None) -> str:
    return "-" if heard_s is None else f"{heard_s:.1f} s ago"
