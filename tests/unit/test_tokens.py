"""
Tokens: every honest one is verified once, and names who asks; keys are as they must be.

What is forged is in `test_forged_tokens.py`.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr
from structlog.testing import capture_logs

from everbus.bus.errors import Invalid, Unauthenticated
from everbus.gateway.identity import tokens as module
from everbus.gateway.identity.keys import Key
from everbus.gateway.identity.principal import Principal
from everbus.gateway.identity.tokens import BAD_TOKEN, Identity, mint
from tests.unit.forging import (
    AUDIENCE,
    EC,
    ED_TOKEN,
    ES,
    EVIL,
    HONEST,
    ISSUED_NAMES,
    ISSUER,
    KEYS,
    LEEWAY_S,
    NOW,
    OWN_JWK,
    PADDABLE,
    PEM,
    RS,
    RSA,
    SECRET,
    WEAK_RSA,
    Clock,
    Fields,
    by_ec,
    by_rsa,
    claims,
    forge,
    head,
    minted,
    near_limit,
    private_pem,
    public_pem,
    seal,
    unaligned,
    with_claims,
    with_header,
)


class Counting(Identity):
    """
    Counts how many tokens were judged rather than remembered.
    """

    judged = 0

    def _verify(self, token: str) -> Any:
        self.judged += 1
        return super()._verify(token)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identity(clock: Clock) -> Counting:
    return Counting(KEYS, ISSUER, AUDIENCE, leeway_s=LEEWAY_S, clock=clock)


@pytest.mark.parametrize(
    "token",
    [
        HONEST,
        ED_TOKEN,
        near_limit()[0],
        forge(head(**RS), sign=by_rsa(RSA)),
        forge(head(**ES), sign=by_ec(EC)),
        seal(f"{PADDABLE}.{unaligned(claims())}"),
        *(with_header(typ=typ) for typ in ("jwt", "at+jwt", "AT+JWT", ...)),
        *(with_header(typ=f"application/{typ}") for typ in ("jwt", "at+JWT")),
        with_claims(iat=...),
        with_header(jwk=OWN_JWK, jku=EVIL, x5u=EVIL, x5c=["AAAA"]),
        with_claims(aud=["billing", AUDIENCE]),
        with_claims(iat=NOW + LEEWAY_S, nbf=NOW + LEEWAY_S),
        *(with_claims(exp=exp) for exp in (NOW - LEEWAY_S + 1, int(NOW), 2**37)),
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

    wanted = Principal(
        *("ada", role, NOW + 60),
        token_id=principal.token_id,
        issued_at=principal.issued_at,
    )
    assert principal == wanted
    assert principal.token_id


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
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Memory is bounded however many tokens come, and busy tokens stay.
    """
    monkeypatch.setattr(module, "MAX_VERIFIED", 2)
    identity = Counting(KEYS, ISSUER, AUDIENCE, leeway_s=LEEWAY_S, clock=clock)
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


@pytest.mark.parametrize("name", ISSUED_NAMES)
def test_a_subject_is_any_visible_name(identity: Counting, name: str) -> None:
    assert identity.principal_of(with_claims(sub=name)).name == name


@pytest.mark.parametrize(
    ("wanted", "token"),
    [("typ", with_header(typ=...)), ("iat", with_claims(iat=...))],
)
def test_an_optional_part_can_be_required(
    clock: Clock, wanted: str, token: str
) -> None:
    strict = Identity(KEYS, ISSUER, AUDIENCE, wanted=(wanted,), clock=clock)

    assert strict.principal_of(HONEST).name == "ada"
    with pytest.raises(Unauthenticated):
        strict.principal_of(token)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (with_header(typ="JOSE"), "typ is neither JWT nor at+jwt"),
        (with_claims(sub="ada eve"), "sub is no valid name"),
        (with_claims(exp=...), "Object missing required field `exp`"),
        (with_claims(exp=1), "exp has passed"),
        (with_claims(role="s3cret"), "Invalid enum value a value - at `$.role`"),
        (with_header(kid="other"), "kid: no key of that name"),
        ("x", "no compact JWT of three parts"),
    ],
)
def test_the_log_has_the_reason_of_a_refusal_and_nothing_of_the_token(
    identity: Counting, token: str, reason: str
) -> None:
    with capture_logs() as logs, pytest.raises(Unauthenticated, match=BAD_TOKEN[:20]):
        identity.principal_of(token)

    assert logs == [{"event": "token.refused", "log_level": "info", "reason": reason}]
