"""
Who asks: the one place where tokens are judged, and the one file with PyJWT.

The rules are RFC 8725's. A key is pinned to one algorithm, `kid` only selects
among the configured keys, nothing a token names is ever fetched, and every bad
token is refused with the same words, so that a forger learns nothing.
"""

import base64
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jwt
import msgspec

from bus.errors import Invalid, Unauthenticated
from bus.keys import GATEWAY
from bus.messages import check_name

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
# What a token may claim.
Claimed = Literal["user", "mad", "operator", "admin"]
# The gateway's own commands have a role that no token can claim.
Role = Claimed | Literal["gateway"]

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
MAX_TOKEN_BYTES = 8 * 1024
MAX_VERIFIED = 10_000  # tokens remembered, the least recently used goes first
MAX_LEEWAY_S = 30
MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: as long as the hash

NO_TOKEN = "no token; send the JWT of the principal who asks"  # noqa: S105 - words
BAD_TOKEN = "the token is not valid here; get a new one from your issuer"  # noqa: S105

_JWS = jwt.PyJWS(ALGORITHMS, {"enforce_minimum_key_length": True})
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = frozenset({"jwt", "at+jwt"})
# Each changes what the signed bytes mean, and we understand none of them.
_REFUSED_HEADERS = frozenset({"crit", "b64", "zip", "enc"})
# All that parsing and verifying hostile bytes may raise.
_UNFIT = (ValueError, RecursionError, jwt.PyJWTError, msgspec.MsgspecError, Invalid)


class Key(msgspec.Struct, frozen=True):
    """
    One key that tokens are verified with; its material is never shown.

    Attributes:
        algorithm: the only one that tokens under this key may use.
        material: HS256's secret, at least MIN_SECRET_BYTES; else a public PEM.
        kid: what selects it; empty for tokens that carry no `kid`.

    Raises:
        ValueError: the material does not suit the algorithm.
    """

    algorithm: Algorithm
    material: str
    kid: str = ""

    def __post_init__(self) -> None:
        _prepared(self)

    def __repr__(self) -> str:
        return f"Key(algorithm={self.algorithm!r}, kid={self.kid!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # rich prints locals in tracebacks, and msgspec would show every field.
        return [("algorithm", self.algorithm), ("kid", self.kid)]


class Principal(msgspec.Struct, frozen=True):
    """
    Who asks, as a verified token says.

    Attributes:
        name: the token's `sub`.
        expires_at: the token's `exp`, in seconds since 1970.
    """

    name: str
    role: Role
    expires_at: float


GATEWAY_PRINCIPAL = Principal(GATEWAY, "gateway", math.inf)


class Identity:
    """
    Turns tokens into principals; each token is verified once, then remembered.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        issuer: str,
        audience: str,
        *,
        leeway_s: float = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Accept tokens of *issuer* for *audience*, signed with one of *keys*.

        Clocks may differ by *leeway_s*, 0 to MAX_LEEWAY_S; *clock* tells seconds
        since 1970.

        Raises:
            ValueError: no keys, two of one kid, or an empty or unfit setting.
        """
        if not 0 <= leeway_s <= MAX_LEEWAY_S:
            raise ValueError(f"leeway_s is {leeway_s}; 0 to {MAX_LEEWAY_S}")
        if not issuer or not audience:
            raise ValueError("issuer and audience must be set, or any token would do")
        self._verifiers = _verifiers(keys)
        self._issuer, self._audience = issuer, audience
        self._leeway_s = leeway_s
        self._clock = clock
        self._verified: OrderedDict[str, Principal] = OrderedDict()

    def principal_of(self, token: str) -> Principal:
        """
        Who asks with *token*; verified at first sight, remembered until expiry.

        Raises:
            Unauthenticated: with the same words for every kind of bad token.
        """
        known = self._verified.get(token)
        if known is None:
            return self._admitted(token)
        if self._clock() >= known.expires_at + self._leeway_s:
            del self._verified[token]
            raise Unauthenticated(BAD_TOKEN)
        self._verified.move_to_end(token)

        return known

    def _admitted(self, token: str) -> Principal:
        if not token:
            raise Unauthenticated(NO_TOKEN)
        try:
            principal = self._judged(token)
        except _UNFIT:
            # `from None`: the cause quotes the token, and must reach no log.
            raise Unauthenticated(BAD_TOKEN) from None
        self._verified[token] = principal
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)

        return principal

    def _judged(self, token: str) -> Principal:
        _require(len(token) <= MAX_TOKEN_BYTES, "size")
        _require(_COMPACT.fullmatch(token) is not None, "form")
        header = _header(token.partition(".")[0])
        _require(header.kid in self._verifiers, "kid")
        pinned, key = self._verifiers[header.kid]
        _require(header.alg == pinned, "alg")
        # The allow-list is the key's one algorithm, never what the token says.
        signed = _JWS.decode_complete(token, key, [pinned])
        claims = msgspec.convert(_json(signed["payload"]), _Claims)

        return self._principal(claims)

    def _principal(self, claims: "_Claims") -> Principal:
        now = self._clock()
        meant_for = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        _require(claims.iss == self._issuer, "iss")
        _require(self._audience in meant_for, "aud")
        _require(now < claims.exp + self._leeway_s, "exp")
        _require(max(claims.iat, claims.nbf) <= now + self._leeway_s, "iat, nbf")

        return Principal(check_name(claims.sub, "sub"), claims.role, claims.exp)


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
) -> str:
    """
    A token for development and tests; *key_material* is a secret or private PEM.

    Raises:
        Invalid: *name* cannot name a principal.
        ValueError: the material does not suit the algorithm.
    """
    if algorithm == "HS256":
        _check_secret(key_material, kid)
    who = {"sub": check_name(name, "name"), "role": role, "iss": issuer}
    claims = {**who, "aud": audience, "iat": int(now), "exp": int(now + ttl_s)}
    payload = json.dumps(claims).encode()
    try:
        return _JWS.encode(
            payload, key_material, algorithm, {"kid": kid} if kid else {}
        )
    except jwt.PyJWTError as error:
        raise ValueError(f"the material is no private {algorithm} key") from error


