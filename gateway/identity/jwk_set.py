"""
A published JWK Set (RFC 7517) and its usable keys.

A usable key would be acceptable in our configuration, too: public, for signatures, of
one of three types, each for one algorithm. Others are skipped, as section 5 demands.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import structlog

from everbus.gateway.identity.claims import require
from everbus.gateway.identity.keys import Algorithm, Key
from everbus.gateway.identity.strict_json import strict_json

log = structlog.get_logger()

MAX_KEYS = 100
MAX_KID = 256
# 8,192 bits of modulus, 32 of exponent: verifying with larger ones is slow.
_MAX_N, _MAX_E = 1366, 6

_JWK = dict[str, Any]  # JSON values
_SECRET = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class _KeyType(NamedTuple):
    """
    Allowed use, algorithm and parameters of a key type.
    """

    algorithm: Algorithm
    alg_names: tuple[str, ...]
    members: tuple[str, ...]


# By `kty` and `crv`; RFC 9864 names EdDSA with this curve Ed25519.
_KEY_TYPES = {
    ("RSA", None): _KeyType("RS256", ("RS256",), ("n", "e")),
    ("EC", "P-256"): _KeyType("ES256", ("ES256",), ("x", "y")),
    ("OKP", "Ed25519"): _KeyType("EdDSA", ("EdDSA", "Ed25519"), ("x",)),
}


def keys_in(text: bytes) -> dict[str, Key]:
    """
    The usable keys of a JWK Set, by `kid`; unusable ones are logged.

    Raises:
        ValueError: *text* is no JWK Set, or has no usable key.
        RecursionError: nested too deep.
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
    key_type = _key_type_of(jwk)
    require(_SECRET.isdisjoint(jwk), "it shows its private part; withdraw it")
    require(jwk.get("use", "sig") == "sig", "use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    can_verify = isinstance(operations, list) and "verify" in operations
    require(can_verify, "key_ops has no verify")
    material = {"kty": jwk["kty"]} | ({"crv": jwk["crv"]} if "crv" in jwk else {})
    for name in key_type.members:
        require(isinstance(jwk.get(name), str), f"{name} is not text")
        material[name] = jwk[name]
    too_big = len(material.get("n", "")) > _MAX_N or len(material.get("e", "")) > _MAX_E
    require(not too_big, "it is too big")

    return Key(key_type.algorithm, msgspec.json.encode(material).decode(), kid)


def _key_type_of(jwk: _JWK) -> _KeyType:
    # Compared, not looked up: the given values need not be hashable.
    given = (jwk.get("kty"), jwk.get("crv"))
    key_type = next((_KEY_TYPES[known] for known in _KEY_TYPES if known == given), None)
    if key_type is None:
        raise ValueError("kty and crv are none of RSA, EC P-256 and OKP Ed25519")
    alg = jwk.get("alg")
    if alg is not None and alg not in key_type.alg_names:
        raise ValueError(f"alg is not {key_type.algorithm}")
    return key_type
