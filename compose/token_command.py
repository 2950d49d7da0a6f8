"""
`everbus token`: JWTs for development and tests.
"""

import os
import re
import time
from enum import StrEnum
from typing import Annotated

import typer

from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.settings import Settings, load_settings

_TTL = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Role(StrEnum):
    """
    The roles of gateway.identity, as an enum for Typer.
    """

    user = "user"
    mad = "mad"
    operator = "operator"
    admin = "admin"


def token(
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
    Print a JWT, signed with EVERBUS_JWT_SECRET.

    Example: export EVERBUS_TOKEN=$(everbus token --name ada --role user --ttl 1h)
    """
    settings = load_settings(os.environ)
    if not settings.jwt_secret.get_secret_value():
        raise Failed(
            "EVERBUS_JWT_SECRET is not set. For the stack of `everbus dev`: "
            "set -a; . .everbus/env; set +a",
            USAGE,
        )
    typer.echo(_mint(settings, name, role, seconds_of(ttl), tenant))


def seconds_of(duration: str) -> int:
    """
    The seconds in a duration such as 90s, 15m, 24h or 7d.
    """
    parts = _TTL.fullmatch(duration)
    if parts is None:
        raise Failed(f"--ttl {duration}: wanted a number and s, m, h or d", USAGE)

    return int(parts[1]) * _SECONDS[parts[2]]


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
