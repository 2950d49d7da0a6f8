"""
Published keys of an issuer (RFC 7517), from an https URL or a file.

They are refreshed every few minutes, and when a token names an unknown `kid`, but at
most every PAUSE_S: invented names cannot cause reads. While the issuer is away the keys
stay valid up to MAX_AGE_S; then none is.
"""

import asyncio
import http.client
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from everbus.bus.errors import Unavailable
from everbus.gateway.identity.jwk_set import MAX_KID, keys_in
from everbus.gateway.identity.jwks_source import Read, is_local, source_of
from everbus.gateway.identity.keys import Key, Verifier

log = structlog.get_logger()

REFRESH_S, PAUSE_S = 300.0, 10.0
# A file costs nothing to read.
FILE_REFRESH_S, FILE_PAUSE_S = 1.0, 1.0
MAX_AGE_S = 3600.0
# How long a token waits for its key; the refresh goes on in the background.
WAIT_S = 5.0
MAX_ABSENT = 10_000

_UNREADABLE = (OSError, ValueError, RecursionError, http.client.HTTPException)


class PublishedKeys:
    """
    An issuer's keys, as of the last refresh.
    """

    def __init__(
        self,
        url: str,
        *,
        read: Read | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Take the address; nothing is read before the first `fetch`.

        Args:
            read: reads the keys; blocking, so it runs in a thread.

        Raises:
            ValueError: *url* is no acceptable source of keys.
        """
        self._read = source_of(url) if read is None else read
        local = is_local(url)
        self._refresh_s = FILE_REFRESH_S if local else REFRESH_S
        self._pause_s = FILE_PAUSE_S if local else PAUSE_S
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._verifiers: dict[str, Verifier] = {}
        self._absent: set[str] = set()
        self._refreshed_at = self._tried_at = float("-inf")
        self._failed = False
        self._refreshing: asyncio.Task[None] | None = None

    def verifier(self, kid: str) -> Verifier | None:
        """
        The verifier for *kid*; None if no key has it, or if all keys are too old.
        """
        return self._verifiers.get(kid) if self._age_s() < MAX_AGE_S else None

    async def fetch(self, kid: str) -> None:
        """
        Refresh the keys if needed to find *kid*.

        Raises:
            Unavailable: whether such a key exists is unknown now.
        """
        known = self.verifier(kid) is not None
        if len(kid) > MAX_KID or (known and self._age_s() < self._refresh_s):
            return
        refreshing = self._refresh_if_due()
        if known:
            # It stays valid until the keys are too old; nobody waits for the refresh.
            return
        if refreshing is not None and await self._succeeded(refreshing):
            self._note_absent(kid)
        if self.verifier(kid) is None and kid not in self._absent:
            raise Unavailable(
                "the keys of the token issuer cannot be fetched now; try again in "
                f"{self._pause_s:g} s",
                retry_after_s=self._pause_s,
            )

    async def ready(self) -> bool:
        """
        Whether valid keys are available; refreshes them if it is time.
        """
        if self._age_s() >= self._refresh_s:
            refreshing = self._refresh_if_due()
            if refreshing is not None and self._age_s() >= MAX_AGE_S:
                await self._succeeded(refreshing)
        return self._age_s() < MAX_AGE_S

    def _age_s(self) -> float:
        return self._clock() - self._refreshed_at

    def _refresh_if_due(self) -> asyncio.Task[None] | None:
        """
        The refresh in progress; starts one unless the last was less than a pause ago.
        """
        if self._refreshing is not None:
            return self._refreshing
        if self._clock() - self._tried_at < self._pause_s:
            return None
        self._tried_at = self._clock()
        self._refreshing = asyncio.create_task(self._refresh())
        return self._refreshing

    async def _succeeded(self, refreshing: asyncio.Task[None]) -> bool:
        """
        Whether *refreshing* has succeeded; it goes on if its waiter is cancelled.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(refreshing)
        return refreshing.done() and not self._failed

    async def _refresh(self) -> None:
        try:
            keys = await asyncio.to_thread(lambda: keys_in(self._read()))
        except _UNREADABLE as error:
            self._failed = True
            log.warning("jwks.unread", reason=str(error)[:200], age_s=self._age_s())
            return
        finally:
            self._refreshing = None
        # An unchanged key keeps its verifier, so that its tokens stay remembered.
        self._verifiers = {
            kid: self._verifiers[kid] if self._keys.get(kid) == key else Verifier(key)
            for kid, key in keys.items()
        }
        if keys != self._keys:
            log.info("jwks.changed", kids=sorted(keys))
        self._keys, self._failed = keys, False
        self._absent.clear()
        self._refreshed_at = self._clock()

    def _note_absent(self, kid: str) -> None:
        # Until the next refresh, tokens that name it are refused without another.
        if kid not in self._keys and len(self._absent) < MAX_ABSENT:
            self._absent.add(kid)
