"""
The age of a session id, so that a new session needs no look-up below.

The SDK makes session ids as UUIDv7, which begin with their time. A hot copy stays for
at least the hot TTL after that time; so if an id is younger, and the hot tier has lost
nothing since, a session that is not hot does not exist (a suspended or archived session
leaves a tombstone, see `key_names.tombstone`).
"""

import re

from everbus.bus.errors import Invalid

_UUID7 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
# Allowed clock skew of the makers of ids.
SKEW_MS = 60_000


def made_ms(session_id: str) -> int | None:
    """
    Creation time of the id in ms since 1970, by its maker's clock; None if it is no
    UUIDv7.
    """
    if not _UUID7.fullmatch(session_id):
        return None
    return int(session_id[:8] + session_id[9:13], 16)


def is_newborn(session_id: str, now_ms: int, since_ms: int, ttl_ms: int) -> bool:
    """
    Whether a session with that id, if it is not hot, cannot exist.

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
    counts as new, which is SKEW_MS longer at most (see `check_made`).
    """
    made = made_ms(session_id)

    return ttl_ms if made is None else ttl_ms + max(0, made - now_ms)


def check_made(session_id: str, now_ms: int, own_ms: int = 0) -> None:
    """
    Accept the id for a new session, unless its maker's clock is far ahead: such an id
    would count as new again later.

    Two clocks decide, the bus's and this manager's: a bus whose clock was set back
    must not refuse every new session. The hot copy stays for the difference as well,
    see `stays_ms`.

    Args:
        now_ms: the bus's clock.
        own_ms: this manager's; 0: it is not asked.

    Raises:
        Invalid: naming the field `session`.
    """
    made, latest_ms = made_ms(session_id), max(now_ms, own_ms)
    if made is not None and made >= latest_ms + SKEW_MS:
        raise Invalid(
            f"session id {session_id} was made {(made - latest_ms) // 1000} s from "
            f"now; at most {SKEW_MS // 1000}. Set the clock of the maker of the ids",
            field="session",
        )
