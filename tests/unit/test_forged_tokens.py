"""
Forged tokens: each is refused like any other, whichever way its key is known.

Each differs from an honest token in one way; the honest ones are made by the same
code and accepted (`test_tokens.py`), so no forgery is refused by accident.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from everbus.bus.errors import Unauthenticated
from everbus.gateway.identity.claims import END_OF_TIME_S
from everbus.gateway.identity.jwks import PublishedKeys
from everbus.gateway.identity.keys import Key, Verifier
from everbus.gateway.identity.tokens import BAD_TOKEN, Identity
from tests.unit.forging import (
    AUDIENCE,
    EC,
    ED,
    EDDSA,
    ES,
    EVIL,
    FIRST,
    FOREIGN_EC,
    FOREIGN_ED,
    FOREIGN_RSA,
    HONEST,
    ISSUER,
    KEYS,
    LEEWAY_S,
    NOW,
    OWN_JWK,
    PADDABLE,
    PADDING,
    PEM,
    PRIVATE,
    PUBLIC_KEYS,
    RS,
    RSA,
    SECOND,
    SECRET,
    THIRD,
    Clock,
    Signer,
    b64,
    bumped,
    by_ec,
    by_ec_der,
    by_pss,
    by_rsa,
    by_secret,
    claims,
    forge,
    head,
    jwk_of,
    jwks_of,
    minted,
    near_limit,
    raw_json,
    seal,
    unaligned,
    with_claims,
    with_header,
    with_json,
)

# The order of P-256 (NIST SP 800-186, section 3.2.1.3).
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# What a refusal may take; verifying one signature takes a tenth of a millisecond.
SOON_S = 0.02


def ssh_key(private: Any) -> str:
    form = serialization.PublicFormat.OpenSSH
    coding = serialization.Encoding.OpenSSH

    return private.public_key().public_bytes(coding, form).decode()


def es_parts(change: Callable[[int, int], tuple[int, int]]) -> Signer:
    """
    An ES256 signature whose two numbers are changed.
    """

    def sign(text: bytes) -> bytes:
        parts = change(*decode_dss_signature(by_ec_der(EC)(text)))
        return b"".join(part.to_bytes(32, "big") for part in parts)

    return sign


def issued(**changes: Any) -> str:
    return with_claims(iss=next(iter(changes.values())))


def each(name: str, make: Callable[..., str], *values: Any) -> dict[str, str]:
    """
    One token for each value of the header or claim called *name*.
    """
    shown = {("absent" if v is ... else ascii(v)[:40]): v for v in values}
    return {f"{name} {text}": make(**{name: v}) for text, v in shown.items()}


SIGNATURES = {
    f"alg {alg!r} without signature": f"{b64(raw_json(head(alg=alg)))}.{SECOND}."
    for alg in ("none", "None", "NONE", "nOnE")
} | {
    "alg absent": with_header(alg=...),
    "alg empty, kid unknown": with_header(alg="", kid="other"),
    "alg HS512": forge(head(alg="HS512"), sign=by_secret(SECRET, "sha512")),
    "HS256 by the public RSA PEM": forge(head(kid="rs"), sign=by_secret(PEM["RS256"])),
    "HS256 by the public EC PEM": forge(head(kid="es"), sign=by_secret(PEM["ES256"])),
    "HS256 by the public Ed PEM": forge(head(kid="ed"), sign=by_secret(PEM["EdDSA"])),
    "HS256 by the PEM, secret's kid": forge(sign=by_secret(PEM["RS256"])),
    # CVE-2026-48523: the header named an allowed algorithm, the key used its own.
    "CVE-2026-48523, ES256": forge(head(alg="ES256", kid="rs"), sign=by_rsa(RSA)),
    "CVE-2026-48523, HS256": forge(head(alg="HS256", kid="rs"), sign=by_rsa(RSA)),
    "CVE-2026-48526, HS256 by the public JWK": forge(
        head(kid="rs"), sign=by_secret(json.dumps(jwk_of("rs", RSA)))
    ),
    "CVE-2022-29217, HS256 by the public SSH key": forge(
        head(kid="ed"), sign=by_secret(ssh_key(ED))
    ),
    "HS256 by another secret": forge(sign=by_secret("x" * 40)),
    "RS256 by another key": forge(head(**RS), sign=by_rsa(FOREIGN_RSA)),
    "ES256 by another key": forge(head(**ES), sign=by_ec(FOREIGN_EC)),
    "EdDSA by another key": forge(head(**EDDSA), sign=FOREIGN_ED.sign),
    "CVE-2022-21449, ES256 r and s are 0": forge(head(**ES), sign=lambda t: bytes(64)),
    "ES256 r is 0": forge(head(**ES), sign=es_parts(lambda r, s: (0, s))),
    "ES256 s is 0": forge(head(**ES), sign=es_parts(lambda r, s: (r, 0))),
    "ES256 r is the order": forge(head(**ES), sign=es_parts(lambda r, s: (ORDER, s))),
    "ES256 r and s swapped": forge(head(**ES), sign=es_parts(lambda r, s: (s, r))),
    "ES256 too long": forge(head(**ES), sign=lambda t: by_ec(EC)(t) + b"\0"),
    "PS256 under RS256": forge(head(**RS), sign=by_pss(RSA)),
    "alg PS256": forge(head(alg="PS256", kid="rs"), sign=by_pss(RSA)),
    "ES256 signature in DER": forge(head(**ES), sign=by_ec_der(EC)),
    "EdDSA zero signature": forge(head(**EDDSA), sign=lambda t: bytes(64)),
    "RS256 zero signature": forge(head(**RS), sign=lambda t: bytes(256)),
    "HS256 half a signature": forge(sign=lambda t: by_secret(SECRET)(t)[:16]),
    "payload of another token": f"{FIRST}.{b64(raw_json(claims(sub='eve')))}.{THIRD}",
}
HEADERS = {
    **each("alg", with_header, "none", "", None, ["HS256"], "hs256"),
    **each("kid", with_header, ..., "", "other", ["hs"], {"hs": 1}, 0, None, "hs\0"),
    **each("kid", with_header, "hs' UNION SELECT 'x", "hs; sleep 9", EVIL),
    **each("kid", with_header, "/etc/passwd", "..%2f..%2fhs", "hs/../hs", " hs", "HS"),
    **each(
        "kid", with_header, "hs\n", "hs|cat /dev/zero", "${jndi:ldap://x}", "k" * 300
    ),
    **each("typ", with_header, "application/json", "JWT ", "jwt\0"),
    **each("typ", with_header, "id_token", "JOSE", "secevent+jwt", "", ["JWT"], None),
    **each("b64", with_header, True, False),
    **each("CVE-2026-32597, crit", lambda **h: with_header(crit=[*h.values()]), "x"),
    **each("crit", with_header, [], ["exp"], ["b64"]),
    "nested: cty JWT": with_header(cty="JWT"),
    "nested: a JWT as payload": forge(payload=HONEST.encode()),
    "nested: a JWT in JSON": forge(payload=json.dumps(HONEST).encode()),
    "JWE header": with_header(alg="RSA-OAEP", enc="A256GCM"),
    "JWE header, direct": with_header(alg="dir", enc="A128GCM"),
    "CVE-2026-48525, b64 false and long": with_header(b64=False, pad="x" * 4000),
    "kid traversal": forge(head(kid="../../../../dev/null"), sign=by_secret("")),
    "b64 false, detached": forge(head(b64=False, crit=["b64"])).replace(SECOND, ""),
    "zip": with_header(zip="DEF"),
    "enc": with_header(enc="A256GCM"),
    "jwk signs": forge(head(jwk=OWN_JWK), sign=by_secret("k" * 32)),
    "jku signs": forge(head(jku=EVIL), sign=by_secret("k" * 32)),
    "x5u signs": forge(head(**RS, x5u=EVIL), sign=by_rsa(FOREIGN_RSA)),
    "x5c signs": forge(head(**RS, x5c=["AAAA"]), sign=by_rsa(FOREIGN_RSA)),
    "header duplicate alg": forge(b'{"alg":"none","alg":"HS256","kid":"hs"}'),
    "header duplicate kid": forge(b'{"alg":"HS256","kid":"rs","kid":"hs"}'),
    "header nested duplicate": forge(b'{"alg":"HS256","kid":"hs","x":{"a":1,"a":2}}'),
    "header a list": forge(b'["HS256"]'),
    "header NaN": forge(b'{"alg":"HS256","kid":"hs","x":NaN}'),
    "header UTF-16": forge(json.dumps(head()).encode("utf-16")),
    "header with BOM": forge(b"\xef\xbb\xbf" + raw_json(head())),
}
CLAIMS = {
    **each("exp", with_claims, ..., 0, None, True, str(NOW + 60), [NOW + 60], 10**400),
    **each("exp", with_claims, NOW - LEEWAY_S, NOW - LEEWAY_S - 1, -NOW),
    **each("exp", with_claims, float("nan"), float("inf")),
    **each("exp", with_claims, 2**62, 1e300, END_OF_TIME_S, -1, hex(int(NOW) + 60)),
    **each("iat", with_claims, {}, [NOW], float("inf"), 10**400),
    **each("iat", with_claims, NOW + LEEWAY_S + 1, str(NOW), None, True),
    **each("nbf", with_claims, NOW + LEEWAY_S + 1, {}),
    **each("CVE-2024-53861, iss", issued, ISSUER[:-1], ISSUER[8:], "e", ""),
    **each("iss", with_claims, ..., None, EVIL, ISSUER + "/", [ISSUER]),
    **each("aud", with_claims, ..., None, "billing", "not-everbus", {AUDIENCE: 1}),
    **each("aud", with_claims, [], ["billing", "mail"], [AUDIENCE, 1]),
    **each("sub", with_claims, ..., ["ada"], 7, "", "ada\n", "{ada}", "*", "a" * 256),
    **each(
        "sub", with_claims, "ada eve", "ada\u200b", "\u202eada", "e\u0301", "\ud800"
    ),
    **each("tenant", with_claims, "", None, 7, ["acme"], {"$ne": ""}, True, "*"),
    **each("tenant", with_claims, "acme/ada", "../acme", " acme", "acme\0", "{acme}"),
    **each(
        "tenant", with_claims, "acme\nglobex", "a" * 65, "acm\u0435", "-acme", "'--"
    ),
    "duplicate tenant": with_json('"sub"', '"tenant": "a", "tenant": "b", "sub"'),
    **each("role", with_claims, "gateway", 0, {"admin": True}),
    **each("role", with_claims, ..., "root", "Admin", ["user", "admin"], None),
    "exp 1e999": with_json(f"{NOW + 60}", "1e999"),
    "exp of 4400 digits": with_json(f"{NOW + 60}", "9" * 4400),
    "duplicate sub": with_json('"sub"', '"sub": "root", "sub"'),
    "duplicate role, escaped": with_json('"role"', '"\\u0072ole": "admin", "role"'),
    "duplicate exp": with_json('"exp"', '"exp": 9999999999, "exp"'),
    "duplicate in a nested claim": with_json('"sub"', '"x": {"a": 1, "a": 2}, "sub"'),
    "payload a list": forge(payload=b"[1]"),
    "payload no UTF-8": forge(payload=b'{"sub":"\xff"}'),
    "payload UTF-16": forge(payload=json.dumps(claims()).encode("utf-16")),
    "payload very deep": forge(payload=b"[" * 6000),
}
FORMS = {
    "two segments": f"{FIRST}.{SECOND}",
    "four segments": f"{HONEST}.{THIRD}",
    "five segments, as a JWE": f"{FIRST}.{b64(b'key')}.{b64(b'iv')}.{SECOND}.{THIRD}",
    "truncated": HONEST[:-1],
    "signature empty": f"{FIRST}.{SECOND}.",
    "header and payload swapped": seal(f"{SECOND}.{FIRST}"),
    "payload and signature swapped": f"{FIRST}.{THIRD}.{SECOND}",
    "padded signature": HONEST + "=",
    "padded header, signed so": seal(f"{PADDABLE + PADDING}.{SECOND}"),
    "signature not canonical": f"{FIRST}.{SECOND}.{bumped(THIRD)}",
    "header not canonical, signed so": seal(f"{bumped(PADDABLE)}.{SECOND}"),
    "payload not canonical, signed so": seal(f"{FIRST}.{bumped(unaligned(claims()))}"),
    "plain base64 alphabet": f"{FIRST}.{SECOND}.{'+/' + THIRD[2:]}",
    "trailing newline": HONEST + "\n",
    "inner space": HONEST.replace(".", " .", 1),
    "full-width dot": HONEST.replace(".", "\uff0e"),
    "lone surrogate": HONEST + "\ud800",
    "8 KiB and a bit": near_limit()[1],
    "64 KiB": with_claims(pad="x" * 49_000),
    "JSON serialization": json.dumps({"payload": SECOND, "signature": THIRD}),
}
FORGED = SIGNATURES | HEADERS | CLAIMS | FORMS


def with_own_keys() -> Identity:
    return Identity(KEYS, ISSUER, AUDIENCE, leeway_s=LEEWAY_S, clock=Clock())


def with_published_keys() -> Identity:
    told = jwks_of(*(jwk_of(key.kid, PRIVATE[key.algorithm]) for key in PUBLIC_KEYS))
    published = PublishedKeys("https://issuer.example/keys", read=lambda: told)

    return Identity(
        [Key("HS256", SECRET, "hs")],
        ISSUER,
        AUDIENCE,
        published=published,
        leeway_s=LEEWAY_S,
        clock=Clock(),
    )


def test_there_are_enough_forgeries() -> None:
    """
    Checklist S1 asks for 60 ways at least, each another token.
    """
    assert len(FORGED) >= 60
    assert len(set(FORGED.values())) == len(FORGED)


@pytest.mark.parametrize("keys", [with_own_keys, with_published_keys])
@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_token_is_refused_like_any_other(
    keys: Callable[[], Identity], token: str
) -> None:
    """
    Same code, same words, no details and no cause; and never remembered as good.
    """
    identity = keys()
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refusal:
            await identity.authenticate(token)

        error = refusal.value
        assert (error.code, error.status) == ("unauthenticated", 401)
        assert (error.message, error.details) == (BAD_TOKEN, {})
        assert error.__suppress_context__
    assert not identity._verified


@pytest.mark.parametrize("keys", [with_own_keys, with_published_keys])
@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
async def test_an_honest_token_is_let_in_by_either_way(
    keys: Callable[[], Identity], algorithm: str
) -> None:
    token = minted(algorithm, algorithm[:2].lower(), tenant="acme")

    principal = await keys().authenticate(token)

    assert (principal.name, principal.tenant) == ("ada", "acme")


def test_no_forgery_takes_long_to_refuse() -> None:
    """
    The best of three tries, so that only what is slow by itself counts.
    """
    identity = with_own_keys()

    def refused_in(token: str) -> float:
        began = time.perf_counter()
        with pytest.raises(Unauthenticated):
            identity.principal_of(token)
        return time.perf_counter() - began

    slow = {n: min(refused_in(t) for _ in "abc") for n, t in FORGED.items()}

    assert {name: s for name, s in slow.items() if s > SOON_S} == {}


def test_the_algorithm_is_judged_by_us_and_not_by_the_library_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    CVE-2026-48523 was a library that did not: here is one that verifies nothing.
    """
    monkeypatch.setattr(Verifier, "payload_of", lambda self, token: raw_json(claims()))
    identity = with_own_keys()

    assert identity.principal_of(forge(head(kid="rs", alg="RS256"))).name == "ada"
    for alg in ("HS256", "ES256", "none"):
        with pytest.raises(Unauthenticated):
            identity.principal_of(forge(head(kid="rs", alg=alg)))
