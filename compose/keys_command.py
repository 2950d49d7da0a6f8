"""
`everbus keys`: the data keys of encryption at rest and their key-encryption key, and
key pairs of grants.
"""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from everbus.compose.bus_access import bus_access
from everbus.compose.command_output import OutputOption, print_json, print_table
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.progress import counting_bar
from everbus.compose.replay_command import Output
from everbus.compose.sealing_settings import sealing_of
from everbus.compose.settings import Settings
from everbus.gateway.identity.grant_keys import GRANT_KINDS, new_pair
from everbus.gateway.sealing.cipher import SECRET_BYTES
from everbus.gateway.sealing.sealing import Sealing

_Tenant = Annotated[
    str | None, typer.Option("--tenant", help="This tenant's; `-`: of no tenant.")
]
_Name = Annotated[str, typer.Argument(help="A name, such as a date.", metavar="NAME")]
_Wrapping = Annotated[
    bool, typer.Option("--wrapping", help="Wrap all data keys by the first key anew.")
]
_Data = Annotated[bool, typer.Option("--data", help="Begin a new data key.")]
_Reseal = Annotated[
    bool, typer.Option("--reseal", help="Seal MongoDB's documents by the newest keys.")
]
_Kind = Annotated[
    str, typer.Argument(help="`mad` for managers, `edge` for edges.", metavar="KIND")
]
_Private = Annotated[
    Path, typer.Option("--private", help="A new file for the private key, mode 0600.")
]
_Yes = Annotated[bool, typer.Option("--yes", help="Do it; nothing brings it back.")]

keys_app = typer.Typer(
    help="Keys of encryption at rest, and of grants. Example: everbus keys list",
    no_args_is_help=True,
)


@keys_app.command()
def new(name: _Name) -> None:
    """
    Print a new key-encryption key, for EVERBUS_SEALING_KEK; it is kept nowhere.

    Example: everbus keys new 2026-11 >> kek.txt
    """
    key = base64.b64encode(os.urandom(SECRET_BYTES)).decode()
    typer.echo(f"{name}:{key}")


@keys_app.command()
def pair(kind: _Kind, name: _Name, private: _Private) -> None:
    """
    Make a key pair that seals grants; print the public key, and never the private one.

    Managers seal the grants of MADs (KIND mad), edges those of single commands (KIND
    edge). The file is for EVERBUS_GRANT_PRIVATE_KEY_FILE of that role alone; what is
    printed is a part of EVERBUS_GRANT_PUBLIC_KEYS of all managers.

    Example: everbus keys pair edge 2026-11 --private edge_grants.key
    """
    if kind not in GRANT_KINDS:
        raise Failed(f"{kind!a} is no kind; wanted {' or '.join(GRANT_KINDS)}", USAGE)
    try:
        secret, public = new_pair(kind, name)
        # It may be the only copy of the key that is there: never written over.
        file = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except ValueError as error:
        raise Failed(str(error), USAGE) from error
    except OSError as error:
        raise Failed(
            f"--private {private}: {error.strerror}; name a new file in a folder that "
            "you may write to",
            USAGE,
        ) from error
    with os.fdopen(file, "w") as out:
        out.write(f"{secret}\n")
    typer.echo(public)


@keys_app.command("list")
def list_keys(output: OutputOption = Output.table) -> None:
    """
    List the data keys: id, tenant, age, and the key that wraps each; no secrets.

    Example: everbus keys list -o json
    """
    rows = asyncio.run(_rows())
    names = ("id", "tenant", "made", "wrapped_by", "seals")
    if output is Output.json:
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_table(names, rows)


@keys_app.command()
def rotate(
    wrapping: _Wrapping = False,
    data: _Data = False,
    reseal: _Reseal = False,
    tenant: _Tenant = None,
) -> None:
    """
    Rotate keys while everything runs; may be interrupted and repeated.

    --wrapping: first put the new key-encryption key in front of the old one in
    EVERBUS_SEALING_KEK of every process; afterwards the old one can go. --data: new
    values are sealed by a new data key within 5 s. --reseal: also what MongoDB holds;
    archives and hot copies keep their keys until they are written anew.

    Example: everbus keys rotate --data --reseal --tenant acme
    """
    if not (wrapping or data or reseal):
        raise Failed("say --wrapping, --data or --reseal", USAGE)
    for line in asyncio.run(_rotate(_named(tenant), wrapping, data, reseal)):
        typer.echo(line)


