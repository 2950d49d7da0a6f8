"""
Ids that tell their own age, so that a new session need not be looked for.

A session id made by the SDK is a UUIDv7, which begins with its time. A hot copy
stays for the hot TTL at least after that time; so where an id is younger than that,
and the hot tier has not lost anything since, a session that is not hot is nowhere
(one that was suspended or archived meanwhile leaves a mark, see `names.gone`).
"""

import re

from bus.errors import Invalid

_UUID7 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
# How far the clocks of those who make ids may be off.
SKEW_MS = 60_000


def made_ms(session_id: str) -> int | None:
    """
    When the id was made, in ms since 1970, on its maker's clock; None if it does
    not tell.
    """
    if not _UUID7.fullmatch(session_id):
        return None
    return int(session_id[:8] + session_id[9:13], 16)


def is_newborn(session_id: str, now_ms: int, since_ms: int, ttl_ms: int) -> bool:
    """
    Whether a session of that id that is not hot cannot be anywhere.

    Args:
        since_ms: since when the hot tier has lost nothing.
        ttl_ms: how long hot copies stay, see `stays_ms`.
    """
    made = made_ms(session_id)
    if made is None:
        return False
    return max(since_ms + SKEW_MS, now_ms - ttl_ms) < made < now_ms + SKEW_MS


def stays_ms(session_id: str, now_ms: int, ttl_ms: int) -> int:
    """
    How long from now on the hot copy has to stay: *ttl_ms*, or as long as its id
    counts as newborn, which is SKEW_MS longer at most (see `check_made`).
    """
    made = made_ms(session_id)

    return ttl_ms if made is None else ttl_ms + max(0, made - now_ms)


def check_made(session_id: str, now_ms: int) -> None:
    """
    Let the id begin a session, unless its maker's clock is far ahead: such an id
    would count as newborn again when its time comes.

    Raises:
        Invalid: naming the field `session`.
    """
    made = made_ms(session_id)
    if made is not None and made >= now_ms + SKEW_MS:
        raise Invalid(
            f"session id {session_id} was made {(made - now_ms) // 1000} s from now; "
            f"at most {SKEW_MS // 1000}. Set the clock of whoever makes the ids",
            field="session",
        )
