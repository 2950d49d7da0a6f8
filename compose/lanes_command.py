"""
`everbus lanes`: which manager serves which partition, and what waits there.
"""

import asyncio

from everbus.compose.bus_access import bus_access
from everbus.compose.command_output import OutputOption, print_json, print_table
from everbus.compose.replay_command import Output
from everbus.gateway.health.readings import LaneReading, read_bus
from everbus.gateway.store.key_names import holder_of

COLUMNS = ("lane", "owner", "pending", "unread", "outbox", "dead")


def lanes(output: OutputOption = Output.table) -> None:
    """
    List the lanes: the owner of each, and how long its oldest command waits.

    Needs the EVERBUS_REDIS_URL of the managers.

    Example: everbus lanes -o json
    """
    found = asyncio.run(_read())
    if output is Output.json:
        print_json([lane._asdict() for lane in found])
        return
    print_table(COLUMNS, map(lane_row, found))


async def _read() -> tuple[LaneReading, ...]:
    async with bus_access("lanes") as access:
        return tuple((await read_bus(access.wire)).lanes)


def lane_row(lane: LaneReading) -> tuple[object, ...]:
    """
    A lane as a row below COLUMNS.
    """
    name, _ = holder_of(lane.owner)

    return (
        lane.name,
        name or "nobody",
        f"{lane.pending_s:.1f} s",
        f"{lane.unread_s:.1f} s",
        f"{lane.backlog:,}",
        f"{lane.dead:,}",
    )
