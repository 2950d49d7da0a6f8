"""
Checks of the settings here: MongoDB, S3, the keys of tokens and of grants.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import NamedTuple

from everbus.bus.errors import EverbusError
from everbus.compose.exit_codes import Failed, describe
from everbus.compose.keyring import identity_of, listed_keys
from everbus.compose.plaintext import plain_connections, unverified_connections
from everbus.compose.settings import Settings
from everbus.compose.tier_settings import cold_tier, warm_tier
from everbus.gateway.health.verdicts import IndicatorResult, Verdict
from everbus.gateway.identity.grant_keys import TrustedKeys
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.access_list import is_prefixed

WITHIN_S = 5.0
# Names of nothing that exists; a tier has to look for them all the same.
NO_SESSION = "everbus-doctor"
NO_OBJECT = "everbus/doctor/asks/nothing"


# Sessions whose access lists are looked at, at most and at once.
MAX_ACLS = 2_000
ACLS_AT_ONCE = 200


class _PlainNames(NamedTuple):
    """
    Entries without a kind of principal, and how many sessions have them.
    """

    looked_at: int = 0
    sessions: int = 0
    entries: int = 0


async def check_settings(settings: Settings) -> list[IndicatorResult]:
    """
    One verdict for each of MongoDB, S3, access lists, tokens, grants and TLS; "pass"
    for what is not set here.
    """
    mongodb, s3 = await asyncio.gather(_mongodb(settings), _s3(settings))

    return [*mongodb, s3, _tokens(settings), _grants(settings), _tls(settings)]


def _tls(settings: Settings) -> IndicatorResult:
    """
    Whether connections from here are encrypted, to servers that are verified.
    """
    unverified = [f"{n} ({option})" for n, option in unverified_connections(settings)]
    plain = list(plain_connections(settings, edge=False))
    if unverified:
        return _result("tls", "fail", f"unverified: {', '.join(unverified)}")
    if plain:
        return _result("tls", "warn", f"plain text: {', '.join(plain)}")
    return _result("tls", "pass", "verified, or on this machine")


async def _mongodb(settings: Settings) -> tuple[IndicatorResult, IndicatorResult]:
    """
    Whether MongoDB answers, and what its access lists hold.
    """
    unknown = _result("acl_names", "pass", "not known")
    try:
        warm = warm_tier(settings)
    except Failed as error:
        return _result("mongodb", "fail", describe(error)), unknown
    if warm is None:
        return _result("mongodb", "pass", "not set here"), unknown
    with closing(warm):
        answers = await _check_tier("mongodb", lambda: warm.sessions([NO_SESSION]))
        if answers.verdict != "pass":
            return answers, unknown
        return answers, await _acl_names(warm)


async def _acl_names(warm: WarmTier) -> IndicatorResult:
    """
    How many entries of access lists name no kind of principal, in the oldest sessions.
    """
    try:
        async with asyncio.timeout(WITHIN_S):
            found = await _plain_names(warm)
    except TimeoutError:
        return _result("acl_names", "pass", f"not read within {WITHIN_S:g} s")
    except EverbusError as error:
        return _result("acl_names", "pass", f"not known: {describe(error)}")
    shown = (
        f"{found.entries:,} plain names in {found.sessions:,} of the oldest "
        f"{found.looked_at:,} sessions"
    )
    return _result("acl_names", "warn" if found.entries else "pass", shown)


async def _plain_names(warm: WarmTier) -> _PlainNames:
    found = _PlainNames()
    after = ""
    while found.looked_at < MAX_ACLS:
        page = await warm.every(after, ACLS_AT_ONCE)
        for one in page:
            plain = sum(not is_prefixed(entry) for entry in one.session.acl)
            found = _PlainNames(
                found.looked_at + 1, found.sessions + (plain > 0), found.entries + plain
            )
        if len(page) < ACLS_AT_ONCE:
            break
        after = page[-1].session.id
    return found


async def _s3(settings: Settings) -> IndicatorResult:
    try:
        cold = cold_tier(settings)
    except Failed as error:
        return _result("s3", "fail", describe(error))
    if cold is None:
        return _result("s3", "pass", "not set here")
    with closing(cold):
        return await _check_tier("s3", lambda: cold.size(NO_OBJECT))


async def _check_tier(
    name: str, ask: Callable[[], Awaitable[object]]
) -> IndicatorResult:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(WITHIN_S):
            await ask()
    except TimeoutError:
        return _result(name, "fail", f"no answer within {WITHIN_S:g} s")
    except EverbusError as error:
        return _result(name, "fail", describe(error))
    took_ms = (time.perf_counter() - began) * 1000

    return _result(name, "pass", f"answers in {took_ms:,.0f} ms")


def _tokens(settings: Settings) -> IndicatorResult:
    """
    Whether the keys here can check tokens, and whether they accept EVERBUS_TOKEN.
    """
    keys = (settings.jwt_secret, settings.jwt_keys)
    if not any(key.get_secret_value() for key in keys) and not settings.jwt_public_key:
        return _result("tokens", "pass", "no key is set here")
    try:
        identity = identity_of(settings)
        token = settings.token.get_secret_value()
        if token:
            identity.principal_of(token)
    except (Failed, EverbusError) as error:
        return _result("tokens", "fail", describe(error))
    return _result("tokens", "pass", "accepted" if token else "the key is usable")


def _grants(settings: Settings) -> IndicatorResult:
    """
    Whether an edge could make the grant of a MAD: with a secret that all share it can.
    """
    try:
        trusted = TrustedKeys(listed_keys(settings.grant_public_keys))
    except ValueError as error:
        return _result("grants", "fail", f"EVERBUS_GRANT_PUBLIC_KEYS: {error}")
    secrets = (settings.grant_key, settings.jwt_secret)
    shared = settings.grant_shared and any(s.get_secret_value() for s in secrets)
    if shared and trusted:
        return _result("grants", "warn", "the shared secret counts beside the keys")
    if shared:
        return _result("grants", "warn", "only the shared secret")
    shown = "a key of its own for each role" if trusted else "not set here"

    return _result("grants", "pass", shown)


# Of each check: what it asks, and the remedy.
CHECKS = {
    "mongodb": (
        "whether EVERBUS_MONGO_URL leads to a MongoDB that answers",
        "check that it runs and is reachable from here; check EVERBUS_MONGO_URL",
    ),
    "s3": (
        "whether EVERBUS_S3_ENDPOINT or the folder of the cold tier answers",
        "check that it runs and is reachable from here; check EVERBUS_S3_*",
    ),
    "acl_names": (
        "whether entries of access lists say if they are users or MADs",
        "a plain name admits a user and a MAD of that name: patch the ACL of such "
        "sessions with user:NAME or mad:NAME; see docs/secure.md",
    ),
    "tls": (
        "whether connections beyond this machine are encrypted and verified",
        "use TLS with EVERBUS_REDIS_CA, _MONGO_CA, _S3_CA; see docs/secure.md",
    ),
    "grants": (
        "whether managers and edges seal grants with keys of their own",
        "make a pair for each role with `everbus keys pair`, and set "
        "EVERBUS_GRANT_SHARED=false at last; see docs/secure.md",
    ),
    "tokens": (
        "whether the keys here can check tokens, and accept EVERBUS_TOKEN",
        "check EVERBUS_JWT_*; for a new token: everbus token",
    ),
}


_THRESHOLDS = {
    "tokens": "usable",
    "tls": "verified",
    "acl_names": "prefixed",
    "grants": "a key for each role",
}


def _result(name: str, verdict: Verdict, shown: str) -> IndicatorResult:
    means, remedy = CHECKS[name]

    return IndicatorResult(
        name=name,
        verdict=verdict,
        value=None,
        unit="state",
        shown=shown,
        threshold=_THRESHOLDS.get(name, "answers"),
        means=means,
        remedy="" if verdict == "pass" else remedy,
    )
