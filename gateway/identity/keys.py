"""
Keys and signatures: the one file with PyJWT.

A key is pinned to one algorithm. Its tokens may use no other, whatever their header
says (RFC 8725 sections 3.1 and 3.2).
"""

import json
from typing import Any, Literal, get_args

import jwt
import msgspec

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: as long as the hash

_JWS = jwt.PyJWS(ALGORITHMS, {"enforce_minimum_key_length": True})


class Key(msgspec.Struct, frozen=True):
    """
    A key for verifying tokens; its material is never shown.

    Attributes:
        algorithm: the only one for tokens under this key.
        material: HS256's secret, at least MIN_SECRET_BYTES; else a public key, in
            PEM or as a JWK (RFC 7517).
        kid: its id in tokens; empty for tokens without `kid`.

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


class Verifier:
    """
    A prepared key and its one algorithm; shows neither.
    """

    def __init__(self, key: Key) -> None:
        self.algorithm = key.algorithm
        self._key = _prepared(key)

    def payload_of(self, token: str) -> bytes:
        """
        The payload of *token*, with its signature verified.

        Raises:
            ValueError: it is not signed with this key.
        """
        try:
            whole = _JWS.decode_complete(token, self._key, [self.algorithm])
        except jwt.PyJWTError as error:
            raise ValueError("signature") from error
        payload: bytes = whole["payload"]

        return payload


def signed(
    claims: dict[str, Any], material: str, algorithm: Algorithm, kid: str = ""
) -> str:
    """
    A token with *claims*; *material* is a secret or private PEM.

    Raises:
        ValueError: the material does not suit the algorithm.
    """
    if algorithm == "HS256":
        _check_secret(material, kid)
    header = {"kid": kid} if kid else {}
    try:
        return _JWS.encode(json.dumps(claims).encode(), material, algorithm, header)
    except jwt.PyJWTError as error:
        raise ValueError(f"the material is no private {algorithm} key") from error


def _prepared(key: Key) -> Any:  # one of PyJWT's key types
    if key.algorithm not in ALGORITHMS:
        raise ValueError(f"key {key.kid!r}: {key.algorithm!a}; one of {ALGORITHMS}")
    if key.algorithm == "HS256":
        _check_secret(key.material, key.kid)
    elif "-----BEGIN PUBLIC KEY-----" not in key.material and not _is_jwk(key):
        raise ValueError(
            f"key {key.kid!r}: {key.algorithm} verifies with a public key in PEM; "
            "make it by `openssl pkey -in private.pem -pubout`"
        )
    algorithm = _JWS.get_algorithm_by_name(key.algorithm)
    try:
        material: Any = key.material
        if _is_jwk(key):
            material = algorithm.from_jwk(material)
        prepared = algorithm.prepare_key(material)
    except (ValueError, jwt.PyJWTError):
        raise ValueError(f"key {key.kid!r}: this is no {key.algorithm} key") from None
    weakness = algorithm.check_key_length(prepared)
    if weakness:
        raise ValueError(f"key {key.kid!r}: {weakness}")
    return prepared


def _is_jwk(key: Key) -> bool:
    return key.algorithm != "HS256" and key.material.startswith("{")


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
