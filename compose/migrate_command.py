"""
`everbus migrate`: from a MAD-owned store into everbus, and the way back.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from everbus.compose.command_output import (
    OutputOption,
    notify,
    print_json,
    print_table,
)
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.migration.backfill import Backfill, BackfillFiles
from everbus.compose.migration.comparison import (
    MEANINGS,
    Comparison,
    ComparisonReport,
    DifferenceKind,
)
from everbus.compose.migration.cutover import CutoverFile, CutoverPlan, Lead
from everbus.compose.migration.mapping import MigrationMapping, load_mapping
from everbus.compose.migration.opening import open_store
from everbus.compose.migration.position import Tally
from everbus.compose.migration.preview import Preview, preview
from everbus.compose.migration.printing import (
    print_comparison,
    print_plan,
    print_preview,
    print_tally,
)
from everbus.compose.migration.source import OldStore
from everbus.compose.migration.tenant_mads import tenant_mads
from everbus.compose.progress import Advance, counting_bar
from everbus.compose.replay_command import Output

DEFAULT_MAD = "migrate"
AHEAD_S = 10.0
QUIET_DAYS = 7.0
# What would go with the old store; everbus may have more, once it leads.
LOST: tuple[DifferenceKind, ...] = ("no_session", "missing", "unequal")

_Mapping = Annotated[Path, typer.Argument(help="The mapping file.", metavar="MAPPING")]
_Mad = Annotated[str, typer.Option("--mad", help="The MAD that writes the sessions.")]
_Cutover = Annotated[
    Path | None, typer.Option("--cutover", help="The file of `migrate cutover`.")
]

migrate_app = typer.Typer(
    help="Move conversations out of a store of your own. "
    "Example: everbus migrate backfill migrate.toml --dry-run",
    no_args_is_help=True,
)


@migrate_app.command()
def backfill(
    mapping: _Mapping,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what becomes what; write nothing.")
    ] = False,
    first: Annotated[
        int, typer.Option(min=0, max=1000, help="So many sessions in a dry run.")
    ] = 3,
    rate: Annotated[
        float | None, typer.Option(help="Entries per second; default: all it takes.")
    ] = None,
    position: Annotated[
        Path | None, typer.Option(help="Where to go on; default: beside MAPPING.")
    ] = None,
    refused: Annotated[
        Path | None, typer.Option(help="Report of rows that cannot be copied.")
    ] = None,
    cutover: _Cutover = None,
    mad: _Mad = DEFAULT_MAD,
    output: OutputOption = Output.table,
) -> None:
    """
    Copy all conversations of the old store; a second run changes nothing.

    After a kill or Ctrl-C the same command goes on. Exits with 1 if rows were refused;
    they are in MAPPING.refused.jsonl, and the rest is copied.

    Example: everbus migrate backfill migrate.toml --rate 500
    """
    if rate is not None and not 0 < rate < 1e9:
        raise Failed(f"--rate {rate:g}: wanted entries per second, above 0", USAGE)
    rules = load_mapping(mapping)
    if dry_run:
        print_preview(_previewed(rules, first), output)
        return
    files = BackfillFiles(
        position or mapping.with_name(f"{mapping.name}.position.json"),
        refused or mapping.with_name(f"{mapping.name}.refused.jsonl"),
    )
    plan = CutoverFile(cutover).load() if cutover else CutoverPlan()
    try:
        tally = asyncio.run(_filled(rules, mad, files, rate, plan))
    except KeyboardInterrupt:
        notify(f"stopped; {files.position} has the place. Go on with the same command")
        raise
    print_tally(tally, files.report, output)


@migrate_app.command()
def compare(
    mapping: _Mapping,
    user: Annotated[str, typer.Option(help="Only this owner's conversations.")] = "",
    mad: _Mad = DEFAULT_MAD,
    output: OutputOption = Output.table,
) -> None:
    """
    Compare the old store with everbus, entry by entry; both may be in use.

    Exits with 1 on differences: the first are printed, all are counted.

    Example: everbus migrate compare migrate.toml -o json
    """
    found = asyncio.run(_compared(load_mapping(mapping), mad, user))
    if output is Output.json:
        print_json(found)
    else:
        print_comparison(found)
    if not found.clean:
        raise typer.Exit(FINDING)


@migrate_app.command()
def cutover(
    file: Annotated[
        Path, typer.Argument(help="The file that MADs read.", metavar="FILE")
    ],
    to: Annotated[
        str, typer.Option(help="`everbus`, or `old`: the way back.")
    ] = "everbus",
    user: Annotated[
        list[str] | None, typer.Option(help="This user; may be repeated.")
    ] = None,
    percent: Annotated[
        float | None, typer.Option(help="So many percent of users go to everbus.")
    ] = None,
    ahead: Annotated[
        float, typer.Option(help="Seconds until it holds; MADs must see it before.")
    ] = AHEAD_S,
    output: OutputOption = Output.table,
) -> None:
    """
    Set which store leads for which users; without --user and --percent show it.

    Users by name win over the percentage. The way back is the same command.

    Example: everbus migrate cutover cutover.json --percent 10
    """
    leads = CutoverFile(file)
    plan = leads.load()
    if user or percent is not None:
        if to not in ("old", "everbus"):
            raise Failed(f"--to {to!a}: wanted old or everbus", USAGE)
        lead: Lead = "old" if to == "old" else "everbus"
        plan = plan.changed(
            users=dict.fromkeys(user or [], lead),
            percent=percent,
            moment_s=time.time(),
            ahead_s=ahead,
        )
        leads.save(plan)
    print_plan(plan, output)


@migrate_app.command()
def report(
    mapping: _Mapping,
    cutover: _Cutover = None,
    quiet_days: Annotated[
        float, typer.Option(min=0, help="The old store must be unchanged so long.")
    ] = QUIET_DAYS,
    mad: _Mad = DEFAULT_MAD,
    output: OutputOption = Output.table,
) -> None:
    """
    Tell whether the old store can be switched off: all there, none different, at rest.

    Exits with 1 if it cannot, and says why.

    Example: everbus migrate report migrate.toml --cutover cutover.json
    """
    plan = CutoverFile(cutover).load() if cutover else CutoverPlan()
    found = asyncio.run(_compared(load_mapping(mapping), mad, ""))
    reasons = list(_reasons(found, plan, quiet_days))
    verdict = {
        "ready": not reasons,
        "reasons": reasons,
        "conversations": found.conversations,
        "entries": found.entries,
        "last_old_write": found.last_old_write,
    }
    if output is Output.json:
        print_json(verdict)
    else:
        print_table(("field", "value"), verdict.items())
    if reasons:
        raise typer.Exit(FINDING)


def _reasons(
    found: ComparisonReport, plan: CutoverPlan, quiet_days: float
) -> Iterator[str]:
    for kind in LOST:
        if count := found.counts[kind]:
            yield f"{count:,} {MEANINGS[kind]}"
    if found.refused:
        yield f"{found.refused:,} rows of the old store cannot be copied"
    leads = plan.at(time.time())
    if leads.percent < 100 or "old" in leads.users.values():
        yield "the old store still leads for some users"
    if not found.last_old_write:
        yield "no entry has an `at`: the last write of the old store is unknown"
    elif found.last_old_write > _days_ago(quiet_days):
        yield f"the old store was written to within {quiet_days:g} days"


def _days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


@contextmanager
def _opened(mapping: MigrationMapping) -> Iterator[OldStore]:
    store = open_store(mapping)
    try:
        yield store
    finally:
        store.close()


def _previewed(mapping: MigrationMapping, first: int) -> Preview:
    with _opened(mapping) as store, _bar(store) as advance:
        return asyncio.run(preview(store, mapping, first, advance))


async def _filled(
    mapping: MigrationMapping,
    mad: str,
    files: BackfillFiles,
    rate: float | None,
    plan: CutoverPlan,
) -> Tally:
    with _opened(mapping) as store, _bar(store) as advance:
        async with tenant_mads(mapping, mad) as mads:
            run = Backfill(store, mapping, mads.of, files, rate=rate, cutover=plan)
            advance(run.position.tally.conversations)
            return (await run.run(advance)).tally


async def _compared(mapping: MigrationMapping, mad: str, user: str) -> ComparisonReport:
    with _opened(mapping) as store, _bar(store) as advance:
        async with tenant_mads(mapping, mad) as mads:
            return await Comparison(store, mapping, mads.of, user).run(advance)


@contextmanager
def _bar(store: OldStore) -> Iterator[Advance]:
    # Counting may mean to read all of it.
    total = store.count() if sys.stderr.isatty() else 0
    with counting_bar("conversations", total) as advance:
        yield advance