@keys_app.command()
def drop(tenant: _Tenant = None, yes: _Yes = False) -> None:
    """
    Forget all data keys of one tenant: what they sealed can never be read again, in
    any tier or archive. A backup with keys still has them: delete it as well.

    Example: everbus keys drop --tenant acme --yes
    """
    wanted = _named(tenant)
    if wanted is None or not yes:
        raise Failed("name the tenant with --tenant, and say --yes", USAGE)
    dropped = asyncio.run(_drop(wanted))
    typer.echo(f"{dropped} data keys dropped")
    if not dropped:
        raise typer.Exit(FINDING)


@asynccontextmanager
async def _sealing() -> AsyncIterator[tuple[Settings, Sealing]]:
    async with (
        bus_access("keys") as access,
        sealing_of(access.settings) as sealing,
    ):
        if sealing is None:
            raise Failed(
                "encryption at rest is off; set EVERBUS_SEALING_KEK (`everbus keys "
                "new`) or EVERBUS_SEALING_KMS_KEY",
                USAGE,
            )
        yield access.settings, sealing


async def _rows() -> list[tuple[str, str, str, str, str]]:
    async with _sealing() as (_, sealing):
        keyring = sealing.keyring
        found = sorted(keyring.wrapped.values(), key=lambda key: (key.tenant, key.at))
        return [
            (key.id, key.tenant or "-", key.at.isoformat(), key.wrapped_by, state)
            for key in found
            for state in [_state(sealing, key.id)]
        ]


def _state(sealing: Sealing, key_id: str) -> str:
    key = sealing.keyring.wrapped[key_id]
    if key.is_dropped:
        return "dropped"
    active = sealing.keyring.active(key.tenant)

    return "yes" if active is not None and active.id == key_id else "opens only"


async def _rotate(
    tenant: str | None, wrapping: bool, data: bool, reseal: bool
) -> list[str]:
    lines: list[str] = []
    async with _sealing() as (settings, sealing):
        keyring = sealing.keyring
        mine = [k for k in keyring.wrapped.values() if tenant in (None, k.tenant)]
        if wrapping:
            with counting_bar("data keys", len(mine)) as advance:
                done = 0
                for key in mine:
                    done += await keyring.rewrap(key)
                    advance(1)
            lines.append(f"{done} data keys wrapped by {keyring.encryption.name}")
        if data:
            tenants = sorted({key.tenant for key in mine if not key.is_dropped})
            for one in tenants:
                await keyring.rotate(one)
            lines.append(f"{len(tenants)} new data keys")
        if reseal:
            resealed = await _reseal(settings, sealing, tenant)
            lines.append(f"{resealed} documents sealed by the newest keys")
    return lines


async def _reseal(settings: Settings, sealing: Sealing, tenant: str | None) -> int:
    if not settings.mongo_url:
        raise Failed("set EVERBUS_MONGO_URL: there is nothing to seal anew", USAGE)
    from everbus.gateway.store.mongo.resealing import Resealing

    resealing = Resealing(
        settings.mongo_url,
        settings.mongo_database,
        sealing,
        driver=settings.mongo_driver,
    )
    try:
        with counting_bar("documents", await resealing.total()) as advance:
            return await resealing.run(tenant, advance)
    finally:
        resealing.close()


async def _drop(tenant: str) -> int:
    async with _sealing() as (_, sealing):
        keyring = sealing.keyring
        found = [
            key
            for key in keyring.wrapped.values()
            if key.tenant == tenant and not key.is_dropped
        ]
        for key in found:
            await keyring.drop(key)
        return len(found)


def _named(tenant: str | None) -> str | None:
    return "" if tenant == "-" else tenant
