"""
Who asks: the one place where tokens are judged.

The rules are RFC 8725's. `kid` only selects among the known keys, nothing a token
names is ever fetched, and every bad token is refused with the same words, so that a
forger learns nothing.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from bus.errors import Invalid, Unauthenticated
from bus.messages import check_name
from gateway.identity.claims import END_OF_TIME_S, Terms, header_in, require
from gateway.identity.jwks import PublishedKeys
from gateway.identity.keys import Algorithm, Key, Verifier, signed
from gateway.identity.principal import Claimed, Principal

MAX_TOKEN_BYTES = 8 * 1024
MAX_VERIFIED = 10_000  # tokens remembered, the least recently used goes first
MAX_LEEWAY_S = 30

NO_TOKEN = "no token; send the JWT of the principal who asks"  # noqa: S105 - words
BAD_TOKEN = "the token is not valid here; get a new one from your issuer"  # noqa: S105

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# All that parsing and verifying hostile bytes may raise.
_UNFIT = (ValueError, RecursionError, msgspec.MsgspecError, Invalid)


class Identity:
    """
    Turns tokens into principals; each token is verified once, then remembered for as
    long as its key counts.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        issuer: str,
        audience: str,
        *,
        published: PublishedKeys | None = None,
        leeway_s: float = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Accept tokens of *issuer* for *audience*, signed with one of *keys* or, for
        any other `kid`, of *published*.

        Clocks may differ by *leeway_s*, 0 to MAX_LEEWAY_S; *clock* tells seconds
        since 1970.

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
        self._terms = Terms(issuer, audience, leeway_s)
        self._clock = clock
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    async def admit(self, token: str) -> Principal:
        """
        Who asks with *token*, looking for its key first, should that be needed.

        Raises:
            Unauthenticated: with the same words for every kind of bad token.
            Unavailable: its key cannot be looked for now.
        """
        if self._published is not None:
            kid = _kid_in(token)
            if kid and kid not in self._verifiers:
                await self._published.look_for(kid)
        return self.principal_of(token)

    async def ready(self) -> bool:
        """
        Whether there is a key to verify tokens with now.
        """
        if self._published is None or self._verifiers:
            return True
        return await self._published.ready()

    def principal_of(self, token: str) -> Principal:
        """
        Who asks with *token*; verified at first sight, remembered until expiry.

        Raises:
            Unauthenticated: with the same words for every kind of bad token.
        """
        known = self._verified.get(token)
        # A key that is published no more takes its tokens along.
        if known is None or self._verifier(known.kid) is not known.verifier:
            return self._admitted(token)
        principal = known.principal
        if self._clock() >= principal.expires_at + self._terms.leeway_s:
            del self._verified[token]
            raise Unauthenticated(BAD_TOKEN)
        self._verified.move_to_end(token)

        return principal

    def _admitted(self, token: str) -> Principal:
        if not token:
            raise Unauthenticated(NO_TOKEN)
        try:
            verified = self._judged(token)
        except _UNFIT:
            self._verified.pop(token, None)
            # `from None`: the cause quotes the token, and must reach no log.
            raise Unauthenticated(BAD_TOKEN) from None
        self._verified[token] = verified
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)

        return verified.principal

    def _judged(self, token: str) -> "_Verified":
        _check_form(token)
        header = header_in(token)
        verifier = self._verifier(header.kid)
        if verifier is None:
            raise ValueError("kid")
        require(header.alg == verifier.algorithm, "alg")
        payload = verifier.payload_of(token)
        principal = self._terms.principal_in(payload, self._clock())

        return _Verified(principal, header.kid, verifier)

    def _verifier(self, kid: str) -> Verifier | None:
        # A key of our own is never replaced by a published one.
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
        Invalid: *name* or *tenant* cannot be one, or it would last too long.
        ValueError: the material does not suit the algorithm.
    """
    if now + ttl_s >= END_OF_TIME_S:
        raise Invalid(f"ttl_s is {ttl_s}: beyond the calendar", field="ttl_s")
    who = {"sub": check_name(name, "name"), "role": role, "iss": issuer}
    if tenant:
        who["tenant"] = check_name(tenant, "tenant")
    claims = {**who, "aud": audience, "iat": int(now), "exp": int(now + ttl_s)}

    return signed(claims, key_material, algorithm, kid)


def _check_form(token: str) -> None:
    require(len(token) <= MAX_TOKEN_BYTES, "size")
    require(_COMPACT.fullmatch(token) is not None, "form")


def _kid_in(token: str) -> str:
    """
    The `kid` that *token* names; empty for what is no token.
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
        # A token without kid is meant for the only key there is.
        by_kid[""] = by_kid[keys[0].kid]
    return by_kid
