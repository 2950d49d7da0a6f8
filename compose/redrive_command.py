"""
`everbus dead redrive` and `everbus dead drop`: take dead letters away, one by one.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from everbus.bus.messages import pack_envelope
from everbus.compose.bus_access import BusAccess, bus_access
from everbus.compose.command_output import OutputOption, notify, print_json, print_table
from everbus.compose.dead_letters import Filters, LetterCounts, matching_letters
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.progress import Advance, Pace, counting_bar
from everbus.compose.replay_command import Output
from everbus.gateway.lane.redrive import UNCHANGED, Edit, NotRedrivable, redriven
from everbus.gateway.store.dead_letters import (
    Buried,
    drop,
    lengths_of,
    newest,
    one,
    parse_letter_id,
    redrive,
)
from everbus.gateway.store.scripts import load_scripts

Cause = Annotated[str | None, typer.Option(help="Letters with this cause.")]
OfMad = Annotated[str | None, typer.Option("--mad", help="Letters of this MAD.")]
Kind = Annotated[str | None, typer.Option(help="Commands of this kind.")]
Session = Annotated[str | None, typer.Option(help="Commands for this session.")]
Partition = Annotated[
    int | None, typer.Option(min=0, help="Letters of this partition.")
]
_LetterId = Annotated[
    str | None, typer.Argument(help="Only this letter.", metavar="ID")
]
_All = Annotated[bool, typer.Option("--all", help="All letters.")]
_Dry = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; report what a run would do.")
]
_Rate = Annotated[
    float, typer.Option(min=0.01, max=1e6, help="Maximum of commands per second.")
]
_Edit = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="JSON as the new payload of the one letter; -: stdin."
    ),
]
_AsKind = Annotated[str, typer.Option(help="A new kind for the one letter.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


class _Selection(NamedTuple):
    """
    The selected letters: one by its id, or all that match the filters.
    """

    letter_id: str
    filters: Filters


def redrive_(
    letter_id: _LetterId = None,
    every: _All = False,
    cause: Cause = None,
    mad: OfMad = None,
    kind: Kind = None,
    session: Session = None,
    partition: Partition = None,
    dry_run: _Dry = False,
    rate: _Rate = 100,
    edit: _Edit = "",
    as_kind: _AsKind = "",
    output: OutputOption = Output.table,
) -> None:
    """
    Send the commands of dead letters once more, on behalf of their senders.

    Each command is sent at most once, even with other runs and crashes at the same
    time. A command that dies again is a new letter. The exit code is 1 if a letter
    could not be redriven.

    Example: everbus dead redrive --cause poison --rate 20 --dry-run
    """
    selection = _selection(
        letter_id, Filters(cause, mad, kind, session, partition), every
    )
    change = Edit(body=_body_in(edit), kind=as_kind)
    if not selection.letter_id and change != UNCHANGED:
        raise Failed("--edit and --as-kind are for one letter; name its ID", USAGE)
    counts = LetterCounts()
    with _report_if_interrupted(counts, "redriven"):
        asyncio.run(_redrive(selection, change, counts, rate, dry_run=dry_run))
    _report(counts, "would be redriven" if dry_run else "redriven", output)


def drop_(
    letter_id: _LetterId = None,
    every: _All = False,
    cause: Cause = None,
    mad: OfMad = None,
    kind: Kind = None,
    session: Session = None,
    partition: Partition = None,
    dry_run: _Dry = False,
    yes: _Yes = False,
    output: OutputOption = Output.table,
) -> None:
    """
    Remove dead letters for good.

    Example: everbus dead drop --cause unknown_kind --mad fiedler --yes
    """
    selection = _selection(
        letter_id, Filters(cause, mad, kind, session, partition), every
    )
    counts = LetterCounts()
    with _report_if_interrupted(counts, "dropped"):
        asyncio.run(_drop(selection, counts, dry_run=dry_run, yes=yes))
    _report(counts, "would be dropped" if dry_run else "dropped", output)


async def _redrive(
    selection: _Selection,
    change: Edit,
    counts: LetterCounts,
    rate: float,
    *,
    dry_run: bool,
) -> None:
    async with bus_access("dead") as bus:
        await load_scripts(bus.wire)
        pace = Pace(rate, time.monotonic)
        with counting_bar("redriving", await _letter_count(bus)) as advance:
            ends = await newest(bus.wire, bus.partitions)
            async for buried in _chosen_letters(bus, selection, ends, advance):
                try:
                    envelope = redriven(buried, bus.partitions, change)
                except NotRedrivable as error:
                    counts.leave(buried.id, error.message)
                    continue
                if dry_run:
                    counts.note(1)
                    continue
                await pace.turn()
                packed = pack_envelope(envelope)
                counts.note(await bus.wire.call(*redrive(buried.id, packed)))


async def _drop(
    selection: _Selection, counts: LetterCounts, *, dry_run: bool, yes: bool
) -> None:
    async with bus_access("dead") as bus:
        ends = await newest(bus.wire, bus.partitions)
        with counting_bar("reading", await _letter_count(bus)) as advance:
            count = len(
                [1 async for _ in _chosen_letters(bus, selection, ends, advance)]
            )
        if dry_run:
            counts.done = count
            return
        if count and not yes:
            _confirm(f"drop {count:,} for good?")
        await load_scripts(bus.wire, "drop_letter")
        with counting_bar("dropping", await _letter_count(bus)) as advance:
            async for buried in _chosen_letters(bus, selection, ends, advance):
                counts.note(await bus.wire.call(*drop(buried.id)))


def _confirm(what: str) -> None:
    """
    Ask for a confirmation; the prompt of click would write to stdout.
    """
    typer.echo(f"{what} [y/N] ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        notify("nothing was done")
        raise typer.Exit(FINDING)


async def _chosen_letters(
    bus: BusAccess, selection: _Selection, ends: dict[int, str], advance: Advance
) -> AsyncIterator[Buried]:
    if selection.letter_id:
        yield await one(bus.wire, parse_letter_id(selection.letter_id, bus.partitions))
        return
    lanes = lanes_of(bus, selection.filters)
    async for buried in matching_letters(
        bus.wire, lanes, selection.filters, ends, advance=advance
    ):
        yield buried


async def _letter_count(bus: BusAccess) -> int:
    lengths = await lengths_of(bus.wire, bus.partitions)

    return sum(lengths.values())


def lanes_of(bus: BusAccess, filters: Filters) -> range:
    """
    The partitions that the filters select.

    Raises:
        Failed: the bus has no such partition.
    """
    wanted = filters.partition
    if wanted is None:
        return range(bus.partitions)
    if wanted >= bus.partitions:
        raise Failed(
            f"--partition {wanted}: this bus has the partitions 0 to "
            f"{bus.partitions - 1}",
            USAGE,
        )
    return range(wanted, wanted + 1)


def _selection(letter_id: str | None, filters: Filters, every: bool) -> _Selection:
    if sum((letter_id is not None, filters != Filters(), every)) != 1:
        raise Failed(
            "name the letters by one of these: an ID, filters such as --cause, or "
            "--all. `everbus dead list` shows the letters",
            USAGE,
        )
    return _Selection(letter_id or "", filters)


def _body_in(edit: str) -> dict[str, Any] | None:  # JSON values
    """
    The JSON object in the file *edit*; None without one.
    """
    if not edit:
        return None
    try:
        # Bytes: JSON is UTF-8, whatever the terminal's encoding is.
        named = sys.stdin.buffer.read() if edit == "-" else Path(edit).read_bytes()
        body = msgspec.json.decode(named)
    except (OSError, ValueError, RecursionError) as error:
        raise Failed(f"--edit {edit}: {error}; wanted a JSON object", USAGE) from error
    if not isinstance(body, dict):
        raise Failed(f"--edit {edit}: wanted a JSON object, the whole payload", USAGE)
    return body


@contextmanager
def _report_if_interrupted(counts: LetterCounts, done: str) -> Iterator[None]:
    """
    Report the counts if the block does not finish.
    """
    try:
        yield
    except BaseException:
        if counts.done or counts.gone:
            notify(
                f"interrupted: {counts.done:,} {done}, perhaps one more; the others "
                "are unchanged, and the same command may run again"
            )
        raise


def _report(counts: LetterCounts, done: str, output: Output) -> None:
    """
    Print the counts; exit with 1 if a letter is gone or left.
    """
    counted = {done: counts.done, "gone": counts.gone, "left": counts.left}
    if output is Output.json:
        named = {"left_letters": dict(counts.named)}
        print_json({name.replace(" ", "_"): n for name, n in counted.items()} | named)
    else:
        print_table(("letters", "count"), ((k, f"{n:,}") for k, n in counted.items()))
    for identifier, why in counts.named:
        notify(f"left {identifier}: {why}")
    if counts.left > len(counts.named):
        notify(f"and {counts.left - len(counts.named):,} more")
    if counts.gone or counts.left:
        raise typer.Exit(FINDING)
