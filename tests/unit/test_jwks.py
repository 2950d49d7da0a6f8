"""
Published keys: read seldom, only what may verify, and never for longer than they may.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from everbus.bus.errors import Unauthenticated, Unavailable
from everbus.compose.exit_codes import Failed
from everbus.compose.keyring import identity_of
from everbus.compose.settings import load_settings
from everbus.gateway.identity import jwks, jwks_source
from everbus.gateway.identity.jwk_set import MAX_KEYS, keys_in
from everbus.gateway.identity.jwks import MAX_AGE_S, PAUSE_S, REFRESH_S, PublishedKeys
from everbus.gateway.identity.keys import Key
from everbus.gateway.identity.tokens import Identity
from tests.unit.forging import (
    AUDIENCE,
    EC,
    ED,
    FOREIGN_EC,
    FOREIGN_RSA,
    ISSUER,
    NOW,
    OWN_JWK,
    RSA,
    SECRET,
    Clock,
    by_ec,
    forge,
    head,
    jwk_of,
    jwks_of,
    minted,
    number,
)

URL = "https://issuer.example/keys"


def es_token(kid: str, private: Any = EC) -> str:
    return forge(head(alg="ES256", kid=kid), sign=by_ec(private))


class Issuer:
    """
    Publishes keys, counts how often they are read, and may be away or slow.
    """

    def __init__(self, *jwks: Any) -> None:
        self.told: bytes | Exception = jwks_of(*jwks)
        self.reads = 0
        self.open = threading.Event()
        self.open.set()

    def read(self) -> bytes:
        self.reads += 1
        assert self.open.wait(10)
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def publish(self, *jwks: Any) -> None:
        self.told = jwks_of(*jwks)

    def go(self) -> None:
        self.told = OSError("connection refused")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(jwk_of("old", EC))


@pytest.fixture
def identity(issuer: Issuer, clock: Clock) -> Identity:
    published = PublishedKeys(URL, read=issuer.read, clock=clock)

    return Identity([], ISSUER, AUDIENCE, published=published, clock=lambda: NOW)


async def settled() -> None:
    """
    Return when every reading that goes on has ended.
    """
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_key_is_read_once_for_all_who_ask_at_once(
    identity: Identity, issuer: Issuer
) -> None:
    issuer.open.clear()
    asking = [
        asyncio.create_task(identity.authenticate(es_token("old"))) for _ in range(50)
    ]
    await asyncio.sleep(0)
    issuer.open.set()

    principals = await asyncio.gather(*asking)

    assert {principal.name for principal in principals} == {"ada"}
    assert issuer.reads == 1


async def test_ten_thousand_unknown_kids_are_one_read_in_ten_seconds(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    """
    Checklist S3; those who have a key that is known are let in all the while.
    """
    refused = 0
    for n in range(10_000):
        clock.now = NOW + 30 * n / 10_000
        try:
            await identity.authenticate(es_token_of(f"k{n}"))
        except (Unauthenticated, Unavailable):
            refused += 1

    assert refused == 10_000
    assert issuer.reads == 3
    assert (await identity.authenticate(es_token("old"))).name == "ada"


def es_token_of(kid: str, token: str = es_token("x")) -> str:
    """
    A token under *kid* whose signature was made for another header.
    """
    first = forge(head(alg="ES256", kid=kid)).partition(".")[0]
    return f"{first}.{token.partition('.')[2]}"


async def test_an_unknown_kid_is_refused_at_once_until_the_keys_are_read_again(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    token = es_token("new", FOREIGN_EC)
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await identity.authenticate(token)
    assert issuer.reads == 1

    issuer.publish(jwk_of("old", EC), jwk_of("new", FOREIGN_EC))
    clock.now += PAUSE_S

    assert (await identity.authenticate(token)).name == "ada"
    assert issuer.reads == 2


async def test_a_kid_nobody_looked_for_is_not_called_bad(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    """
    It may be new since the last reading: whoever has it is told to come again, and
    is never denied for being early.
    """
    await identity.authenticate(es_token("old"))
    issuer.publish(jwk_of("old", EC), jwk_of("new", FOREIGN_EC))
    clock.now += PAUSE_S / 2

    with pytest.raises(Unavailable) as told:
        await identity.authenticate(es_token("new", FOREIGN_EC))

    assert told.value.details == {"retry_after_s": PAUSE_S}
    clock.now += PAUSE_S
    assert (await identity.authenticate(es_token("new", FOREIGN_EC))).name == "ada"


async def test_rotating_under_load_denies_nobody(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    """
    Each key is published before it is used, and stays until its tokens have expired.
    """
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(8)]
    tokens = [es_token(f"k{n}", key) for n, key in enumerate(keys)]
    for n in range(1, len(keys)):
        issuer.publish(*(jwk_of(f"k{m}", keys[m]) for m in (n - 1, n)))
        clock.now += REFRESH_S
        if n > 1:
            # Known, so it waits for nothing; the reading goes on behind.
            await identity.authenticate(tokens[n - 1])
            await settled()

        both = [identity.authenticate(tokens[m]) for m in (n - 1, n) for _ in range(20)]
        assert {p.name for p in await asyncio.gather(*both)} == {"ada"}
    assert issuer.reads == len(keys) - 1


async def test_a_key_that_is_withdrawn_takes_its_tokens_along(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    """
    Also those that were verified and are remembered.
    """
    token = es_token("old")
    await identity.authenticate(token)
    issuer.publish(jwk_of("new", FOREIGN_EC))
    clock.now += REFRESH_S
    await identity.authenticate(token)
    await settled()

    with pytest.raises(Unauthenticated):
        identity.principal_of(token)
    assert not identity._verified


async def test_a_key_that_is_replaced_under_its_kid_takes_its_tokens_along(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    token = es_token("old")
    await identity.authenticate(token)
    issuer.publish(jwk_of("old", FOREIGN_EC))
    clock.now += REFRESH_S
    await identity.authenticate(token)
    await settled()

    with pytest.raises(Unauthenticated):
        await identity.authenticate(token)
    assert (await identity.authenticate(es_token("old", FOREIGN_EC))).name == "ada"


async def test_the_same_key_read_again_lets_its_tokens_be_remembered(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    token = es_token("old")
    first = await identity.authenticate(token)
    clock.now += REFRESH_S
    await identity.authenticate(token)
    await settled()

    assert issuer.reads == 2
    assert await identity.authenticate(token) is first


async def test_keys_outlive_an_absence_of_the_issuer_but_not_for_ever(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    """
    Until MAX_AGE_S, then everything is refused; nobody waits for an issuer who is
    away, and it is asked once in PAUSE_S.
    """
    token = es_token("old")
    await identity.authenticate(token)
    issuer.go()
    for _ in range(int((MAX_AGE_S - REFRESH_S) / PAUSE_S) - 1):
        clock.now += PAUSE_S
        await identity.authenticate(token)
        await settled()
    assert await identity.ready()

    clock.now = NOW + MAX_AGE_S
    with pytest.raises(Unauthenticated):
        identity.principal_of(token)
    with pytest.raises(Unavailable):
        await identity.authenticate(token)
    assert not await identity.ready()

    issuer.publish(jwk_of("old", EC))
    clock.now += PAUSE_S
    assert await identity.ready()
    assert (await identity.authenticate(token)).name == "ada"


async def test_an_issuer_that_is_away_from_the_start_denies_nobody(
    identity: Identity, issuer: Issuer, clock: Clock
) -> None:
    issuer.go()

    for _ in range(3):
        assert not await identity.ready()
        with pytest.raises(Unavailable):
            await identity.authenticate(es_token("old"))
    assert issuer.reads == 1

    issuer.publish(jwk_of("old", EC))
    clock.now += PAUSE_S
    assert (await identity.authenticate(es_token("old"))).name == "ada"


async def test_a_slow_issuer_is_waited_for_only_so_long(
    identity: Identity, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What it says at last still counts.
    """
    monkeypatch.setattr(jwks, "WAIT_S", 0.01)
    issuer.open.clear()

    with pytest.raises(Unavailable):
        await identity.authenticate(es_token("old"))
    issuer.open.set()
    await settled()

    assert (await identity.authenticate(es_token("old"))).name == "ada"
    assert issuer.reads == 1


