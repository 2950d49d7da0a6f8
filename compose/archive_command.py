"""
`everbus archive`: one pass over the idle sessions, now, with somebody watching.

Results go to stdout, the progress bar and log records to stderr.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from archiver.archiving import Archiving, Progress, Report
from archiver.commands import gateway_commands
from bus.cluster import wire_to
from compose.bus_access import partitions_of
from compose.exits import FINDING, UNREACHABLE, USAGE, Failed
from compose.logs import configure_logs
from compose.replay_command import Output
from compose.settings import Settings, load_settings
from compose.tiers import cold_tier, warm_tier
from gateway.failpoints import FailPoint, armed, disarmed
from gateway.store.cold.vault import Vault
from gateway.store.hot import RedisHot
from gateway.store.tiers import ColdTier, Held, WarmTier

_Days = Annotated[
    float | None,
    typer.Option(
        min=0, help="Idle at least so long; default: EVERBUS_ARCHIVE_AFTER_DAYS."
    ),
]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Only tell what there is to do.")]
_Limit = Annotated[
    int | None, typer.Option(min=1, help="Take up so many sessions at most.")
]
_Output = Annotated[
    Output, typer.Option("--output", "-o", help="How to print the result.")
]


def archive(
    idle_days: _Days = None,
    dry_run: _Dry = False,
    limit: _Limit = None,
    output: _Output = Output.table,
) -> None:
    """
    Move sessions that were idle for long from MongoDB to S3.

    The archiver does so by itself; this is for now and for once. Managers and an
    archiver have to run: the sessions' lanes are asked to let go of them. Exits with
    1 if a session could not be archived, with 3 if a part is away.

    Example: everbus archive --idle-days 90 --dry-run
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    days = settings.archive_after_days if idle_days is None else idle_days
    wanted = _Wanted(datetime.now(UTC) - timedelta(days=days), dry_run, limit)
    tiers = _tiers(settings)
    with _bar() as progress:
        report = asyncio.run(_archive(settings, tiers, wanted, progress))
    _print(report, output, dry_run=dry_run)
    if report.ended:
        raise Failed(f"the pass ended early: {report.ended}", UNREACHABLE)
    if report.failed:
        raise typer.Exit(FINDING)


async def archive_once(settings: Settings, idle_days: float) -> Report:
    """
    One pass, without a word.

    Raises:
        Failed: a tier is not configured.
        Unavailable: the bus or a tier is away.
    """
    idle_before = datetime.now(UTC) - timedelta(days=idle_days)
    wanted = _Wanted(idle_before, dry_run=False, limit=None)

    return await _archive(settings, _tiers(settings), wanted, Progress())


class _Tiers(NamedTuple):
    warm: WarmTier
    cold: ColdTier
    fail: FailPoint


class _Wanted(NamedTuple):
    idle_before: datetime
    dry_run: bool
    limit: int | None


async def _archive(
    settings: Settings, tiers: _Tiers, wanted: _Wanted, progress: Progress
) -> Report:
    wire = wire_to(settings.redis_url, name="everbus-archive")
    try:
        partitions = await partitions_of(wire)
        hot = RedisHot(wire, partitions)
        async with gateway_commands(settings.redis_url, partitions) as send:
            vault = Vault(tiers.cold, fail=tiers.fail)
            archiving = Archiving(tiers.warm, vault, send, hot.exists, tiers.fail)
            return await archiving.run(
                wanted.idle_before,
                limit=wanted.limit,
                dry_run=wanted.dry_run,
                progress=progress,
            )
    finally:
        await wire.close()
        tiers.warm.close()
        tiers.cold.close()


def _tiers(settings: Settings) -> _Tiers:
    """
    Where sessions are moved from and to.

    Raises:
        Failed: one of the two is not configured.
    """
    fail = armed(settings.fail_point) if settings.fail_point else disarmed
    warm, cold = warm_tier(settings), cold_tier(settings)
    if warm is None:
        raise Failed(
            "there is nothing to archive from: set EVERBUS_MONGO_URL "
            "(`everbus dev` writes it to .everbus/env)",
            USAGE,
        )
    if cold is None:
        raise Failed(
            "there is nowhere to archive to: set EVERBUS_S3_ENDPOINT, or "
            "EVERBUS_COLD_STORE=folder and EVERBUS_COLD_FOLDER",
            USAGE,
        )
    return _Tiers(warm, cold, fail)


class _Bar(Progress):
    """
    A progress bar: one session after the other, by its entries.
    """

    def __init__(self, console: Console) -> None:
        # Late: elsewhere nobody needs it.
        from rich.progress import BarColumn, MofNCompleteColumn
        from rich.progress import Progress as Bars

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
        self.bars = Bars(*columns, console=console, transient=True)
        self._sessions = 0
        self._task = self.bars.add_task("looking for idle sessions", total=None)

    def began(self, held: Held) -> None:
        """
        See Progress.
        """
        self._sessions += 1
        self.bars.reset(
            self._task,
            total=held.session.last_seq,
            description=f"{self._sessions}: {held.session.id}",
        )

    def reached(self, seq: int) -> None:
        """
        See Progress.
        """
        self.bars.update(self._task, completed=seq)


@contextmanager
def _bar() -> Iterator[Progress]:
    """
    A progress bar on stderr, if that is a terminal.
    """
    if not sys.stderr.isatty():
        yield Progress()
        return
    bar = _Bar(Console(stderr=True))
    with bar.bars:
        yield bar


def _print(report: Report, output: Output, *, dry_run: bool) -> None:
    told = {"dry_run": dry_run, **msgspec.structs.asdict(report)}
    if output is Output.json:
        typer.echo(msgspec.json.encode(told))
        return
    table = Table("", "would do" if dry_run else "done", show_header=True)
    for name in ("archived", "skipped", "failed", "entries", "bytes"):
        table.add_row(name, f"{told[name]:,}")
    Console().print(table)
