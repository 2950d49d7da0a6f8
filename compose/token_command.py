"""
`everbus token`: JWTs for development and tests; with a subcommand, their revocation.
"""

import os
import time
from enum import StrEnum
from typing import Annotated

import typer

from everbus.compose.durations import seconds_of
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.revocation_command import revoke, revoked
from everbus.compose.settings import Settings, load_settings

token_app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    # Those of rich print locals, tokens among them.
    pretty_exceptions_enable=False,
)
token_app.command()(revoke)
token_app.command()(revoked)


class Role(StrEnum):
    """
    The roles of gateway.identity, as an enum for Typer.
    """

    user = "user"
    mad = "mad"
    operator = "operator"
    admin = "admin"


@token_app.callback()
def token(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="The principal's name.")] = "dev",
    role: Annotated[Role, typer.Option(help="The principal's role.")] = Role.admin,
    ttl: Annotated[
        str, typer.Option(help="Time to live, such as 90s, 15m, 24h or 7d.")
    ] = ("24h"),
    tenant: Annotated[
        str, typer.Option(help="The tenant whose sessions the token reaches.")
    ] = "",
) -> None:
    """
    Print a JWT, signed with EVERBUS_JWT_SECRET; or revoke tokens.

    Example: export EVERBUS_TOKEN=$(everbus token --name ada --role user --ttl 1h)
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = load_settings(os.environ)
    if not settings.jwt_secret.get_secret_value():
        raise Failed(
            "EVERBUS_JWT_SECRET is not set. For the stack of `everbus dev`: "
            "set -a; . .everbus/env; set +a",
            USAGE,
        )
    typer.echo(_mint(settings, name, role, seconds_of(ttl), tenant))


def _mint(settings: Settings, name: str, role: Role, ttl_s: int, tenant: str) -> str:
    # Imported late: without the extra `server` there is no PyJWT.
    from everbus.gateway.identity.tokens import mint

    try:
        return mint(
            settings.jwt_secret.get_secret_value(),
            name=name,
            role=role.value,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            ttl_s=ttl_s,
            tenant=tenant,
            now=time.time(),
        )
    except ValueError as error:
        raise Failed(f"EVERBUS_JWT_SECRET: {error}", USAGE) from error
