"""
The same write asked for twice: `Idempotency-Key`.

A key becomes the id of the command, which the lane's ledger knows for ten minutes:
whichever edge the repetition comes to, it changes nothing and is answered with the
first reply. That ledger is the truth. What is kept here spares it repetitions at the
same edge, one at a time, and tells them from the first.
"""

import asyncio
import hashlib
import re
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from bus.codec import pack
from bus.errors import Invalid
from gateway.identity.principal import Principal

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY_CHARS = 255
# As long as the ledger knows a command, see Limits.ledger_ttl_ms of a manager.
KEPT_S = 600.0
MAX_KEPT = 10_000
MAX_KEPT_BYTES = 16 * 1024 * 1024
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_CHARS}}}")


class Told(NamedTuple):
    """
    An answer as it leaves, to be told again.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]


class _Kept(NamedTuple):
    fingerprint: bytes
    told: Told
    until: float


class Repetitions:
    """
    The answers to the latest writes that had a key, and the writes under way.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """
        Forget nothing before KEPT_S unless there is too much; *now* tells seconds.
        """
        self._now = now
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._turns: dict[str, _Turn] = {}

    async def once(
        self, command_id: str, fingerprint: bytes, ask: Callable[[], Awaitable[Told]]
    ) -> Told:
        """
        What *ask* leads to, or what it led to the first time.

        Those who ask under one id take turns: an instance waits for one reply to an
        id. Whoever gives up holds up nobody.

        Raises:
            Invalid: the id was used for another request.
        """
        async with self._turn(command_id):
            kept = self._known(command_id)
            if kept is None:
                told = await ask()
                self._keep(command_id, _Kept(fingerprint, told, self._now() + KEPT_S))
                return told
        if kept.fingerprint != fingerprint:
            raise Invalid(
                f"this {HEADER} was used for another request; choose a fresh one for "
                "each",
                field=HEADER,
            )
        return kept.told._replace(headers={**kept.told.headers, REPLAYED: "true"})

    @asynccontextmanager
    async def _turn(self, command_id: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(command_id, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[command_id]

    def _known(self, command_id: str) -> _Kept | None:
        now = self._now()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._drop_oldest()

        return self._kept.get(command_id)

    def _keep(self, command_id: str, kept: _Kept) -> None:
        self._kept[command_id] = kept
        self._bytes += len(kept.told.body)
        while len(self._kept) > MAX_KEPT or self._bytes > MAX_KEPT_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self._bytes -= len(kept.told.body)


class _Turn:
    """
    Who asks under one id, one after the other.
    """

    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


def command_id_of(principal: Principal, key: str) -> str:
    """
    The id of the command that *principal* asks for under *key*.

    Raises:
        Invalid: the key is no text of 1 to MAX_KEY_CHARS visible ASCII characters.
    """
    return f"k-{_digest(principal, key).hex()[:48]}"


def session_id_of(principal: Principal, key: str) -> str:
    """
    The id of the session that *principal* begins under *key*: a UUIDv8 (RFC 9562).

    Raises:
        Invalid: see `command_id_of`.
    """
    number = int.from_bytes(_digest(principal, key)[16:])
    # The version and the variant have their places in it.
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62

    return str(uuid.UUID(int=number))


def fingerprint_of(*asked: object) -> bytes:
    """
    What tells one request from another under the same key.
    """
    return hashlib.blake2b(pack(asked), digest_size=16).digest()


def _digest(principal: Principal, key: str) -> bytes:
    if not _KEY.fullmatch(key):
        raise Invalid(
            f"{HEADER} has 1 to {MAX_KEY_CHARS} visible ASCII characters; a UUID will "
            "do",
            field=HEADER,
        )
    return hashlib.sha256(pack((principal.tenant, principal.name, key))).digest()
