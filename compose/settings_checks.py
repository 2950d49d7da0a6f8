"""
Whether what is set here works from here: MongoDB, S3, the keys of tokens.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from bus.errors import EverbusError
from compose.exits import Failed, told
from compose.keyring import identity_of
from compose.settings import Settings
from compose.tiers import cold_tier, warm_tier
from gateway.health.verdicts import Finding, Verdict

WITHIN_S = 5.0
# Name nothing that there is: asked for, a tier has to look and to answer.
NO_SESSION = "everbus-doctor"
NO_OBJECT = "everbus/doctor/asks/nothing"


class _Closes(Protocol):
    def close(self) -> None: ...


async def check_settings(settings: Settings) -> list[Finding]:
    """
    A verdict on each part that is set here; on one that is not, that it is not.
    """
    checks = await asyncio.gather(_mongodb(settings), _s3(settings))

    return [*checks, _tokens(settings)]


async def _mongodb(settings: Settings) -> Finding:
    try:
        warm = warm_tier(settings)
    except Failed as error:
        return _finding("mongodb", "fail", told(error))
    if warm is None:
        return _finding("mongodb", "pass", "not set here")
    return await _asked("mongodb", warm, lambda: warm.sessions([NO_SESSION]))


async def _s3(settings: Settings) -> Finding:
    try:
        cold = cold_tier(settings)
    except Failed as error:
        return _finding("s3", "fail", told(error))
    if cold is None:
        return _finding("s3", "pass", "not set here")
    return await _asked("s3", cold, lambda: cold.size(NO_OBJECT))


async def _asked(
    name: str, tier: _Closes, ask: Callable[[], Awaitable[object]]
) -> Finding:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(WITHIN_S):
            await ask()
    except TimeoutError:
        return _finding(name, "fail", f"no answer within {WITHIN_S:g} s")
    except EverbusError as error:
        return _finding(name, "fail", told(error))
    finally:
        tier.close()
    took_ms = (time.perf_counter() - began) * 1000

    return _finding(name, "pass", f"answers in {took_ms:,.0f} ms")


def _tokens(settings: Settings) -> Finding:
    """
    Whether tokens can be judged with the keys set here, and the one set here passes.
    """
    keys = (settings.jwt_secret, settings.jwt_keys)
    if not any(key.get_secret_value() for key in keys) and not settings.jwt_public_key:
        return _finding("tokens", "pass", "no key is set here")
    try:
        identity = identity_of(settings)
        token = settings.token.get_secret_value()
        if token:
            identity.principal_of(token)
    except (Failed, EverbusError) as error:
        return _finding("tokens", "fail", told(error))
    return _finding("tokens", "pass", "accepted" if token else "the key can be used")


_MEANS = {
    "mongodb": (
        "whether EVERBUS_MONGO_URL leads to a MongoDB that answers",
        "see whether it runs and is reached from here; check EVERBUS_MONGO_URL",
    ),
    "s3": (
        "whether EVERBUS_S3_ENDPOINT or the folder of the cold tier answers",
        "see whether it runs and is reached from here; check EVERBUS_S3_*",
    ),
    "tokens": (
        "whether the keys set here can judge tokens, and accept EVERBUS_TOKEN",
        "check EVERBUS_JWT_*; for a new token: everbus token",
    ),
}


def _finding(name: str, verdict: Verdict, said: str) -> Finding:
    means, remedy = _MEANS[name]

    return Finding(
        name=name,
        verdict=verdict,
        value=None,
        unit="state",
        shown=said,
        threshold="answers" if name != "tokens" else "usable",
        means=means,
        remedy="" if verdict == "pass" else remedy,
    )
