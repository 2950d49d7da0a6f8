"""
Header and claims of a token, parsed strictly and checked.

Nothing here knows a key. The header is checked before the signature, since it selects
the key; the claims are checked after it.
"""

import base64
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

from everbus.bus.errors import Invalid
from everbus.bus.principal_names import check_name, check_short_name
from everbus.gateway.identity.principal import Claimed, Principal
from everbus.gateway.identity.strict_json import strict_json
from everbus.gateway.identity.token_revocations import id_of_jti

# The first second of the year 10000: datetime ends before it.
END_OF_TIME_S = 253_402_300_800

# RFC 9068 section 4 (an access token), and RFC 7519 section 5.1 (any JWT).
_TYPES = frozenset({"jwt", "at+jwt"})
_QUOTED_VALUE = re.compile(r"'[^']*'")
# Each changes the meaning of the signed bytes, and we support none of them.
_REFUSED_HEADERS = frozenset({"crit", "b64", "zip", "enc", "cty"})


class Header(msgspec.Struct, frozen=True):
    """
    A token's key id, algorithm and type.
    """

    alg: str
    typ: str | msgspec.UnsetType = msgspec.UNSET
    kid: str = ""


class _Claims(msgspec.Struct, frozen=True):
    exp: float
    iss: str
    aud: str | list[str]
    sub: str
    role: Claimed
    iat: float | msgspec.UnsetType = msgspec.UNSET
    nbf: float = 0.0
    tenant: str | msgspec.UnsetType = msgspec.UNSET
    # Of any type: only a text names a token.
    jti: Any = None


class Unfit(ValueError):
    """
    A token is refused; the text is for our log and contains nothing of the token.
    """


class TokenRequirements(NamedTuple):
    """
    The accepted issuer and audience, the tolerated clock difference, and the optional
    parts that are required all the same: `typ`, `iat`.
    """

    issuer: str
    audience: str
    leeway_s: float
    wanted: Collection[str] = ()

    def check_header(self, header: Header) -> None:
        """
        Check the header's optional part.

        Raises:
            Unfit: it is required and absent.
        """
        if "typ" in self.wanted:
            require(header.typ is not msgspec.UNSET, "typ is missing")

    def principal_in(self, payload: bytes, now: float) -> Principal:
        """
        The principal of the claims in *payload*, whose signature is verified; without
        `jti` the caller gives it its `token_id`.

        Raises:
            ValueError: a claim is missing, of a wrong type, or not acceptable.
            Invalid: `sub` or `tenant` is no valid name.
        """
        claims = msgspec.convert(strict_json(payload), _Claims)
        meant_for = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        require(claims.iss == self.issuer, "iss is not EVERBUS_JWT_ISSUER")
        require(self.audience in meant_for, "aud is not EVERBUS_JWT_AUDIENCE")
        require(now < claims.exp + self.leeway_s, "exp has passed")
        require(claims.exp < END_OF_TIME_S, "exp is beyond the calendar")
        require(claims.nbf <= now + self.leeway_s, "nbf is in the future")
        if claims.iat is not msgspec.UNSET:
            require(claims.iat <= now + self.leeway_s, "iat is in the future")
        elif "iat" in self.wanted:
            raise Unfit("iat is missing")

        tenant = _tenant_in(claims)
        named = isinstance(claims.jti, str) and claims.jti

        return Principal(
            check_name(claims.sub, "sub"),
            claims.role,
            claims.exp,
            tenant,
            token_id=id_of_jti(tenant, claims.jti) if named else "",
            issued_at=0.0 if claims.iat is msgspec.UNSET else claims.iat,
        )


def header_in(token: str) -> Header:
    """
    The header of a token in compact form.

    `jku`, `jwk`, `x5u` and `x5c` are ignored: a key inside a token proves nothing
    about its issuer (RFC 8725 section 3.10).

    Raises:
        ValueError: it is no header, or requires an unsupported feature.
    """
    fields = strict_json(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
    header = msgspec.convert(fields, Header)
    if isinstance(header.typ, str):
        kind = header.typ.lower().removeprefix("application/")
        require(kind in _TYPES, "typ is neither JWT nor at+jwt")
    require(
        _REFUSED_HEADERS.isdisjoint(fields), "the header has crit, b64, zip, enc or cty"
    )

    return header


def require(holds: bool, what: str) -> None:
    """
    Check a condition.

    Raises:
        Unfit: it does not hold; *what* is for our log, never for the caller.
    """
    if not holds:
        raise Unfit(what)


def reason_of(error: Exception) -> str:
    """
    The reason of a refusal, for our log: it contains nothing of the token.
    """
    if isinstance(error, Unfit):
        return str(error)
    if isinstance(error, Invalid):
        return f"{error.details.get('field')} is no valid name"
    if isinstance(error, msgspec.ValidationError):
        # "Object missing required field `exp`": names of types and fields.
        return _QUOTED_VALUE.sub("a value", str(error))
    return type(error).__name__


def _tenant_in(claims: _Claims) -> str:
    # An empty one is refused: given by mistake it would mean no tenant.
    if isinstance(claims.tenant, str):
        return check_short_name(claims.tenant, "tenant")
    return ""
