"""
`everbus dead`: list, show, redrive and drop commands that could not be applied.
"""

import asyncio
from typing import Annotated, Any

import typer

from everbus.compose.bus_access import bus_access, bus_time
from everbus.compose.command_output import OutputOption, notify, print_json, print_table
from everbus.compose.dead_letter_view import letter_fields
from everbus.compose.dead_letters import (
    CAP,
    Filters,
    Group,
    add_to_group,
    matching_letters,
    partitions_near_cap,
    warn_near_cap,
)
from everbus.compose.progress import counting_bar
from everbus.compose.redrive_command import (
    Cause,
    Kind,
    OfMad,
    Partition,
    Session,
    drop_,
    lanes_of,
    redrive_,
)
from everbus.compose.replay_command import Output
from everbus.gateway.lane.redrive import NotRedrivable, redriven
from everbus.gateway.store.dead_letters import (
    Buried,
    lengths_of,
    newest,
    one,
    parse_letter_id,
)

# A table names at most so many MADs and kinds of a group.
MOST_NAMED = 3

_LetterId = Annotated[str, typer.Argument(help="The dead letter's id.", metavar="ID")]
_Each = Annotated[
    bool, typer.Option("--each", help="One row per letter, oldest first.")
]
_Cursor = Annotated[
    str, typer.Option(help="With --each: the end of the previous page.")
]
_Limit = Annotated[
    int, typer.Option(min=1, max=1000, help="With --each: letters per page.")
]


def list_(
    cause: Cause = None,
    mad: OfMad = None,
    kind: Kind = None,
    session: Session = None,
    partition: Partition = None,
    each: _Each = False,
    cursor: _Cursor = "",
    limit: _Limit = 50,
    output: OutputOption = Output.table,
) -> None:
    """
    List the dead letters that match all filters, grouped by cause.

    The exit code is 0 with letters and without; `everbus doctor` has the verdict.

    Example: everbus dead list --mad fiedler --each -o json
    """
    filters = Filters(cause, mad, kind, session, partition)
    if each:
        asyncio.run(_list_each(filters, cursor, limit, output))
    else:
        asyncio.run(_list_groups(filters, output))


def show(letter_id: _LetterId, output: OutputOption = Output.table) -> None:
    """
    Show one dead letter: the command, its sender, and the cause.

    Example: everbus dead show 3-1700000000000-0
    """
    asyncio.run(_show(letter_id, output))


async def _list_groups(filters: Filters, output: Output) -> None:
    groups: dict[str, Group] = {}
    async with bus_access("dead") as bus:
        lanes = lanes_of(bus, filters)
        lengths = await lengths_of(bus.wire, bus.partitions)
        ends = await newest(bus.wire, bus.partitions)
        with counting_bar("reading", sum(lengths.values())) as advance:
            async for buried in matching_letters(
                bus.wire, lanes, filters, ends, advance=advance
            ):
                add_to_group(groups, buried)
    in_order = sorted(groups.values(), key=lambda one: (-one.count, one.cause))
    if output is Output.json:
        print_json(
            {
                "groups": in_order,
                "lengths": lengths,
                "cap": CAP,
                "full": partitions_near_cap(lengths),
            }
        )
    else:
        columns = ("cause", "count", "oldest", "newest", "MADs", "kinds")
        print_table(columns, (_group_row(one) for one in in_order))
    warn_near_cap(lengths)


async def _list_each(filters: Filters, cursor: str, limit: int, output: Output) -> None:
    page: list[Buried] = []
    async with bus_access("dead") as bus:
        after = parse_letter_id(cursor, bus.partitions) if cursor else None
        lengths = await lengths_of(bus.wire, bus.partitions)
        ends = await newest(bus.wire, bus.partitions)
        async for buried in matching_letters(
            bus.wire, lanes_of(bus, filters), filters, ends, after=after
        ):
            if len(page) == limit:
                following = str(page[-1].id)
                break
            page.append(buried)
        else:
            following = ""
    if output is Output.json:
        shown = [letter_fields(buried) for buried in page]
        print_json({"letters": shown, "next": following or None})
    else:
        columns = ("id", "at", "cause", "MAD", "kind", "session", "message")
        print_table(columns, (_letter_row(buried) for buried in page))
    if following:
        notify(f"more: --cursor {following}")
    warn_near_cap(lengths)


async def _show(letter_id: str, output: Output) -> None:
    async with bus_access("dead") as bus:
        buried = await one(bus.wire, parse_letter_id(letter_id, bus.partitions))
        lengths = await lengths_of(bus.wire, bus.partitions)
    fields = letter_fields(buried)
    try:
        redriven(buried, bus.partitions)
        fields |= {"redrivable": True, "hindrance": ""}
    except NotRedrivable as error:
        fields |= {"redrivable": False, "hindrance": error.message}
    if output is Output.json:
        print_json(fields)
    else:
        named = ((name.replace("_", " "), value) for name, value in fields.items())
        print_table(("field", "value"), named)
    warn_near_cap({buried.id.partition: lengths[buried.id.partition]})


def _group_row(one: Group) -> tuple[Any, ...]:  # as print_table takes them
    names = []
    for counted in (one.mads, one.kinds):
        most = [f"{name or '-'} ({n:,})" for name, n in counted.most_common(MOST_NAMED)]
        more = len(counted) - len(most)
        names.append(", ".join(most) + (f", {more:,} more" if more else ""))

    return one.cause, f"{one.count:,}", one.oldest, one.newest, *names


def _letter_row(buried: Buried) -> tuple[Any, ...]:  # as print_table takes them
    letter, envelope = buried.letter, buried.letter.envelope

    return (
        *(str(buried.id), bus_time(letter.at_ms), letter.cause, letter.mad),
        *(envelope.kind if envelope else "", envelope.session if envelope else ""),
        letter.message,
    )


dead_app = typer.Typer(
    help="Commands that could not be applied. Example: everbus dead list",
    no_args_is_help=True,
)
dead_app.command("list")(list_)
dead_app.command()(show)
dead_app.command("redrive")(redrive_)
dead_app.command("drop")(drop_)
