"""
Revoked tokens: the entries of the list on the bus, and a process's copy of it.

A token is revoked before its `exp` by its own id, or with all tokens of its subject
that were issued up to a moment. An entry lasts until no token that it refuses can be
valid any more. A copy forgets nothing earlier, so a bus that lost the list does not
make revoked tokens valid again where they are known.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec
import structlog

from everbus.bus.errors import Unavailable
from everbus.gateway.identity.principal import Principal
from everbus.gateway.telemetry.metrics import BOUND_REACHED

log = structlog.get_logger()

# Hash: field of `TokenRevocation` → its JSON; VERSION → changed by each write.
LIST = "eb:revoked"
VERSION = ":version"
MAX_ITEMS = 10_000
# Without a successful read for so long the list counts as unread: a revocation is heard
# of within this time, or not at all.
UNREAD_S = 5.0

Kind = Literal["jti", "token", "subject"]
# What to do with tokens while the list cannot be read.
Unread = Literal["open", "closed"]


class TokenRevocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One entry: a token, or all of a subject that were issued up to a moment.

    Attributes:
        name: the `jti`, the id of a token without one, or the subject.
        issued_until: of a subject: the last moment of an issue that is refused; times
            are in seconds since 1970.
        expires_at: when the entry ends.
        made_at: when it was revoked.
    """

    kind: Kind
    name: str
    expires_at: float
    made_at: float
    tenant: str = ""
    issued_until: float = 0.0

    @property
    def field(self) -> str:
        """
        Its place in the list: a second entry for the same tokens replaces it.
        """
        if self.kind == "token":
            return self.name
        if self.kind == "jti":
            return id_of_jti(self.tenant, self.name)
        return _subject(self.tenant, self.name)


def id_of_jti(tenant: str, jti: str) -> str:
    """
    The id of a token with a `jti`, which only its tenant's tokens can have.
    """
    return "jti:" + _digest(tenant, jti)


def id_of_token(token: str) -> str:
    """
    The id of a token without a `jti`.

    The signature is left out, since other bytes of it may be valid, too.
    """
    return "token:" + _digest(token.rpartition(".")[0])


class TokenRevocations:
    """
    The revocations that a process has heard of.

    Attributes:
        on_change: called after each change of what is refused.
        active: whether any token can be refused; plain data, since each command asks.
    """

    def __init__(
        self,
        *,
        max_items: int = MAX_ITEMS,
        unread: Unread = "open",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Keep at most *max_items*; *unread* decides on tokens while the list is unread.
        """
        self.on_change: list[Callable[[], None]] = []
        self._known: dict[str, TokenRevocation] = {}
        self._max_items = max_items
        self._closes = self.active = unread == "closed"
        self._clock = clock
        self._monotonic = monotonic
        self._read_at = -math.inf

    def __bool__(self) -> bool:
        return self.active

    def __len__(self) -> int:
        return len(self._known)

    @property
    def unread_s(self) -> float:
        """
        Seconds since the list was read; infinite before the first time.
        """
        return self._monotonic() - self._read_at

    def refuses(self, principal: Principal) -> bool:
        """
        Whether the token of *principal* is revoked.

        Raises:
            Unavailable: the list is unread, and that refuses all tokens.
        """
        if self._closes and self.unread_s > UNREAD_S:
            raise Unavailable(
                "the list of revoked tokens cannot be read, and EVERBUS_REVOKED_UNREAD "
                "is closed; try again later",
                retry_after_s=1.0,
            )
        if not self._known:
            return False
        now = self._clock()
        one = self._known.get(principal.token_id)
        if one is not None and now < one.expires_at:
            return True
        all_of = self._known.get(_subject(principal.tenant, principal.name))

        return (
            all_of is not None
            and now < all_of.expires_at
            and principal.issued_at <= all_of.issued_until
        )

    def heard(self, found: Mapping[str, TokenRevocation]) -> bool:
        """
        Take in the list as it was read; returns whether it lacks known entries, so that
        they should be written again.
        """
        self._read_at = self._monotonic()
        now = self._clock()
        known = {f: one for f, one in self._known.items() if now < one.expires_at}
        merged = {**known, **_in_force(found.items(), now)}
        for field in known.keys() & found.keys():
            # A subject that was revoked twice: the later moment counts.
            merged[field] = _stronger(known[field], merged.get(field, known[field]))
        merged = self._bounded(merged)
        changed = merged.keys() != self._known.keys() or merged != self._known
        self._known = merged
        self.active = self._closes or bool(merged)
        if changed:
            log.info("revocations.changed", count=len(merged))
            self.notify()

        return any(found.get(field) != one for field, one in merged.items())

    def notify(self) -> None:
        """
        Call each of `on_change`.
        """
        for call in self.on_change:
            call()

    def kept(self) -> Mapping[str, TokenRevocation]:
        """
        The known entries by their fields.
        """
        return dict(self._known)

    def note_read(self) -> None:
        """
        Note that the list was looked at, and is as it was.
        """
        self._read_at = self._monotonic()

    def _bounded(
        self, entries: dict[str, TokenRevocation]
    ) -> dict[str, TokenRevocation]:
        """
        At most so many as this process may keep: the longest-lasting ones.
        """
        if len(entries) <= self._max_items:
            return entries
        BOUND_REACHED.labels("revoked_max_items").inc()
        log.error("revocations.too_many", count=len(entries), limit=self._max_items)
        longest = sorted(entries.items(), key=lambda item: -item[1].expires_at)

        return dict(longest[: self._max_items])


def _in_force(
    entries: Iterable[tuple[str, TokenRevocation]], now: float
) -> dict[str, TokenRevocation]:
    return {field: one for field, one in entries if now < one.expires_at}


def _stronger(one: TokenRevocation, other: TokenRevocation) -> TokenRevocation:
    """
    An entry that refuses what each of the two refuses, for as long.
    """
    return msgspec.structs.replace(
        other,
        expires_at=max(one.expires_at, other.expires_at),
        issued_until=max(one.issued_until, other.issued_until),
    )


def _subject(tenant: str, name: str) -> str:
    return "subject:" + _digest(tenant, name)


def _digest(*parts: str) -> str:
    """
    A digest in which no character can move from one part into another.
    """
    packed = msgspec.json.encode(parts)

    return hashlib.blake2b(packed, digest_size=16).hexdigest()
