"""
`everbus acl`: the Redis ACL rules of MADs and of the gateway's processes.
"""

import asyncio
import os
from typing import Annotated, TypedDict

import typer

from everbus.bus.errors import Invalid
from everbus.bus.keys import MADS
from everbus.compose.acl import RESERVED, ROLES, Role, mad_rules, role_rules
from everbus.compose.bus_access import bus_access
from everbus.compose.bus_url import database_of
from everbus.compose.command_output import OutputOption, notify, print_json
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.replay_command import Output
from everbus.compose.settings import load_settings

_Mad = Annotated[str | None, typer.Option(help="The rules of this MAD's user.")]
_Role = Annotated[Role | None, typer.Option(help="The rules of a role's user.")]


class _OfBus(TypedDict):
    database: int
    partitions: int


def acl(
    mad: _Mad = None, role: _Role = None, output: OutputOption = Output.table
) -> None:
    """
    Print the Redis ACL rules of a MAD, of a role, or of all MADs and roles of the bus.

    Each line is one user in the form of ACL SETUSER; add a password of your own:
    `on >PASSWORD`. For a MAD `everbus mads add` does all of this. The partitions are
    those of EVERBUS_PARTITIONS, with neither --mad nor --role those of the bus.

    Example: redis-cli ACL SETUSER $(everbus acl --role manager) on '>PASSWORD'
    """
    if mad is not None and role is not None:
        raise Failed("--mad or --role, not both", USAGE)
    settings = load_settings(os.environ)
    database = database_of(settings.redis_url)
    of_bus: _OfBus = {"database": database, "partitions": settings.partitions}
    if mad is not None:
        users = {mad: mad_rules(mad, **of_bus)}
    elif role is not None:
        users = {_user_of(role): role_rules(role, **of_bus)}
    else:
        users = {_user_of(one): role_rules(one, **of_bus) for one in ROLES}
        users |= asyncio.run(_known(database))
    if output is Output.json:
        print_json(users)
        return
    for user, rules in users.items():
        typer.echo(" ".join((user, *rules)))


async def _known(database: int) -> dict[str, tuple[str, ...]]:
    """
    The rules of every MAD that is registered on the bus.
    """
    async with bus_access("acl") as bus:
        mads = sorted(mad.decode() for mad in await bus.wire.call("HKEYS", MADS))
        partitions = bus.partitions
    users = {}
    for mad in mads:
        if mad in RESERVED:
            continue
        try:
            users[mad] = mad_rules(mad, database=database, partitions=partitions)
        except Invalid as error:
            # A user with write access to eb:mads can put any name there.
            notify(f"left out: {error.message}")
    return users


def _user_of(role: Role) -> str:
    return f"everbus-{role}"
