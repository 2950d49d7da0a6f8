"""
`everbus archive`: one archiving pass over the idle sessions, now.

Results go to stdout, the progress bar and log records to stderr.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from everbus.archiver.archiving import ArchiveProgress, ArchiveReport, Archiving
from everbus.archiver.gateway_commands import gateway_commands
from everbus.bus.cluster_wire import wire_to
from everbus.compose.archiver_jobs import days_ago
from everbus.compose.bus_access import partitions_of
from everbus.compose.exit_codes import FINDING, UNREACHABLE, USAGE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.replay_command import Output
from everbus.compose.sealing_settings import sealing_of
from everbus.compose.settings import Settings, load_settings
from everbus.compose.tier_settings import cold_tier, fail_point_of, warm_tier
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.tiers import ColdTier, WarmSession
from everbus.gateway.store.warm_roles import WarmTier

_Days = Annotated[
    float | None,
    typer.Option(
        min=0, help="Minimum of idle days; default: EVERBUS_ARCHIVE_AFTER_DAYS."
    ),
]
_Dry = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; report what a run would do.")
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Maximum of sessions.")]
_Output = Annotated[Output, typer.Option("--output", "-o", help="Output format.")]


def archive(
    idle_days: _Days = None,
    dry_run: _Dry = False,
    limit: _Limit = None,
    output: _Output = Output.table,
) -> None:
    """
    Move sessions that are idle for long from MongoDB to S3, once and now.

    The archiver does the same by itself. Managers and an archiver must run, since the
    lane of each session has to release it. The exit code is 1 if a session could not
    be archived, and 3 if a tier or the bus is away.

    Example: everbus archive --idle-days 90 --dry-run
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    days = settings.archive_after_days if idle_days is None else idle_days
    wanted = _Wanted(days_ago(days), dry_run, limit)
    with _bar() as progress:
        report = asyncio.run(_archive(settings, wanted, progress))
    _print(report, output, dry_run=dry_run)
    if report.ended:
        raise Failed(f"the pass ended early: {report.ended}", UNREACHABLE)
    if report.failed:
        raise typer.Exit(FINDING)


async def archive_once(settings: Settings, idle_days: float) -> ArchiveReport:
    """
    Run one archiving pass without any output.

    Raises:
        Failed: a tier is not configured.
        Unavailable: the bus or a tier is away.
    """
    wanted = _Wanted(days_ago(idle_days), dry_run=False, limit=None)

    return await _archive(settings, wanted, ArchiveProgress())


class _Tiers(NamedTuple):
    warm: WarmTier
    cold: ColdTier
    fail: FailPoint
    sealing: Sealing | None


class _Wanted(NamedTuple):
    idle_before: datetime
    dry_run: bool
    limit: int | None


async def _archive(
    settings: Settings, wanted: _Wanted, progress: ArchiveProgress
) -> ArchiveReport:
    async with sealing_of(settings) as sealing:
        tiers = _tiers(settings, sealing)
        return await _archived(settings, tiers, wanted, progress)


async def _archived(
    settings: Settings, tiers: _Tiers, wanted: _Wanted, progress: ArchiveProgress
) -> ArchiveReport:
    wire = wire_to(settings.redis_url, name="everbus-archive")
    try:
        partitions = await partitions_of(wire)
        hot = RedisHot(wire, partitions)
        async with gateway_commands(settings.redis_url, partitions) as send:
            sealing, fail = tiers.sealing, tiers.fail
            archives = Archives(tiers.cold, fail=fail, sealing=sealing)
            archiving = Archiving(tiers.warm, archives, send, hot.exists, tiers.fail)
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


def _tiers(settings: Settings, sealing: Sealing | None) -> _Tiers:
    """
    The source and the target of archiving.

    Raises:
        Failed: a tier is not configured.
    """
    fail = fail_point_of(settings)
    warm, cold = warm_tier(settings, sealing), cold_tier(settings)
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
    return _Tiers(warm, cold, fail, sealing)


class _Bar(ArchiveProgress):
    """
    A progress bar that counts the entries of the present session.
    """

    def __init__(self, console: Console) -> None:
        # Imported late: only a terminal needs it.
        from rich.progress import BarColumn, MofNCompleteColumn
        from rich.progress import Progress as Bars

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
        self.bars = Bars(*columns, console=console, transient=True)
        self._sessions = 0
        self._task = self.bars.add_task("looking for idle sessions", total=None)

    def began(self, held: WarmSession) -> None:
        self._sessions += 1
        self.bars.reset(
            self._task,
            total=held.session.last_seq,
            description=f"{self._sessions}: {held.session.id}",
        )

    def reached(self, seq: int) -> None:
        self.bars.update(self._task, completed=seq)


@contextmanager
def _bar() -> Iterator[ArchiveProgress]:
    """
    A progress bar on stderr, if that is a terminal.
    """
    if not sys.stderr.isatty():
        yield ArchiveProgress()
        return
    bar = _Bar(Console(stderr=True))
    with bar.bars:
        yield bar


def _print(report: ArchiveReport, output: Output, *, dry_run: bool) -> None:
    fields = {"dry_run": dry_run, **msgspec.structs.asdict(report)}
    if output is Output.json:
        typer.echo(msgspec.json.encode(fields))
        return
    table = Table("", "would do" if dry_run else "done", show_header=True)
    for name in ("archived", "skipped", "failed", "entries", "bytes"):
        table.add_row(name, f"{fields[name]:,}")
    Console().print(table)