async def test_whoever_stops_waiting_does_not_stop_the_reading(
    identity: Identity, issuer: Issuer
) -> None:
    issuer.open.clear()
    first = asyncio.create_task(identity.authenticate(es_token("old")))
    second = asyncio.create_task(identity.authenticate(es_token("old")))
    await asyncio.sleep(0)
    first.cancel()
    issuer.open.set()

    assert (await second).name == "ada"
    assert issuer.reads == 1


async def test_what_can_name_no_key_leads_to_no_reading(
    identity: Identity, issuer: Issuer
) -> None:
    nothing = forge(head(alg="none", typ="x", kid="old"))
    for token in ("", "a.b.c", es_token(""), es_token("k" * 300), nothing):
        with pytest.raises(Unauthenticated):
            await identity.authenticate(token)
    assert issuer.reads == 0


async def test_a_key_of_our_own_is_never_replaced_by_a_published_one(
    issuer: Issuer,
) -> None:
    published = PublishedKeys(URL, read=issuer.read)
    own = Key("HS256", SECRET, "old")
    identity = Identity([own], ISSUER, AUDIENCE, published=published, clock=lambda: NOW)

    assert (await identity.authenticate(minted(kid="old"))).name == "ada"
    with pytest.raises(Unauthenticated):
        await identity.authenticate(es_token("old"))
    assert issuer.reads == 0


