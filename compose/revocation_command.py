"""
`everbus token revoke` and `everbus token revoked`: tokens that end before their `exp`.
"""

import asyncio
import base64
import binascii
import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from everbus.bus.principal_names import check_name, check_short_name
from everbus.compose.bus_access import bus_access
from everbus.compose.command_output import OutputOption, notify, print_json, print_table
from everbus.compose.durations import seconds_of
from everbus.compose.exit_codes import CONFLICT, USAGE, Failed
from everbus.compose.replay_command import Output
from everbus.gateway.identity.token_revocation_reader import read_list, written
from everbus.gateway.identity.token_revocations import (
    LIST,
    UNREAD_S,
    TokenRevocation,
    id_of_token,
)
from everbus.gateway.identity.tokens import MAX_LEEWAY_S
from everbus.gateway.store.scripts import write_at_all_times

DAY_S = 86_400
MAX_KEEP_S = 366 * DAY_S

_Token = Annotated[
    str, typer.Argument(help="The token itself; `-` reads it from stdin.")
]
_Jti = Annotated[str, typer.Option(help="Instead: the `jti` of the token.")]
_Subject = Annotated[
    str,
    typer.Option(help="Instead: all tokens of this `sub` that were issued until now."),
]
_Tenant = Annotated[
    str, typer.Option(help="The tenant of the token with that jti, or of the subject.")
]
_Keep = Annotated[
    str,
    typer.Option(
        help="How long to keep the entry of a jti or a subject: as long as your "
        "issuer's longest token. At most 366d."
    ),
]


def revoke(
    token: _Token = "",
    jti: _Jti = "",
    subject: _Subject = "",
    tenant: _Tenant = "",
    keep: _Keep = "30d",
) -> None:
    """
    Revoke a token, or all of a subject, before its `exp`.

    Managers and edges hear of it within 5 s: requests and commands are refused, live
    streams end. Needs the EVERBUS_REDIS_URL of the managers. Tokens without `iat` count
    as issued before any time.

    Example: everbus token revoke --subject ada --tenant acme
    """
    if sum(map(bool, (token, jti, subject))) != 1:
        raise Failed("name one of TOKEN, --jti and --subject", USAGE)
    now = time.time()
    if token:
        from_stdin = token == "-"  # noqa: S105 - no secret
        revocation = of_token(sys.stdin.read() if from_stdin else token, now)
    else:
        lasts_s = min(seconds_of(keep, "--keep"), MAX_KEEP_S)
        revocation = TokenRevocation(
            kind="jti" if jti else "subject",
            name=jti or check_name(subject, "subject"),
            tenant=check_short_name(tenant, "tenant") if tenant else "",
            issued_until=now if subject else 0.0,
            expires_at=now + lasts_s,
            made_at=now,
        )
    asyncio.run(_revoke(revocation))


def revoked(output: OutputOption = Output.table) -> None:
    """
    List the revocations in force.

    Example: everbus token revoked -o json
    """
    rows = sorted(asyncio.run(_in_force()), key=lambda one: one.made_at)
    if output is Output.json:
        print_json([msgspec.to_builtins(one) for one in rows])
        return
    names = ("kind", "name", "tenant", "issued_until", "made", "ends")
    print_table(names, [_row(one) for one in rows])


def of_token(token: str, now: float) -> TokenRevocation:
    """
    The revocation of *token*, by its `jti` if it has one; until its `exp`.

    Its signature is not checked: an entry for a token that nobody accepts is harmless.

    Raises:
        Failed: it is no JWT, or has expired, by the longest leeway of a deployment.
    """
    token = token.strip()
    claims = _claims_in(token)
    ends = claims.get("exp")
    if not isinstance(ends, int | float) or ends + MAX_LEEWAY_S <= now:
        raise Failed("the token has no exp, or has expired: nobody accepts it", USAGE)
    jti, tenant = claims.get("jti"), claims.get("tenant", "")
    named = isinstance(jti, str) and bool(jti)

    return TokenRevocation(
        kind="jti" if named else "token",
        name=str(jti) if named else id_of_token(token),
        tenant=tenant if isinstance(tenant, str) else "",
        expires_at=ends + MAX_LEEWAY_S,
        made_at=now,
    )


def _claims_in(token: str) -> dict[str, Any]:
    parts = token.split(".")
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "==")
        claims = msgspec.json.decode(payload, type=dict[str, Any])
    except (IndexError, binascii.Error, ValueError):
        claims = {}
    if len(parts) != 3 or not claims:
        # Without the text, which may be a secret.
        raise Failed("this is no JWT; give the token, --jti or --subject", USAGE)
    return claims


async def _revoke(revocation: TokenRevocation) -> None:
    async with bus_access("revoke") as bus:
        listed = await read_list(bus.wire)
        over = [f for f, one in listed.items() if one.expires_at <= time.time()]
        if over:
            await write_at_all_times(bus.wire, "HDEL", LIST, *over)
        limit = bus.settings.revoked_max_items
        if revocation.field not in listed and len(listed) - len(over) >= limit:
            raise Failed(
                f"{limit:,} revocations are in force, which is the bound "
                "EVERBUS_REVOKED_MAX_ITEMS: revoke subjects instead of single tokens, "
                "raise it in all managers and edges, or change the issuer's key",
                CONFLICT,
            )
        pairs = written({revocation.field: revocation})
        await write_at_all_times(bus.wire, "HSET", LIST, *pairs)
    ends = _time(revocation.expires_at)
    notify(f"revoked until {ends}; heard of everywhere within {UNREAD_S:g} s")


async def _in_force() -> list[TokenRevocation]:
    async with bus_access("revoked") as bus:
        listed = await read_list(bus.wire)
    return [one for one in listed.values() if one.expires_at > time.time()]


def _row(one: TokenRevocation) -> tuple[str, ...]:
    until = _time(one.issued_until) if one.issued_until else ""

    return (
        *(one.kind, one.name, one.tenant),
        *(until, _time(one.made_at), _time(one.expires_at)),
    )


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError):
        return "beyond the calendar"
