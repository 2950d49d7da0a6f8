"""
Tokens: every forgery is refused alike, every honest one is verified once.

Each forged token differs from an honest one in one way; the honest ones are
made by the same code and accepted, so no forgery is refused by accident.
"""

import base64
import hmac
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from bus.errors import Invalid, Unauthenticated
from gateway import identity as module
from gateway.identity import BAD_TOKEN, MAX_TOKEN_BYTES, Identity, Key, mint

NOW = 1_800_000_000.0
LEEWAY_S = 5
ISSUER, AUDIENCE = "https://issuer.example", "everbus"
SECRET = "a-secret-of-forty-bytes-0123456789abcdef"

Signer = Callable[[bytes], bytes]
Fields = dict[str, Any]


def public_pem(private: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(PEM_CODING, form).decode()


def private_pem(private: Any) -> str:
    form, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return private.private_bytes(PEM_CODING, form, bare).decode()


PEM_CODING = serialization.Encoding.PEM
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


def by_ec_der(key: Any) -> Signer:
    return lambda text: key.sign(text, ec.ECDSA(hashes.SHA256()))


def by_ec(key: Any) -> Signer:
    return lambda text: b"".join(
        part.to_bytes(32, "big") for part in decode_dss_signature(by_ec_der(key)(text))
    )


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
    "HS256 by another secret": forge(sign=by_secret("x" * 40)),
    "RS256 by another key": forge(head(**RS), sign=by_rsa(FOREIGN_RSA)),
    "ES256 by another key": forge(head(**ES), sign=by_ec(FOREIGN_EC)),
    "EdDSA by another key": forge(head(**EDDSA), sign=FOREIGN_ED.sign),
    "ES256 zero signature": forge(head(**ES), sign=lambda t: bytes(64)),
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
    **each("typ", with_header, "id_token", "JOSE", "secevent+jwt", "", ["JWT"], None),
    **each("b64", with_header, True, False),
    **each("crit", with_header, [], ["x"], ["b64"]),
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
    **each("exp", with_claims, NOW - LEEWAY_S, NOW - LEEWAY_S - 1),
    **each("exp", with_claims, float("nan"), float("inf")),
    **each("iat", with_claims, NOW + LEEWAY_S + 1, str(NOW), None, True),
    **each("nbf", with_claims, NOW + LEEWAY_S + 1, {}),
    **each("iss", with_claims, ..., None, EVIL, ISSUER + "/", [ISSUER]),
    **each("aud", with_claims, ..., None, "billing", "not-everbus", {AUDIENCE: 1}),
    **each("aud", with_claims, [], ["billing", "mail"], [AUDIENCE, 1]),
    **each("sub", with_claims, ..., ["ada"], 7, "", "ada\n", "{ada}", "*", "a" * 65),
    **each("sub", with_claims, "\u0430da", "\ud800"),
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


class Clock:
    """
    Stands still until it is set.
    """

    now = NOW

    def __call__(self) -> float:
        return self.now


class Counting(Identity):
    """
    Counts how many tokens were judged rather than remembered.
    """

    judged = 0

    def _judged(self, token: str) -> Any:
        self.judged += 1
        return super()._judged(token)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(clock: Clock) -> Counting:
    return Counting(KEYS, ISSUER, AUDIENCE, leeway_s=LEEWAY_S, clock=clock)


def minted(algorithm: Any = "HS256", kid: str = "hs", **changes: Any) -> str:
    material = private_pem(PRIVATE[algorithm]) if algorithm in PRIVATE else SECRET
    wanted = {"name": "ada", "role": "user", "issuer": ISSUER, "audience": AUDIENCE}
    wanted |= {"ttl_s": 60, "now": NOW} | changes

    return mint(material, algorithm=algorithm, kid=kid, **wanted)


def test_there_are_enough_forgeries() -> None:
    """
    Checklist S1 asks for 60 ways at least, each another token.
    """
    assert len(FORGED) >= 60
    assert len(set(FORGED.values())) == len(FORGED)


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_refused_like_any_other(
    identity: Counting, token: str
) -> None:
    """
    Same code, same words, no details and no cause; and never remembered as good.
    """
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refusal:
            identity.principal_of(token)

        error = refusal.value
        assert (error.code, error.status) == ("unauthenticated", 401)
        assert (error.message, error.details) == (BAD_TOKEN, {})
        assert error.__suppress_context__
    assert not identity._verified


@pytest.mark.parametrize(
    "token",
    [
        HONEST,
        ED_TOKEN,
        near_limit()[0],
        forge(head(**RS), sign=by_rsa(RSA)),
        forge(head(**ES), sign=by_ec(EC)),
        seal(f"{PADDABLE}.{unaligned(claims())}"),
        *each("typ", with_header, ..., "jwt", "AT+JWT").values(),
        with_header(jwk=OWN_JWK, jku=EVIL, x5u=EVIL, x5c=["AAAA"]),
        with_claims(aud=["billing", AUDIENCE]),
        with_claims(iat=...),
        with_claims(iat=NOW + LEEWAY_S, nbf=NOW + LEEWAY_S),
        *each("exp", with_claims, NOW - LEEWAY_S + 1, int(NOW), 2**62).values(),
        with_claims(scope="more", nested={"a": {"a": 1}}),
    ],
)
def test_an_honest_token_names_its_principal(identity: Counting, token: str) -> None:
    principal = identity.principal_of(token)

    assert (principal.name, principal.role) == ("ada", "user")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("role", ["user", "mad", "operator", "admin"])
def test_a_minted_token_is_accepted(identity: Counting, key: Key, role: Any) -> None:
    principal = identity.principal_of(minted(key.algorithm, key.kid, role=role))

    assert principal == module.Principal("ada", role, NOW + 60)


@pytest.mark.parametrize("kid", ["", "main"])
def test_the_only_key_serves_tokens_without_kid(clock: Clock, kid: str) -> None:
    identity = Identity([Key("HS256", SECRET, kid)], ISSUER, AUDIENCE, clock=clock)

    assert identity.principal_of(minted(kid="")).name == "ada"
    with pytest.raises(Unauthenticated):
        identity.principal_of(minted(kid="other"))


def test_a_missing_token_is_told_apart_only_from_a_bad_one(identity: Counting) -> None:
    with pytest.raises(Unauthenticated, match="no token"):
        identity.principal_of("")


def test_a_token_is_verified_once_until_it_expires(
    identity: Counting, clock: Clock
) -> None:
    """
    Remembered to the last moment of exp + leeway, and refused from then on.
    """
    first = identity.principal_of(HONEST)
    clock.now = NOW + 60 + LEEWAY_S - 0.001

    assert identity.principal_of(HONEST) is first
    assert identity.judged == 1

    clock.now = NOW + 60 + LEEWAY_S
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refusal:
            identity.principal_of(HONEST)
        assert refusal.value.message == BAD_TOKEN
    assert not identity._verified


def test_the_least_recently_used_token_is_forgotten_first(
    identity: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Memory is bounded however many tokens come, and busy tokens stay.
    """
    monkeypatch.setattr(module, "MAX_VERIFIED", 2)
    busy, idle, fresh = (minted(name=name) for name in ("busy", "idle", "fresh"))

    for token in (busy, idle, busy, fresh):
        identity.principal_of(token)

    assert list(identity._verified) == [busy, fresh]
    identity.principal_of(busy)
    assert identity.judged == 3


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(ED_TOKEN) - 1), st.characters(codec="utf-8"))
def test_no_changed_character_goes_unnoticed(at: int, character: str) -> None:
    changed = ED_TOKEN[:at] + character + ED_TOKEN[at + 1 :]
    identity = Identity(KEYS, ISSUER, AUDIENCE, clock=Clock())
    if changed == ED_TOKEN:
        return

    with pytest.raises(Unauthenticated):
        identity.principal_of(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["alg", "typ", "kid", "exp", "aud", "sub", "nbf", "x5c"]), JSON)
def test_odd_values_lead_to_no_other_error(name: str, value: Any) -> None:
    """
    Whatever JSON a header or claim holds, it is judged, never a crash of ours.
    """
    identity = Identity(KEYS, ISSUER, AUDIENCE, clock=Clock())

    for token in (with_header(**{name: value}), with_claims(**{name: value})):
        with suppress(Unauthenticated):
            identity.principal_of(token)


@pytest.mark.parametrize(
    ("algorithm", "material", "remedy"),
    [
        ("HS256", "x" * 31, "openssl rand -hex 32"),
        ("HS256", PEM["RS256"], "RS256, ES256 or EdDSA"),
        ("HS256", json.dumps(OWN_JWK), "no HS256 key"),
        ("RS256", SECRET, "openssl pkey"),
        ("ES256", private_pem(EC), "openssl pkey"),
        ("EdDSA", "", "openssl pkey"),
        ("ES256", PEM["RS256"], "no ES256 key"),
        ("RS256", PEM["EdDSA"], "no RS256 key"),
        ("ES256", public_pem(ec.generate_private_key(ec.SECP384R1())), "no ES256 key"),
        ("RS256", WEAK_RSA, "2048 bits"),
        ("none", SECRET, "one of"),
    ],
)
def test_an_unfit_key_is_refused_at_once(
    algorithm: Any, material: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy) as refusal:
        Key(algorithm, material, "main")

    assert not material or material not in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [{"keys": []}, {"keys": [KEYS[0], KEYS[0]]}, {"issuer": ""}, {"audience": ""}]
    + [{"leeway_s": leeway} for leeway in (31, -1, float("nan"))],
    ids=str,
)
def test_an_unsafe_setting_is_refused_at_once(wrong: Fields) -> None:
    right: Fields = {"keys": KEYS, "issuer": ISSUER, "audience": AUDIENCE}

    with pytest.raises(ValueError, match=r"keys|issuer|leeway_s"):
        Identity(**right | wrong)


def test_mint_refuses_what_could_not_be_verified() -> None:
    with pytest.raises(Invalid):
        minted(name="no spaces")
    with pytest.raises(ValueError, match="32 or more"):
        mint("short", name="ada", role="user", issuer="i", audience="a", ttl_s=1, now=1)


@pytest.mark.parametrize("shown", [repr, str, "{}".format, pretty_repr])
def test_no_text_form_shows_a_secret(shown: Callable[[object], str]) -> None:
    key = KEYS[0]

    for holder in (key, [key], Identity(KEYS, ISSUER, AUDIENCE)):
        assert SECRET not in shown(holder)
    assert "HS256" in shown(key)
