"""
Token verification, in one place.

The rules are RFC 8725's. `kid` only selects among the known keys, nothing that a token
names is ever fetched, and every bad token gets the same error, so that a forger learns
nothing.
"""

import re
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import msgspec
import structlog
from cachetools import LRUCache

from everbus.bus.errors import Invalid, Unauthenticated
from everbus.bus.messages import MAX_TOKEN_BYTES
from everbus.bus.principal_names import check_name, check_short_name
from everbus.gateway.identity.claims import (
    END_OF_TIME_S,
    TokenRequirements,
    Unfit,
    header_in,
    reason_of,
    require,
)
from everbus.gateway.identity.jwks import PublishedKeys
from everbus.gateway.identity.keys import Algorithm, Key, Verifier, signed
from everbus.gateway.identity.principal import Claimed, Principal
from everbus.gateway.identity.token_revocations import TokenRevocations, id_of_token
from everbus.gateway.telemetry.metrics import REVOKED_REFUSALS

log = structlog.get_logger()

MAX_VERIFIED = 10_000  # remembered tokens; the least recently used goes first
MAX_LEEWAY_S = 30

NO_TOKEN = "no token; send the JWT of the calling principal"  # noqa: S105 - words
BAD_TOKEN = "the token is not valid here; get a new one from your issuer"  # noqa: S105

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# Errors of parsing and verifying hostile bytes.
_UNFIT = (ValueError, RecursionError, msgspec.MsgspecError, Invalid)


class Identity:
    """
    Verifies tokens and returns their principals.

    Each token is verified once, then remembered while its key is valid.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        issuer: str,
        audience: str,
        *,
        published: PublishedKeys | None = None,
        leeway_s: float = 5,
        wanted: Collection[str] = (),
        revocations: TokenRevocations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Accept tokens of *issuer* for *audience*, signed with one of *keys* or, for
        any other `kid`, of *published*.

        *wanted*: which of `typ` and `iat` a token must have; RFC 7519 makes both
        optional. Tokens of *revocations* are refused before their `exp`. Clocks
        may differ by *leeway_s*, 0 to MAX_LEEWAY_S; *clock* tells seconds since 1970.

        Raises:
            ValueError: no keys, two of one kid, or an empty or unfit setting.
        """
        if not 0 <= leeway_s <= MAX_LEEWAY_S:
            raise ValueError(f"leeway_s is {leeway_s}; 0 to {MAX_LEEWAY_S}")
        if not issuer or not audience:
            raise ValueError("issuer and audience must be set, or any token would do")
        if not keys and published is None:
            raise ValueError("no keys; wanted one or more")
        self._verifiers = _verifiers(keys, alone=published is None)
        self._published = published
        self._requirements = TokenRequirements(
            issuer, audience, leeway_s, frozenset(wanted)
        )
        self._revocations = TokenRevocations() if revocations is None else revocations
        self._clock = clock
        self._verified: LRUCache[str, _Verified] = LRUCache(MAX_VERIFIED)

    async def authenticate(self, token: str) -> Principal:
        """
        The principal of *token*; fetches its key first if needed.

        Raises:
            Unauthenticated: with the same message for every kind of bad token.
            Unavailable: its key cannot be fetched now.
        """
        if self._published is not None:
            kid = _kid_in(token)
            if kid and kid not in self._verifiers:
                await self._published.fetch(kid)
        return self.principal_of(token)

    async def ready(self) -> bool:
        """
        Whether a key is available to verify tokens with.
        """
        if self._published is None or self._verifiers:
            return True
        return await self._published.ready()

    def principal_of(self, token: str) -> Principal:
        """
        Who asks with *token*; verified at first sight, remembered until expiry.

        Raises:
            Unauthenticated: with the same words for every kind of bad token.
            Unavailable: nobody can tell now whether it is revoked.
        """
        principal = self._known_principal(token)
        if self._revocations and self._revocations.refuses(principal):
            REVOKED_REFUSALS.inc()
            log.info("token.refused", reason="revoked")
            raise Unauthenticated(BAD_TOKEN)
        return principal

    def _known_principal(self, token: str) -> Principal:
        known = self._verified.get(token)
        # A withdrawn key invalidates its tokens.
        if known is None or self._verifier(known.kid) is not known.verifier:
            return self._verified_principal(token)
        principal = known.principal
        if self._clock() >= principal.expires_at + self._requirements.leeway_s:
            del self._verified[token]
            raise Unauthenticated(BAD_TOKEN)
        return principal

    def _verified_principal(self, token: str) -> Principal:
        if not token:
            raise Unauthenticated(NO_TOKEN)
        try:
            verified = self._verify(token)
        except _UNFIT as error:
            self._verified.pop(token, None)
            # For the operator alone: the answer is the same for every bad token.
            log.info("token.refused", reason=reason_of(error))
            # `from None`: the cause quotes the token, and must reach no log.
            raise Unauthenticated(BAD_TOKEN) from None
        self._verified[token] = verified

        return verified.principal

    def _verify(self, token: str) -> "_Verified":
        _check_form(token)
        header = header_in(token)
        self._requirements.check_header(header)
        verifier = self._verifier(header.kid)
        if verifier is None:
            raise Unfit("kid: no key of that name")
        require(header.alg == verifier.algorithm, "alg is not that of the key")
        payload = verifier.payload_of(token)
        principal = self._requirements.principal_in(payload, self._clock())
        if not principal.token_id:
            principal = msgspec.structs.replace(principal, token_id=id_of_token(token))

        return _Verified(principal, header.kid, verifier)

    def _verifier(self, kid: str) -> Verifier | None:
        # A configured key is never replaced by a published one.
        own = self._verifiers.get(kid)
        if own is None and self._published is not None:
            return self._published.verifier(kid)
        return own


