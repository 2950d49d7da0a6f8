"""
`everbus backup`: a consistent copy of MongoDB's side, while everything runs.
"""

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer

from everbus.bus.errors import Invalid
from everbus.compose.backup.archive_copies import ArchiveCopies
from everbus.compose.backup.folder import BackupFolder, BackupManifest
from everbus.compose.backup.taking import BackupRun
from everbus.compose.command_output import (
    OutputOption,
    notify,
    print_json,
    print_table,
)
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.progress import counting_bar
from everbus.compose.replay_command import Output
from everbus.compose.settings import Settings, load_settings
from everbus.compose.tier_settings import cold_tier, fail_point_of
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.export import Export
from everbus.gateway.store.tiers import ColdTier

# A call that reads a page may take longer than one that answers a command.
CALL_TIMEOUT_MS = 30_000

_Folder = Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")]
_Archives = Annotated[
    bool, typer.Option("--with-archives", help="Copy the archives' objects, too.")
]
_NoKeys = Annotated[
    bool, typer.Option("--without-keys", help="Leave out the wrapped data keys.")
]
MongoUrl = Annotated[
    str, typer.Option("--mongo-url", help="Default: EVERBUS_MONGO_URL.")
]
Database = Annotated[
    str, typer.Option("--database", help="Default: EVERBUS_MONGO_DATABASE.")
]


class BackupTiers(NamedTuple):
    """
    What a backup reads and a restore writes.

    Attributes:
        cold: None if none is configured.
    """

    settings: Settings
    mongo: Mongo
    cold: ColdTier | None
    fail: FailPoint


def backup(
    folder: _Folder,
    with_archives: _Archives = False,
    without_keys: _NoKeys = False,
    mongo_url: MongoUrl = "",
    database: Database = "",
    output: OutputOption = Output.table,
) -> None:
    """
    Copy all sessions of MongoDB, and the list of their archives, into a folder.

    Reads only, while the bus goes on: each session is in the copy as MongoDB had it at
    one moment after the start. Sealed fields stay sealed. Ctrl-C or a crash ends it at
    any step; the same command goes on behind the last finished part. Its files are
    readable by you alone. The exit code is 1 if a session lacks something, by name.

    Example: everbus backup /backups/2026-11-29 --with-archives
    """
    wanted = _WantedBackup(folder, with_archives, not without_keys)
    manifest = asyncio.run(_backup(wanted, mongo_url, database))
    _print(manifest, folder, output)
    if manifest.unsettled:
        raise typer.Exit(FINDING)


class _WantedBackup(NamedTuple):
    folder: Path
    with_archives: bool
    with_keys: bool


@contextmanager
def backup_tiers(mongo_url: str, database: str) -> Iterator[BackupTiers]:
    """
    The tiers of the environment, or another MongoDB or database of it.

    Raises:
        Failed: no MongoDB is named, or sessions are in another store.
    """
    given = {"EVERBUS_MONGO_URL": mongo_url, "EVERBUS_MONGO_DATABASE": database}
    settings = load_settings({**os.environ, **{k: v for k, v in given.items() if v}})
    configure_logs(settings.log_format, settings.log_level)
    if not settings.mongo_url or settings.warm_store != "mongo":
        raise Failed(
            "sessions are in no MongoDB: set EVERBUS_MONGO_URL, or say --mongo-url; a "
            "store of your own (EVERBUS_WARM_STORE) needs its own backup",
            USAGE,
        )
    with ExitStack() as closing:
        try:
            mongo = Mongo(
                settings.mongo_url,
                settings.mongo_database,
                settings.mongo_driver,
                CALL_TIMEOUT_MS,
            )
        except ValueError as error:
            raise Failed(f"the URL of MongoDB: {error}", USAGE) from error
        closing.callback(mongo.close)
        cold = cold_tier(settings)
        if cold is not None:
            closing.callback(cold.close)
        yield BackupTiers(settings, mongo, cold, fail_point_of(settings))


async def _backup(
    wanted: _WantedBackup, mongo_url: str, database: str
) -> BackupManifest:
    with backup_tiers(mongo_url, database) as tiers:
        if wanted.with_archives and tiers.cold is None:
            raise Failed(
                "--with-archives needs the cold tier: set EVERBUS_S3_ENDPOINT, or "
                "EVERBUS_COLD_STORE=folder and EVERBUS_COLD_FOLDER",
                USAGE,
            )
        folder = BackupFolder(wanted.folder)
        progress = folder.open_for_writing()
        try:
            return await _taken(wanted, tiers, folder, progress)
        finally:
            folder.close()


async def _taken(
    wanted: _WantedBackup,
    tiers: BackupTiers,
    folder: BackupFolder,
    progress: BackupManifest | None,
) -> BackupManifest:
    database = tiers.settings.mongo_database
    begun = progress or BackupManifest(
        id=secrets.token_hex(16),
        everbus=version("everbus"),
        database=database,
        begun=datetime.now(UTC).isoformat(),
        with_archives=wanted.with_archives,
        with_keys=wanted.with_keys,
    )
    _check_same(begun, wanted, database)
    if progress is not None:
        notify(f"going on behind {len(progress.parts)} finished parts")
    export = Export(tiers.mongo)
    archives = ArchiveCopies(tiers.cold, whole=wanted.with_archives)
    with counting_bar("sessions", await export.total()) as advance:
        counts = begun.counts
        advance(counts.get("sessions", 0) + counts.get("tombstones", 0))
        return await BackupRun(export, archives, folder, tiers.fail, advance).run(begun)


def _check_same(begun: BackupManifest, wanted: _WantedBackup, database: str) -> None:
    """
    Accept a killed backup that was to be the same.

    Raises:
        Invalid: it was to be another.
    """
    there = (begun.database, begun.with_archives, begun.with_keys)
    if there != (database, wanted.with_archives, wanted.with_keys):
        raise Invalid(
            f"the unfinished backup in {wanted.folder} is of database {there[0]}, "
            f"archives: {there[1]}, keys: {there[2]}. Go on with the same options, or "
            "name a new folder"
        )


def _print(manifest: BackupManifest, folder: Path, output: Output) -> None:
    counts = dict(sorted(manifest.counts.items()))
    if output is Output.json:
        fields = msgspec.to_builtins(manifest)
        print_json({"folder": str(folder), **fields, "counts": counts})
        return
    rows: list[tuple[str, object]] = [(n, f"{count:,}") for n, count in counts.items()]
    rows += [("begun", manifest.begun), ("finished", manifest.finished)]
    print_table(("backed up", ""), rows)
    for one in manifest.unsettled:
        notify(f"{one.session}: {one.reason}")
