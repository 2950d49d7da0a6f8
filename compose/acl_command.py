"""
`everbus acl`: the Redis ACL rules of MADs and of the gateway's processes.
"""

import asyncio
import os
from typing import Annotated

import typer

from bus.errors import Invalid
from bus.keys import MADS
from compose.acl import RESERVED, ROLES, Role, mad_rules, role_rules
from compose.answers import OutputOption, print_json, tell
from compose.bus_access import bus_access
from compose.bus_url import database_of
from compose.exits import USAGE, Failed
from compose.replay_command import Output
from compose.settings import load_settings

_Mad = Annotated[str | None, typer.Option(help="The user of this MAD.")]
_Role = Annotated[Role | None, typer.Option(help="The user of processes of this role.")]


def acl(
    mad: _Mad = None, role: _Role = None, output: OutputOption = Output.table
) -> None:
    """
    Print the Redis ACL rules of a MAD, of a role, or of all that the bus knows.

    One user a line, as ACL SETUSER takes it; give it a password of your own:
    `on >PASSWORD`. `everbus mads add` does all of it for a MAD.

    Example: redis-cli ACL SETUSER $(everbus acl --role manager) on '>PASSWORD'
    """
    if mad is not None and role is not None:
        raise Failed("--mad or --role, not both", USAGE)
    database = database_of(load_settings(os.environ).redis_url)
    if mad is not None:
        users = {mad: mad_rules(mad, database=database)}
    elif role is not None:
        users = {_user_of(role): role_rules(role, database=database)}
    else:
        users = {_user_of(one): role_rules(one, database=database) for one in ROLES}
        users |= asyncio.run(_known(database))
    if output is Output.json:
        print_json(users)
        return
    for user, rules in users.items():
        typer.echo(" ".join((user, *rules)))


async def _known(database: int) -> dict[str, tuple[str, ...]]:
    """
    The rules of every MAD that the bus knows.
    """
    async with bus_access("acl") as bus:
        mads = sorted(mad.decode() for mad in await bus.wire.call("HKEYS", MADS))
    users = {}
    for mad in mads:
        if mad in RESERVED:
            continue
        try:
            users[mad] = mad_rules(mad, database=database)
        except Invalid as error:
            # Whoever may write eb:mads can write anything into it.
            tell(f"left out: {error.message}")
    return users


def _user_of(role: Role) -> str:
    return f"everbus-{role}"