class _Header(msgspec.Struct, frozen=True):
    alg: str
    typ: str = "JWT"
    kid: str = ""


class _Claims(msgspec.Struct, frozen=True):
    exp: float
    iss: str
    aud: str | list[str]
    sub: str
    role: Claimed
    iat: float = 0.0
    nbf: float = 0.0


def _verifiers(keys: Sequence[Key]) -> dict[str, tuple[Algorithm, Any]]:
    by_kid = {key.kid: (key.algorithm, _prepared(key)) for key in keys}
    if not keys or len(by_kid) < len(keys):
        raise ValueError(f"{len(keys)} keys; wanted one or more, each of its own kid")
    if len(keys) == 1:
        # A token without kid is meant for the only key there is.
        by_kid[""] = by_kid[keys[0].kid]
    return by_kid


def _prepared(key: Key) -> Any:  # one of PyJWT's key types
    if key.algorithm not in ALGORITHMS:
        raise ValueError(f"key {key.kid!r}: {key.algorithm!a}; one of {ALGORITHMS}")
    if key.algorithm == "HS256":
        _check_secret(key.material, key.kid)
    elif "-----BEGIN PUBLIC KEY-----" not in key.material:
        raise ValueError(
            f"key {key.kid!r}: {key.algorithm} verifies with a public key in PEM; "
            "make it by `openssl pkey -in private.pem -pubout`"
        )
    algorithm = _JWS.get_algorithm_by_name(key.algorithm)
    try:
        prepared = algorithm.prepare_key(key.material)
    except (ValueError, jwt.PyJWTError):
        raise ValueError(f"key {key.kid!r}: this is no {key.algorithm} key") from None
    weakness = algorithm.check_key_length(prepared)
    if weakness:
        raise ValueError(f"key {key.kid!r}: {weakness}")
    return prepared


def _check_secret(secret: str, kid: str) -> None:
    if "-----BEGIN" in secret:
        raise ValueError(
            f"key {kid!r}: HS256 takes a secret, and this is a PEM, which may be "
            "public; use RS256, ES256 or EdDSA with it"
        )
    size = len(secret.encode())
    if size < MIN_SECRET_BYTES:
        raise ValueError(
            f"key {kid!r}: an HS256 secret of {size} bytes; {MIN_SECRET_BYTES} or "
            "more are needed: make one by `openssl rand -hex 32`"
        )


def _header(segment: str) -> _Header:
    fields = _json(base64.urlsafe_b64decode(segment + "=="))
    header = msgspec.convert(fields, _Header)
    _require(header.typ.lower() in _TYPES, "typ")
    _require(_REFUSED_HEADERS.isdisjoint(fields), "crit, b64, zip, enc")
    return header


def _json(text: bytes) -> Any:  # JSON values
    # json.loads would take UTF-16, NaN, 1e999 and the last of two equal keys.
    rules: Any = {"parse_float": _finite, "parse_constant": _finite}
    return json.loads(text.decode(), object_pairs_hook=_unique, **rules)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # JSON values
    fields = dict(pairs)
    _require(len(fields) == len(pairs), "duplicate")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    _require(math.isfinite(value), "number")
    return value


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
