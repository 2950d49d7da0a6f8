"""
Repeated writes: `Idempotency-Key`.

A key becomes the id of the command, which the lane's ledger keeps for ten minutes. A
repetition changes nothing and gets the first reply, at any edge. That ledger is the
truth; the answers here save it the repetitions at the same edge, and mark them.
"""

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from cachetools import TTLCache

from everbus.bus.errors import Invalid
from everbus.bus.messages import pack
from everbus.gateway.identity.principal import Principal

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY_CHARS = 255
# As long as the ledger keeps a command, see BatchLimits.ledger_ttl_ms of a manager.
ANSWER_TTL_S = 600.0
MAX_ANSWERS = 10_000
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_CHARS}}}")


class HttpAnswer(NamedTuple):
    """
    An answer as it is sent, for the first time or again.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]


class _StoredAnswer(NamedTuple):
    fingerprint: bytes
    answer: HttpAnswer


def _weight(stored: _StoredAnswer) -> int:
    """
    So many bytes that no more than MAX_ANSWERS fit into MAX_ANSWER_BYTES.
    """
    return max(len(stored.answer.body), MAX_ANSWER_BYTES // MAX_ANSWERS)


class IdempotencyCache:
    """
    Answers to the latest writes with a key, and locks for those in progress.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """
        Keep answers for ANSWER_TTL_S, within MAX_ANSWERS and MAX_ANSWER_BYTES; *now*
        is a clock in seconds.
        """
        self._stored: TTLCache[str, _StoredAnswer] = TTLCache(
            MAX_ANSWER_BYTES, ANSWER_TTL_S, timer=now, getsizeof=_weight
        )
        self._locks: dict[str, _KeyLock] = {}

    async def once(
        self,
        command_id: str,
        fingerprint: bytes,
        ask: Callable[[], Awaitable[HttpAnswer]],
    ) -> HttpAnswer:
        """
        The answer of *ask*, or the first answer for a repeated id.

        Requests under one id run one after another: an instance waits for one reply
        to an id. A cancelled request releases the next.

        Raises:
            Invalid: the id belongs to another request.
        """
        async with self._lock(command_id):
            stored = self._stored.get(command_id)
            if stored is None:
                answer = await ask()
                # One too large to keep is still given; the ledger has it, too.
                with suppress(ValueError):
                    self._stored[command_id] = _StoredAnswer(fingerprint, answer)
                return answer
        if stored.fingerprint != fingerprint:
            raise Invalid(
                f"this {HEADER} was used for another request; use a new one for each",
                field=HEADER,
            )
        return stored.answer._replace(
            headers={**stored.answer.headers, REPLAYED: "true"}
        )

    @asynccontextmanager
    async def _lock(self, command_id: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(command_id, _KeyLock())
        lock.waiters += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.waiters -= 1
            if not lock.waiters:
                del self._locks[command_id]


class _KeyLock:
    """
    The lock of one id, with the number of requests that hold or want it.
    """

    __slots__ = ("lock", "waiters")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiters = 0


def command_id_of(principal: Principal, key: str) -> str:
    """
    The command id of a write of *principal* under *key*.

    Raises:
        Invalid: the key is not 1 to MAX_KEY_CHARS visible ASCII characters.
    """
    return f"k-{_digest(principal, key).hex()[:48]}"


def session_id_of(principal: Principal, key: str) -> str:
    """
    The id of the session that *principal* creates under *key*: a UUIDv8 (RFC 9562).

    Raises:
        Invalid: see `command_id_of`.
    """
    number = int.from_bytes(_digest(principal, key)[16:])
    # Set the bits of the version and of the variant.
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62

    return str(uuid.UUID(int=number))


def fingerprint_of(*asked: object) -> bytes:
    """
    A digest of the request, to compare requests under the same key.
    """
    return hashlib.blake2b(pack(asked), digest_size=16).digest()


def _digest(principal: Principal, key: str) -> bytes:
    if not _KEY.fullmatch(key):
        raise Invalid(
            f"{HEADER} has 1 to {MAX_KEY_CHARS} visible ASCII characters; use a UUID",
            field=HEADER,
        )
    return hashlib.sha256(pack((principal.tenant, principal.name, key))).digest()
