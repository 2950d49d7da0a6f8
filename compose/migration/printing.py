"""
What `everbus migrate` prints: bounded, data to stdout and notices to stderr.
"""

import time
from pathlib import Path
from typing import Any

import msgspec
import typer

from everbus.compose.command_output import (
    notify,
    print_fields,
    print_json,
    print_table,
)
from everbus.compose.exit_codes import FINDING
from everbus.compose.migration.comparison import MEANINGS, ComparisonReport
from everbus.compose.migration.cutover import CutoverPlan, Leads
from everbus.compose.migration.position import Tally
from everbus.compose.migration.preview import Preview
from everbus.compose.replay_command import Output

MAX_SHOWN = 50


def print_preview(found: Preview, output: Output) -> None:
    """
    Print a dry run; exit with 1 if rows are refused.
    """
    if output is Output.json:
        print_json(found)
    else:
        for session in found.sessions:
            print_fields(session)
        _print_problems(found)
        typer.echo(
            f"{found.conversations:,} sessions, {found.entries:,} entries, "
            f"{found.refused:,} rows refused; nothing was written"
        )
    if found.refused:
        raise typer.Exit(FINDING)


def _print_problems(found: Preview) -> None:
    shown = found.problems[:MAX_SHOWN]
    if shown:
        rows = ((row.where, row.field, row.reason) for row in shown)
        print_table(("row", "field", "reason"), rows)
    if found.refused > len(shown):
        typer.echo(f"and {found.refused - len(shown):,} more")


def print_tally(tally: Tally, report: Path, output: Output) -> None:
    """
    Print what a backfill did; exit with 1 if rows were refused.
    """
    if output is Output.json:
        print_json(tally)
    else:
        print_fields(tally)
    if tally.refused:
        notify(f"{tally.refused:,} rows were refused; {report} says which and why")
        raise typer.Exit(FINDING)


def print_comparison(found: ComparisonReport) -> None:
    """
    Print the first differences, and all counts.
    """
    shown = found.differences[:MAX_SHOWN]
    for difference in shown:
        typer.echo(str(difference))
    more = sum(found.counts.values()) - len(shown)
    if more > 0:
        typer.echo(f"and {more:,} more")
    for kind, count in found.counts.items():
        typer.echo(f"{count:,} {MEANINGS[kind]}")
    typer.echo(
        f"{found.conversations:,} conversations, {found.entries:,} entries compared; "
        f"{found.refused:,} rows cannot be copied"
    )


def print_plan(plan: CutoverPlan, output: Output) -> None:
    """
    Print who leads, now and soon.
    """
    if output is Output.json:
        print_json(plan)
        return
    moment = time.time()
    _print_leads("now", plan.at(moment))
    if moment < plan.at_s:
        _print_leads(f"in {plan.at_s - moment:.0f} s", plan.next)


def _print_leads(when: str, leads: Leads) -> None:
    by_name = {name: msgspec.to_builtins(lead) for name, lead in leads.users.items()}
    shown: Any = dict(list(by_name.items())[:MAX_SHOWN])
    named = f"; by name ({len(by_name):,}): {msgspec.json.encode(shown).decode()}"
    typer.echo(
        f"{when}: everbus leads for {leads.percent:g} % of users"
        + (named if by_name else "")
    )