class _Verified(NamedTuple):
    principal: Principal
    kid: str
    verifier: Verifier


def mint(
    key_material: str,
    *,
    algorithm: Algorithm = "HS256",
    name: str,
    role: Claimed,
    issuer: str,
    audience: str,
    ttl_s: float,
    now: float,
    kid: str = "",
    tenant: str = "",
) -> str:
    """
    A token for development and tests; *key_material* is a secret or private PEM.

    Raises:
        Invalid: *name* or *tenant* is no valid name, or *ttl_s* is too long.
        ValueError: the material does not suit the algorithm.
    """
    if now + ttl_s >= END_OF_TIME_S:
        raise Invalid(f"ttl_s is {ttl_s}: beyond the calendar", field="ttl_s")
    who = {"sub": check_name(name, "name"), "role": role, "iss": issuer}
    if tenant:
        who["tenant"] = check_short_name(tenant, "tenant")
    claims = {**who, "aud": audience, "iat": int(now), "exp": int(now + ttl_s)}

    return signed(claims, key_material, algorithm, kid)


def _check_form(token: str) -> None:
    require(len(token) <= MAX_TOKEN_BYTES, f"more than {MAX_TOKEN_BYTES} bytes")
    require(_COMPACT.fullmatch(token) is not None, "no compact JWT of three parts")


def _kid_in(token: str) -> str:
    """
    The `kid` of *token*; empty if it is no token.
    """
    try:
        _check_form(token)
        return header_in(token).kid
    except _UNFIT:
        return ""


def _verifiers(keys: Sequence[Key], *, alone: bool) -> dict[str, Verifier]:
    by_kid = {key.kid: Verifier(key) for key in keys}
    if len(by_kid) < len(keys):
        raise ValueError(f"{len(keys)} keys; wanted each of its own kid")
    if len(keys) == 1 and alone:
        # A token without kid is verified with the only key.
        by_kid[""] = by_kid[keys[0].kid]
    return by_kid
