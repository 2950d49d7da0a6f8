"""
Tokens by hand: honest ones, and forged ones that differ from them in one way.
"""

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from everbus.bus.messages import MAX_TOKEN_BYTES
from everbus.gateway.identity.keys import Key
from everbus.gateway.identity.tokens import mint

NOW = 1_800_000_000.0
LEEWAY_S = 5
PEM_CODING = serialization.Encoding.PEM
ISSUER, AUDIENCE = "https://issuer.example", "everbus"
SECRET = "a-secret-of-forty-bytes-0123456789abcdef"

Signer = Callable[[bytes], bytes]
Fields = dict[str, Any]
# Subjects of tokens as common issuers give them.
ISSUED_NAMES = [
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "system:serviceaccount:ns:agent",
    "ada+x@example.com",
    "https://issuer.example/users/7",
    "CN=ada,DC=example",
    "EXAMPLE\\ada",
    "+4930123456",
    "J\u00fcrgen_\u674e",
    "\u0430da",
    "a" * 255,
]


def public_pem(private: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(PEM_CODING, form).decode()


def private_pem(private: Any) -> str:
    form, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return private.private_bytes(PEM_CODING, form, bare).decode()


RSA, FOREIGN_RSA = (rsa.generate_private_key(65537, 2048) for _ in "ab")
EC, FOREIGN_EC = (ec.generate_private_key(ec.SECP256R1()) for _ in "ab")
ED, FOREIGN_ED = (ed25519.Ed25519PrivateKey.generate() for _ in "ab")
PRIVATE = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
PEM = {name: public_pem(private) for name, private in PRIVATE.items()}
PUBLIC_KEYS = [Key(name, PEM[name], name[:2].lower()) for name in PEM]
KEYS = [Key("HS256", SECRET, "hs"), *PUBLIC_KEYS]


def by_secret(secret: str, digest: str = "sha256") -> Signer:
    return lambda text: hmac.digest(secret.encode(), text, digest)


def by_rsa(key: Any) -> Signer:
    return lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA256())


def by_pss(key: Any) -> Signer:
    salted = padding.PSS(padding.MGF1(hashes.SHA256()), 32)

    return lambda text: key.sign(text, salted, hashes.SHA256())


def by_ec_der(key: Any) -> Signer:
    return lambda text: key.sign(text, ec.ECDSA(hashes.SHA256()))


def by_ec(key: Any) -> Signer:
    return lambda text: b"".join(
        part.to_bytes(32, "big") for part in decode_dss_signature(by_ec_der(key)(text))
    )


def number(value: int, size: int = 0) -> str:
    """
    As RFC 7518 writes numbers.
    """
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def jwk_of(kid: str, private: Any, **changes: Any) -> Fields:
    """
    The public key as a JWK, all that may be told of it included.
    """
    public = private.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        n, e = public.public_numbers().n, public.public_numbers().e
        told = {"kty": "RSA", "alg": "RS256", "n": number(n), "e": number(e)}
    elif isinstance(public, ec.EllipticCurvePublicKey):
        x, y = public.public_numbers().x, public.public_numbers().y
        told = {"kty": "EC", "crv": "P-256", "alg": "ES256"}
        size = (public.curve.key_size + 7) // 8
        told |= {"x": number(x, size), "y": number(y, size)}
    else:
        told = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA"}
        told |= {"x": b64(public.public_bytes_raw())}
    whole = {"kid": kid, "use": "sig", "key_ops": ["verify"], **told, **changes}

    return {name: value for name, value in whole.items() if value is not ...}


def jwks_of(*jwks: Any) -> bytes:
    return json.dumps({"keys": list(jwks)}).encode()


HONESTLY = by_secret(SECRET)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_json(fields: Fields | bytes) -> bytes:
    """
    The fields that are there; `...` stands for a field left out.
    """
    if isinstance(fields, bytes):
        return fields
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


def head(**changes: Any) -> Fields:
    return {"alg": "HS256", "typ": "JWT", "kid": "hs", **changes}


def claims(**changes: Any) -> Fields:
    honest = {"sub": "ada", "role": "user", "iss": ISSUER, "aud": AUDIENCE}
    return {**honest, "iat": NOW, "exp": NOW + 60, **changes}


def seal(text: str, sign: Signer = HONESTLY) -> str:
    return f"{text}.{b64(sign(text.encode()))}"


def forge(
    header: Fields | bytes | None = None,
    payload: Fields | bytes | None = None,
    sign: Signer = HONESTLY,
) -> str:
    first, second = raw_json(header or head()), raw_json(payload or claims())
    return seal(f"{b64(first)}.{b64(second)}", sign)


def with_header(**changes: Any) -> str:
    return forge(head(**changes))


def with_claims(**changes: Any) -> str:
    return forge(payload=claims(**changes))


def with_json(old: str, new: str) -> str:
    text = raw_json(claims()).decode()
    assert old in text
    return forge(payload=text.replace(old, new, 1).encode())


def near_limit() -> tuple[str, str]:
    """
    Honest tokens of just at most, and just over, the allowed size.
    """
    sized = [with_claims(pad="x" * n) for n in range(5800, 6000)]
    over = next(n for n, token in enumerate(sized) if len(token) > MAX_TOKEN_BYTES)
    return sized[over - 1], sized[over]


def unaligned(fields: Fields) -> str:
    """
    A segment that padding could follow, and whose last character has unused bits.
    """
    padded = (b64(raw_json({**fields, "x": "y" * n})) for n in range(3))
    return next(segment for segment in padded if len(segment) % 4)


def bumped(segment: str) -> str:
    """
    The segment with an unused bit set: lax decoders see no difference.
    """
    return segment[:-1] + chr(ord(segment[-1]) + 1)


HONEST = forge()
FIRST, SECOND, THIRD = HONEST.split(".")
ED_TOKEN = forge(head(alg="EdDSA", kid="ed"), sign=ED.sign)
RS, ES, EDDSA = ({"alg": a, "kid": a[:2].lower()} for a in ("RS256", "ES256", "EdDSA"))
OWN_JWK = {"kty": "oct", "k": b64(b"k" * 32)}
PADDABLE = unaligned(head())
PADDING = "=" * (-len(PADDABLE) % 4)
WEAK_RSA = public_pem(rsa.generate_private_key(65537, 1024))  # noqa: S505 - refused
EVIL = "https://evil.example"


class Clock:
    """
    Stands still until it is set.
    """

    now = NOW

    def __call__(self) -> float:
        return self.now


def minted(algorithm: Any = "HS256", kid: str = "hs", **changes: Any) -> str:
    material = private_pem(PRIVATE[algorithm]) if algorithm in PRIVATE else SECRET
    wanted = {"name": "ada", "role": "user", "issuer": ISSUER, "audience": AUDIENCE}
    wanted |= {"ttl_s": 60, "now": NOW} | changes

    return mint(material, algorithm=algorithm, kid=kid, **wanted)
