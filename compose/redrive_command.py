"""
`everbus dead redrive` and `drop`: dead letters taken away, one by one.
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

from bus.codec import pack_envelope
from compose.answers import OutputOption, print_json, print_table, tell
from compose.bus_access import BusAccess, bus_access
from compose.dead_letters import Errand, Filters, letters
from compose.exits import FINDING, USAGE, Failed
from compose.progress import Advance, Pace, counting_bar
from compose.replay_command import Output
from gateway.redriving import UNCHANGED, Edit, NotRedrivable, redriven
from gateway.store.letters import (
    Buried,
    drop,
    lengths_of,
    newest,
    one,
    parse_letter_id,
    redrive,
)
from gateway.store.scripts import load_scripts

Cause = Annotated[str | None, typer.Option(help="Those that died of this.")]
OfMad = Annotated[str | None, typer.Option("--mad", help="Those that this MAD sent.")]
Kind = Annotated[str | None, typer.Option(help="Commands of this kind.")]
Session = Annotated[str | None, typer.Option(help="Those for this session.")]
Partition = Annotated[int | None, typer.Option(min=0, help="Those of this partition.")]
_LetterId = Annotated[
    str | None, typer.Argument(help="Only this letter.", metavar="ID")
]
_All = Annotated[bool, typer.Option("--all", help="All of them.")]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Only tell what there is to do.")]
_Rate = Annotated[
    float, typer.Option(min=0.01, max=1e6, help="How many a second, at most.")
]
_Edit = Annotated[
    str,
    typer.Option(metavar="FILE", help="JSON for the one letter's payload; -: stdin."),
]
_AsKind = Annotated[str, typer.Option(help="Another kind for the one letter.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


class _Chosen(NamedTuple):
    """
    Which letters: the one with that id, or those that fit the filters.
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

    Each at most once, whoever else redrives and whatever crashes meanwhile; one that
    dies again is a new letter. Exits with 1 if some could not be redriven.

    Example: everbus dead redrive --cause poison --rate 20 --dry-run
    """
    chosen = _chosen(letter_id, Filters(cause, mad, kind, session, partition), every)
    change = Edit(body=_body_in(edit), kind=as_kind)
    if not chosen.letter_id and change != UNCHANGED:
        raise Failed("--edit and --as-kind are for one letter; name its ID", USAGE)
    errand = Errand()
    with _told_if_interrupted(errand, "redriven"):
        asyncio.run(_redrive(chosen, change, errand, rate, dry_run=dry_run))
    _finish(errand, "would be redriven" if dry_run else "redriven", output)


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
    chosen = _chosen(letter_id, Filters(cause, mad, kind, session, partition), every)
    errand = Errand()
    with _told_if_interrupted(errand, "dropped"):
        asyncio.run(_drop(chosen, errand, dry_run=dry_run, yes=yes))
    _finish(errand, "would be dropped" if dry_run else "dropped", output)


async def _redrive(
    chosen: _Chosen, change: Edit, errand: Errand, rate: float, *, dry_run: bool
) -> None:
    async with bus_access("dead") as bus:
        await load_scripts(bus.wire)
        pace = Pace(rate, time.monotonic)
        with counting_bar("redriving", await _most(bus)) as advance:
            ends = await newest(bus.wire, bus.partitions)
            async for buried in _found(bus, chosen, ends, advance):
                try:
                    envelope = redriven(buried, bus.partitions, change)
                except NotRedrivable as error:
                    errand.leave(buried.id, error.message)
                    continue
                if dry_run:
                    errand.note(1)
                    continue
                await pace.turn()
                packed = pack_envelope(envelope)
                errand.note(await bus.wire.call(*redrive(buried.id, packed)))


async def _drop(chosen: _Chosen, errand: Errand, *, dry_run: bool, yes: bool) -> None:
    async with bus_access("dead") as bus:
        ends = await newest(bus.wire, bus.partitions)
        with counting_bar("reading", await _most(bus)) as advance:
            count = len([1 async for _ in _found(bus, chosen, ends, advance)])
        if dry_run:
            errand.done = count
            return
        if count and not yes:
            _ask_whether(f"drop {count:,} for good?")
        with counting_bar("dropping", await _most(bus)) as advance:
            async for buried in _found(bus, chosen, ends, advance):
                errand.note(await bus.wire.call(*drop(buried.id)))


def _ask_whether(what: str) -> None:
    """
    Go on if somebody says yes; not click's prompt, which writes to stdout.
    """
    typer.echo(f"{what} [y/N] ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        tell("nothing was done")
        raise typer.Exit(FINDING)


async def _found(
    bus: BusAccess, chosen: _Chosen, ends: dict[int, str], advance: Advance
) -> AsyncIterator[Buried]:
    if chosen.letter_id:
        yield await one(bus.wire, parse_letter_id(chosen.letter_id, bus.partitions))
        return
    lanes = lanes_of(bus, chosen.filters)
    async for buried in letters(bus.wire, lanes, chosen.filters, ends, advance=advance):
        yield buried


async def _most(bus: BusAccess) -> int:
    lengths = await lengths_of(bus.wire, bus.partitions)

    return sum(lengths.values())


def lanes_of(bus: BusAccess, filters: Filters) -> range:
    """
    The partitions that have to be looked through.

    Raises:
        Failed: there is no such partition.
    """
    wanted = filters.partition
    if wanted is None:
        return range(bus.partitions)
    if wanted >= bus.partitions:
        raise Failed(
            f"--partition {wanted}: this bus has {bus.partitions}, from 0 on", USAGE
        )
    return range(wanted, wanted + 1)


def _chosen(letter_id: str | None, filters: Filters, every: bool) -> _Chosen:
    if sum((letter_id is not None, filters != Filters(), every)) != 1:
        raise Failed(
            "say which letters: an ID, filters such as --cause, or --all; one of "
            "these. `everbus dead list` shows what there is",
            USAGE,
        )
    return _Chosen(letter_id or "", filters)


def _body_in(edit: str) -> dict[str, Any] | None:  # JSON values
    """
    The JSON object in the file *edit*; None without one.
    """
    if not edit:
        return None
    try:
        text = sys.stdin.read() if edit == "-" else Path(edit).read_text()
        body = msgspec.json.decode(text)
    except (OSError, ValueError, RecursionError) as error:
        raise Failed(f"--edit {edit}: {error}; wanted a JSON object", USAGE) from error
    if not isinstance(body, dict):
        raise Failed(f"--edit {edit}: wanted a JSON object, the whole payload", USAGE)
    return body


@contextmanager
def _told_if_interrupted(errand: Errand, done: str) -> Iterator[None]:
    """
    Say how far it came if it does not come to its end.
    """
    try:
        yield
    except BaseException:
        if errand.done or errand.gone:
            tell(
                f"interrupted: {errand.done:,} {done}, perhaps one more; the others "
                "lie where they lay, and no harm is done by asking again"
            )
        raise


def _finish(errand: Errand, done: str, output: Output) -> None:
    """
    Print what became of it, and end with 1 if that is not what was asked for.
    """
    counted = {done: errand.done, "gone": errand.gone, "left": errand.left}
    if output is Output.json:
        named = {"left_letters": dict(errand.named)}
        print_json({name.replace(" ", "_"): n for name, n in counted.items()} | named)
    else:
        print_table(("letters", "count"), ((k, f"{n:,}") for k, n in counted.items()))
    for identifier, why in errand.named:
        tell(f"left {identifier}: {why}")
    if errand.left > len(errand.named):
        tell(f"and {errand.left - len(errand.named):,} more")
    if errand.gone or errand.left:
        raise typer.Exit(FINDING)