GOOD = jwk_of("good", EC)
N, E = RSA.public_key().public_numbers().n, 65537
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - refused
BAD = {
    "symmetric": {"kid": "bad", "alg": "HS256", **OWN_JWK},
    "RSA that says HS256": jwk_of("bad", RSA, alg="HS256"),
    "RSA that says RS512": jwk_of("bad", RSA, alg="RS512"),
    "EC that says RS256": jwk_of("bad", EC, alg="RS256"),
    "alg none": jwk_of("bad", EC, alg="none"),
    "alg a list": jwk_of("bad", EC, alg=["ES256"]),
    "for encryption": jwk_of("bad", RSA, use="enc"),
    "for signing only": jwk_of("bad", RSA, key_ops=["sign"]),
    "key_ops no list": jwk_of("bad", RSA, key_ops="verify"),
    "weak RSA": jwk_of("bad", WEAK),
    "huge RSA": jwk_of("bad", RSA, n=number((1 << 16_000) + 1)),
    "RSA of exponent 1": jwk_of("bad", RSA, e=number(1)),
    "RSA of a huge exponent": jwk_of("bad", RSA, e=number((1 << 64) + 1)),
    "RSA with its private part": jwk_of("bad", RSA, d=number(3)),
    "EC with its private part": jwk_of("bad", EC, d=number(3, 32)),
    "P-384": jwk_of("bad", ec.generate_private_key(ec.SECP384R1()), crv="P-384"),
    "secp256k1": jwk_of("bad", EC, crv="secp256k1"),
    "Ed448": jwk_of("bad", ED, crv="Ed448"),
    "no curve": jwk_of("bad", EC, crv=...),
    "a point off the curve": jwk_of("bad", EC, y=number(5, 32)),
    "a coordinate cut": jwk_of("bad", EC, x=number(5)),
    "no coordinate": jwk_of("bad", EC, y=...),
    "a number instead of text": jwk_of("bad", EC, x=5),
    "kid missing": jwk_of(..., EC),  # type: ignore[arg-type]
    "kid empty": jwk_of("", EC),
    "kid a number": jwk_of(7, EC),  # type: ignore[arg-type]
    "kid very long": jwk_of("k" * 257, EC),
    "kty missing": jwk_of("bad", EC, kty=...),
    "kty a list": jwk_of("bad", EC, kty=["EC"]),
    "no object": "bad",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_may_not_verify_is_left_out(bad: Any) -> None:
    """
    It is left out alone, and alone it is as good as no keys at all.
    """
    assert list(keys_in(jwks_of(bad, GOOD))) == ["good"]
    with pytest.raises(ValueError, match="none of 1 keys"):
        keys_in(jwks_of(bad))


@pytest.mark.parametrize(
    ("private", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")]
)
def test_a_key_is_pinned_to_the_one_algorithm_of_its_kind(
    private: Any, algorithm: str
) -> None:
    """
    Whether or not it says so itself.
    """
    for changes in ({}, {"alg": ..., "use": ..., "key_ops": ...}, {"x5c": ["AA"]}):
        [key] = keys_in(jwks_of(jwk_of("k", private, **changes))).values()
        assert key.algorithm == algorithm


def test_two_keys_of_one_kid_are_both_left_out() -> None:
    """
    Which of them is meant nobody could say.
    """
    told = jwks_of(jwk_of("twin", EC), jwk_of("twin", FOREIGN_EC), GOOD)

    assert list(keys_in(told)) == ["good"]


@pytest.mark.parametrize(
    "told",
    [
        *(
            b"",
            b"[]",
            b"null",
            b'{"keys": {}}',
            b'{"keys": []}',
            b"<html>",
            b"[" * 9999,
        ),
        jwks_of(GOOD).replace(b'"keys"', b'"keys": [], "keys"'),
        jwks_of(*([GOOD] * (MAX_KEYS + 1))),
        json.dumps({"keys": [GOOD]}).encode("utf-16"),
    ],
    ids=lambda told: repr(told[:30]),
)
def test_what_is_no_set_of_keys_is_refused(told: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        keys_in(told)


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://127.0.0.1.example/keys",
        "http://10.0.0.1/keys",
        "https://ada:secret@issuer.example/keys",
        "https:///keys",
        "ftp://issuer.example/keys",
        "data:application/json,{}",
        "file://issuer.example/keys",
        "file:keys.json",
        "keys.json",
        "",
    ],
)
def test_keys_are_taken_from_nowhere_else(url: str) -> None:
    """
    CVE-2026-48522: what urllib would open as well is not asked for.
    """
    with pytest.raises(ValueError, match=r"keys|file"):
        PublishedKeys(url)


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


async def test_keys_are_read_over_http() -> None:
    with serving(answering(200, jwks_of(GOOD))) as url:
        published = PublishedKeys(url)
        await published.fetch("good")

    assert published.verifier("good") is not None


async def test_a_redirection_is_not_followed() -> None:
    with serving(answering(200, jwks_of(GOOD))) as there:
        for status in (301, 302, 303, 307, 308):
            with serving(answering(status, Location=there)) as url:
                assert not await PublishedKeys(url).ready()


@pytest.mark.parametrize(
    "answer",
    [
        answering(404, jwks_of(GOOD)),
        answering(500, jwks_of(GOOD)),
        answering(206, jwks_of(GOOD)),
        answering(200, jwks_of(GOOD) + b" " * jwks_source.MAX_BYTES),
        answering(200, b"\xff\xfe"),
    ],
)
async def test_any_other_answer_is_none(answer: Answer) -> None:
    with serving(answer) as url:
        assert not await PublishedKeys(url).ready()


async def test_an_answer_in_drops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each drop is in time, all of them are not.
    """
    monkeypatch.setattr(jwks_source, "WHOLE_S", 0.1)
    enough = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        answering(200)(handler)
        while not enough.wait(0.01):
            handler.wfile.write(b" ")

    with serving(drip) as url:
        assert not await PublishedKeys(url).ready()
        enough.set()


async def test_a_file_is_read_again_when_it_may_have_changed(
    tmp_path: Path, clock: Clock
) -> None:
    """
    Replaced as Kubernetes does it; while it is missing, what it said counts.
    """
    file = tmp_path / "keys.json"
    file.write_bytes(jwks_of(jwk_of("old", EC)))
    published = PublishedKeys(file.as_uri(), clock=clock)
    await published.fetch("old")

    (tmp_path / "next").write_bytes(jwks_of(jwk_of("new", FOREIGN_EC)))
    (tmp_path / "next").rename(file)
    clock.now += 1
    await published.fetch("new")
    assert published.verifier("new") is not None
    assert published.verifier("old") is None

    file.unlink()
    clock.now += 1
    await published.fetch("new")
    await settled()
    assert published.verifier("new") is not None


async def test_the_setting_leads_to_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks_of(jwk_of("rs", FOREIGN_RSA)))

    identity = identity_of(load_settings({"EVERBUS_JWT_JWKS": file.as_uri()}))

    assert await identity.ready()


def test_an_unsafe_setting_is_refused_at_the_start() -> None:
    settings = load_settings({"EVERBUS_JWT_JWKS": "http://issuer.example/keys"})

    with pytest.raises(Failed, match=r"http://issuer\.example can be forged"):
        identity_of(settings)
