"""
`everbus restore`: a backup back into MongoDB and the cold tier.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from everbus.compose.backup.folder import BackupFolder, BackupManifest
from everbus.compose.backup.format import DamagedBackup, WrittenPart, check_part
from everbus.compose.backup.refilling import RestoreRun
from everbus.compose.backup.restore_report import RestoreReport, damage_of
from everbus.compose.backup_command import Database, MongoUrl, backup_tiers
from everbus.compose.command_output import (
    OutputOption,
    notify,
    print_json,
    print_table,
)
from everbus.compose.exit_codes import FINDING
from everbus.compose.progress import counting_bar
from everbus.compose.replay_command import Output
from everbus.gateway.store.mongo.documents import SESSIONS
from everbus.gateway.store.mongo.refill import Refill

_Folder = Annotated[
    Path, typer.Argument(help="The folder of a finished backup.", metavar="BACKUP")
]
_Existing = Annotated[
    bool,
    typer.Option(
        "--into-existing", help="Restore the sessions that the database lacks."
    ),
]
_Check = Annotated[
    bool, typer.Option("--check", help="Verify every checksum; write nothing.")
]
_NEXT = (
    "next: start the managers on an empty Redis; a bus that still has newer hot data "
    "is refused for the restored sessions (docs/backup.md)"
)


def restore(
    folder: _Folder,
    mongo_url: MongoUrl = "",
    database: Database = "",
    into_existing: _Existing = False,
    check: _Check = False,
    output: OutputOption = Output.table,
) -> None:
    """
    Write a backup into an empty MongoDB database, and its archives into the cold tier.

    Stop managers and archivers before, and start them on an empty Redis afterwards.
    Every checksum of a part is verified before anything of it is written. Ctrl-C or a
    crash ends it at any step; the same command goes on. The exit code is 1 if a part
    is damaged or a session needs a look, by name; 5 if the database is not empty.

    Example: everbus restore /backups/2026-11-29 --database everbus
    """
    manifest = BackupFolder(folder).manifest()
    if check:
        report = _checked(manifest, folder)
    else:
        report = asyncio.run(
            _restored(
                manifest, folder, (mongo_url, database), into_existing=into_existing
            )
        )
    _print(report, output)
    if not report.is_clean:
        raise typer.Exit(FINDING)
    if not check:
        notify(_NEXT)


def _checked(manifest: BackupManifest, folder: Path) -> RestoreReport:
    report = RestoreReport()
    with counting_bar("parts", len(manifest.parts)) as advance:
        for part in manifest.parts:
            try:
                written = WrittenPart(part.bytes, part.sha256)
                check_part(folder / part.name, written, SESSIONS)
            except DamagedBackup as error:
                report.damaged.append(damage_of(error))
            advance(1)
    return report


async def _restored(
    manifest: BackupManifest,
    folder: Path,
    place: tuple[str, str],
    *,
    into_existing: bool,
) -> RestoreReport:
    total = manifest.counts.get("sessions", 0) + manifest.counts.get("tombstones", 0)
    with backup_tiers(*place) as tiers, counting_bar("sessions", total) as advance:
        run = RestoreRun(
            Refill(tiers.mongo),
            tiers.cold,
            BackupFolder(folder),
            tiers.fail,
            advance,
        )
        await run.run(manifest, into_existing=into_existing)
        return run.report


def _print(report: RestoreReport, output: Output) -> None:
    fields = msgspec.to_builtins(report)
    if output is Output.json:
        print_json(fields)
        return
    rows = [(n, f"{v:,}") for n, v in fields.items() if isinstance(v, int)]
    print_table(("restored", ""), rows)
    for part in report.damaged:
        notify(part.reason)
    for one in report.not_restored:
        notify(f"{one.session}: {one.reason}")
