"""
The keys that an issuer publishes (RFC 7517), by an https URL or in a file.

They are read anew every few minutes, and when a token names a `kid` that is not among
them, but never more often than every PAUSE_S: whoever makes up names cannot make us
read. While the issuer is away the keys count on, up to MAX_AGE_S; then none does.
"""

import asyncio
import http.client
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from bus.errors import Unavailable
from gateway.identity.jwk_set import MAX_KID, keys_in
from gateway.identity.jwks_source import Read, is_local, source_of
from gateway.identity.keys import Key, Verifier

log = structlog.get_logger()

REFRESH_S, PAUSE_S = 300.0, 10.0
# A file costs nothing to read.
FILE_REFRESH_S, FILE_PAUSE_S = 1.0, 1.0
MAX_AGE_S = 3600.0
# How long a token waits for its key; reading goes on behind.
WAIT_S = 5.0
MAX_ABSENT = 10_000

_UNREADABLE = (OSError, ValueError, RecursionError, http.client.HTTPException)


class PublishedKeys:
    """
    What an issuer has published, as of a moment ago.
    """

    def __init__(
        self,
        url: str,
        *,
        read: Read | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Take the address; nothing is read before a key is looked for.

        Args:
            read: what reads it; blocking, so it runs in a thread.

        Raises:
            ValueError: keys may not be taken from *url*.
        """
        self._read = source_of(url) if read is None else read
        local = is_local(url)
        self._refresh_s = FILE_REFRESH_S if local else REFRESH_S
        self._pause_s = FILE_PAUSE_S if local else PAUSE_S
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._verifiers: dict[str, Verifier] = {}
        self._absent: set[str] = set()
        self._read_at = self._tried_at = float("-inf")
        self._failed = False
        self._reading: asyncio.Task[None] | None = None

    def verifier(self, kid: str) -> Verifier | None:
        """
        What verifies tokens of *kid* now; None if no key is called so, or if all of
        them are too old.
        """
        return self._verifiers.get(kid) if self._age_s() < MAX_AGE_S else None

    async def look_for(self, kid: str) -> None:
        """
        Make sure that `verifier` knows *kid*, if there is such a key.

        Raises:
            Unavailable: nobody can say now whether there is.
        """
        known = self.verifier(kid) is not None
        if len(kid) > MAX_KID or (known and self._age_s() < self._refresh_s):
            return
        reading = self._reading_if_due()
        if known:
            # It counts until the keys are too old; nobody has to wait for others.
            return
        if reading is not None and await self._done(reading):
            self._note_absent(kid)
        if self.verifier(kid) is None and kid not in self._absent:
            raise Unavailable(
                "the keys of the issuer of tokens cannot be had now; try again in "
                f"{self._pause_s:g} s",
                retry_after_s=self._pause_s,
            )

    async def ready(self) -> bool:
        """
        Whether there are keys that count; they are read now, if it is time to.
        """
        if self._age_s() >= self._refresh_s:
            reading = self._reading_if_due()
            if reading is not None and self._age_s() >= MAX_AGE_S:
                await self._done(reading)
        return self._age_s() < MAX_AGE_S

    def _age_s(self) -> float:
        return self._clock() - self._read_at

    def _reading_if_due(self) -> asyncio.Task[None] | None:
        """
        The one reading that goes on; begun now, unless the last one was just now.
        """
        if self._reading is not None:
            return self._reading
        if self._clock() - self._tried_at < self._pause_s:
            return None
        self._tried_at = self._clock()
        self._reading = asyncio.create_task(self._take())
        return self._reading

    async def _done(self, reading: asyncio.Task[None]) -> bool:
        """
        Whether *reading* has succeeded; it goes on if its waiter goes away.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(reading)
        return reading.done() and not self._failed

    async def _take(self) -> None:
        try:
            keys = await asyncio.to_thread(lambda: keys_in(self._read()))
        except _UNREADABLE as error:
            self._failed = True
            log.warning("jwks.unread", reason=str(error)[:200], age_s=self._age_s())
            return
        finally:
            self._reading = None
        # The same key keeps its verifier, so that its tokens stay remembered.
        self._verifiers = {
            kid: self._verifiers[kid] if self._keys.get(kid) == key else Verifier(key)
            for kid, key in keys.items()
        }
        if keys != self._keys:
            log.info("jwks.changed", kids=sorted(keys))
        self._keys, self._failed = keys, False
        self._absent.clear()
        self._read_at = self._clock()

    def _note_absent(self, kid: str) -> None:
        # Until the next reading all that name it are refused without one.
        if kid not in self._keys and len(self._absent) < MAX_ABSENT:
            self._absent.add(kid)
