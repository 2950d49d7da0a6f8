"""
A JWK Set (RFC 7517) as an issuer publishes it, and the keys in it that we use.

Only what we would accept as a key of our own counts: public, for signatures, of one of
three kinds, each for one algorithm. Others are left out, as section 5 has it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import structlog

from gateway.identity.claims import require
from gateway.identity.keys import Algorithm, Key
from gateway.identity.strict_json import strict_json

log = structlog.get_logger()

MAX_KEYS = 100
MAX_KID = 256
# 8,192 bits of modulus, 32 of exponent: beyond, verifying takes long.
_MAX_N, _MAX_E = 1366, 6

_JWK = dict[str, Any]  # JSON values
_SECRET = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class _Kind(NamedTuple):
    """
    What a key of one kind is for, what it may call that, and what it consists of.
    """

    algorithm: Algorithm
    names: tuple[str, ...]
    members: tuple[str, ...]


# By `kty` and `crv`; RFC 9864 calls EdDSA with this curve Ed25519.
_KINDS = {
    ("RSA", None): _Kind("RS256", ("RS256",), ("n", "e")),
    ("EC", "P-256"): _Kind("ES256", ("ES256",), ("x", "y")),
    ("OKP", "Ed25519"): _Kind("EdDSA", ("EdDSA", "Ed25519"), ("x",)),
}


def keys_in(text: bytes) -> dict[str, Key]:
    """
    The usable keys of a JWK Set, by `kid`; those that are not are logged.

    Raises:
        ValueError: *text* is no such set, or has no usable key.
        RecursionError: it is too deep.
    """
    whole = strict_json(text)
    listed = whole.get("keys") if isinstance(whole, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"no JWK Set of at most {MAX_KEYS} keys")
    found = list(_usable(listed))
    counts = Counter(key.kid for key in found)
    for kid in (kid for kid, count in counts.items() if count > 1):
        log.warning("jwks.key_refused", kid=kid, reason="more than one has this kid")
    keys = {key.kid: key for key in found if counts[key.kid] == 1}
    if not keys:
        raise ValueError(f"none of {len(listed)} keys can be used")

    return keys


def _usable(listed: list[Any]) -> Iterator[Key]:
    for jwk in listed:
        try:
            require(isinstance(jwk, dict), "it is no object")
            yield _key_of(jwk)
        except ValueError as error:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            log.warning("jwks.key_refused", kid=ascii(kid)[:80], reason=str(error))


def _key_of(jwk: _JWK) -> Key:
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID:
        raise ValueError(f"kid is not text of 1 to {MAX_KID} characters")
    kind = _kind_of(jwk)
    require(_SECRET.isdisjoint(jwk), "it shows its private part; withdraw it")
    require(jwk.get("use", "sig") == "sig", "use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    can_verify = isinstance(operations, list) and "verify" in operations
    require(can_verify, "key_ops has no verify")
    material = {"kty": jwk["kty"]} | ({"crv": jwk["crv"]} if "crv" in jwk else {})
    for name in kind.members:
        require(isinstance(jwk.get(name), str), f"{name} is not text")
        material[name] = jwk[name]
    too_big = len(material.get("n", "")) > _MAX_N or len(material.get("e", "")) > _MAX_E
    require(not too_big, "it is too big")

    return Key(kind.algorithm, msgspec.json.encode(material).decode(), kid)


def _kind_of(jwk: _JWK) -> _Kind:
    # Compared, not looked up: what is told need not be hashable.
    told = (jwk.get("kty"), jwk.get("crv"))
    kind = next((_KINDS[known] for known in _KINDS if known == told), None)
    if kind is None:
        raise ValueError("kty and crv are none of RSA, EC P-256 and OKP Ed25519")
    alg = jwk.get("alg")
    if alg is not None and alg not in kind.names:
        raise ValueError(f"alg is not {kind.algorithm}")
    return kind
