"""
What a token says: its header and its claims, parsed strictly and judged.

Nothing here knows a key. A header is judged before its signature is, since it tells
which key to take; claims only afterwards.
"""

import base64
from typing import NamedTuple

import msgspec

from bus.messages import check_name
from gateway.identity.principal import Claimed, Principal
from gateway.identity.strict_json import strict_json

# The first second of the year 10000: behind it there is no time to tell.
END_OF_TIME_S = 253_402_300_800

# RFC 9068 section 4 (an access token), and RFC 7519 section 5.1 (any JWT).
_TYPES = frozenset({"jwt", "at+jwt"})
# Each changes what the signed bytes mean, and we understand none of them.
_REFUSED_HEADERS = frozenset({"crit", "b64", "zip", "enc", "cty"})


class Header(msgspec.Struct, frozen=True):
    """
    Which key a token is signed with, and how.
    """

    alg: str
    typ: str
    kid: str = ""


class _Claims(msgspec.Struct, frozen=True):
    exp: float
    iat: float
    iss: str
    aud: str | list[str]
    sub: str
    role: Claimed
    nbf: float = 0.0
    tenant: str | msgspec.UnsetType = msgspec.UNSET


class Terms(NamedTuple):
    """
    Whose tokens are accepted, for whom, and by how much clocks may differ.
    """

    issuer: str
    audience: str
    leeway_s: float

    def principal_in(self, payload: bytes, now: float) -> Principal:
        """
        Whom the claims in *payload*, whose signature was verified, stand for.

        Raises:
            ValueError: a claim is missing, of a wrong type, or not as it has to be.
            Invalid: `sub` or `tenant` cannot be a name.
        """
        claims = msgspec.convert(strict_json(payload), _Claims)
        meant_for = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        require(claims.iss == self.issuer, "iss")
        require(self.audience in meant_for, "aud")
        require(now < claims.exp + self.leeway_s, "exp")
        require(claims.exp < END_OF_TIME_S, "exp")
        require(max(claims.iat, claims.nbf) <= now + self.leeway_s, "iat, nbf")

        return Principal(
            check_name(claims.sub, "sub"), claims.role, claims.exp, _tenant_in(claims)
        )


def header_in(token: str) -> Header:
    """
    The header of a token in compact form.

    `jku`, `jwk`, `x5u` and `x5c` are not looked at: a key that a token brings along
    says nothing about who made it (RFC 8725 section 3.10).

    Raises:
        ValueError: it is none, or asks for what we do not do.
    """
    fields = strict_json(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
    header = msgspec.convert(fields, Header)
    require(header.typ.lower() in _TYPES, "typ")
    require(_REFUSED_HEADERS.isdisjoint(fields), "crit, b64, zip, enc, cty")

    return header


def require(holds: bool, what: str) -> None:
    """
    Go on if it *holds*.

    Raises:
        ValueError: it does not; *what* is for us alone, never for who asks.
    """
    if not holds:
        raise ValueError(what)


def _tenant_in(claims: _Claims) -> str:
    # An empty one is refused: who gets it by mistake would belong to no tenant.
    if isinstance(claims.tenant, str):
        return check_name(claims.tenant, "tenant")
    return ""
