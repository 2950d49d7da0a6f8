"""
The token of a MAD, shown to the managers, and the grant that they give for it.

The token goes over a channel, never onto a stream: what is said on a channel rests
nowhere. Every manager that hears it answers on this instance's wake-up channel. Every
command then carries the grant, which counts for this instance alone.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from bus.cluster import wire_to
from bus.codec import pack
from bus.errors import EverbusError, Unauthenticated, Unavailable
from bus.keys import token as token_channel

log = structlog.get_logger()

TokenSource = str | Callable[[], str]

NO_TOKEN = "no token; connect with the JWT of the principal who asks"  # noqa: S105 - words
# Ahead of what is shown: of each argument SLOWLOG keeps the first 128 bytes, and a
# token must not be among them.
UNLOGGED = bytes(128)
SHOWINGS = 3
# How long one showing waits for its answers, which may be lost on the way.
ANSWER_S = 1.0
# And where nobody was listening, doubled each time: on a cluster somebody may have,
# elsewhere, and a manager that starts is there in a moment.
UNHEARD_S = 0.1
# How long a MAD's own function may take to give a token.
SOURCE_S = 10.0
# A grant is renewed when so much of its time is over; not all of them at once.
RENEW_FROM, RENEW_TO = 0.7, 0.8
RETRY_S = 2.0
# So often at most a grant is renewed because commands under it were refused.
DOUBT_S = 10.0


class _Answer(msgspec.Struct):
    """
    What one manager says to a token.

    Attributes:
        showing: which showing it answers.
        grant: empty if the token is refused.
        lasts_s: for how long the grant counts, since clocks may differ.
        refused: code and message, if it is.
        tenant: the one in whose name it asks.
    """

    showing: int
    grant: bytes = b""
    lasts_s: float = 0.0
    refused: tuple[str, str] = ("", "")
    tenant: str = ""


class Credential:
    """
    What one instance may ask in the name of.

    Attributes:
        grant: as it is now; empty before the first.
        tenant: of the principal, as a manager told it with the grant.
    """

    def __init__(self, url: str, mad: str, instance: str, token: TokenSource) -> None:
        """
        Take the parts; nothing is shown before `current` is asked.

        Args:
            token: the token, or what gives a fresh one whenever the grant for the
                last one nears its end. It is called in a thread of its own.

        Raises:
            Unauthenticated: *token* is empty.
        """
        if token == "":
            raise Unauthenticated(NO_TOKEN)
        self.grant, self.tenant = b"", ""
        self._mad = mad
        self._instance = instance
        self._token = token
        self._wire = wire_to(url, name=f"mad-{mad}-token")
        self._ends_at = 0.0
        self._renew_at = math.inf
        self._obtained_at = -math.inf
        self._rescheduled = asyncio.Event()
        self._obtaining = asyncio.Lock()
        self._showing = 0
        self._granted = False
        self._refusals: list[EverbusError] = []
        self._answered = asyncio.Event()

    async def current(self) -> bytes:
        """
        A grant that counts; obtained now if there is none.

        That of a token which stays the same is never obtained again here: once that
        has expired, the managers refuse what is asked under it.

        Raises:
            Unauthenticated: the managers refuse the token.
            Forbidden: the bus does not let this MAD show it.
            Unavailable: no manager answered, or no token was given; ask again.
        """
        if not self._lasts():
            async with self._obtaining:
                if not self._lasts():
                    await self._obtain()
        return self.grant

    async def run(self) -> None:
        """
        Renew the grant in good time, until cancelled, so that no command waits for it.
        """
        while True:
            await self._until_due()
            try:
                async with self._obtaining:
                    await self._obtain()
            except EverbusError as error:
                log.warning("grant.not_renewed", mad=self._mad, error=error.message)
                again_s = math.inf if isinstance(self._token, str) else RETRY_S
                self._renew_at = time.monotonic() + again_s * random.uniform(0.5, 1.5)  # noqa: S311

    def doubt(self) -> None:
        """
        Have the grant renewed, since a command under it was refused: the key that it
        was sealed with may have been given up.
        """
        due_at = max(time.monotonic(), self._obtained_at + DOUBT_S)
        if due_at < self._renew_at:
            self._renew(due_at)

    def hear(self, told: dict[str, Any]) -> None:
        """
        Take what a manager said on the wake-up channel, if it is an answer.
        """
        try:
            answer = msgspec.convert(told, _Answer)
        except msgspec.ValidationError:
            # It is about something else, or it is not from a manager.
            return
        if answer.showing != self._showing:
            return
        if answer.grant:
            self._take(answer)
        else:
            code, message = answer.refused
            final = code == Unauthenticated.code
            self._refusals.append((Unauthenticated if final else Unavailable)(message))
        self._answered.set()

    def _lasts(self) -> bool:
        fixed = isinstance(self._token, str)

        return bool(self.grant) and (fixed or time.monotonic() < self._ends_at)

    def _take(self, answer: _Answer) -> None:
        """
        Of two grants for one showing either will do; the later one stays.
        """
        now, part = time.monotonic(), random.uniform(RENEW_FROM, RENEW_TO)  # noqa: S311
        self.grant, self._granted = answer.grant, True
        self.tenant = answer.tenant
        self._ends_at = now + answer.lasts_s
        fixed = isinstance(self._token, str)
        self._renew(math.inf if fixed else now + part * answer.lasts_s)

    def _renew(self, at: float) -> None:
        self._renew_at = at
        self._rescheduled.set()

    async def _until_due(self) -> None:
        while (left_s := self._renew_at - time.monotonic()) > 0:
            self._rescheduled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                    await self._rescheduled.wait()

    async def _obtain(self) -> None:
        """
        Show the token until a manager answers.

        One that fails leaves the grant as it is, as long as that lasts.
        """
        self._obtained_at = time.monotonic()
        try:
            await self._show(await self._fresh())
        finally:
            await self._wire.close()

    async def _fresh(self) -> str:
        source = self._token
        if isinstance(source, str):
            return source
        try:
            async with asyncio.timeout(SOURCE_S):
                token = await asyncio.to_thread(source)
        except Exception as error:
            # Not its text: nobody knows what it quotes.
            raise Unavailable(f"token= failed with {type(error).__name__}") from error
        if not isinstance(token, str) or not token:
            raise Unavailable(f"token= gave {type(token).__name__} instead of a token")
        return token

    async def _show(self, token: str) -> None:
        # An answer to an earlier token must not count for this one.
        self._showing += 1
        self._granted = False
        what = {"instance": self._instance, "token": token, "showing": self._showing}
        shown = UNLOGGED + pack(what)
        for n in range(SHOWINGS):
            self._refusals.clear()
            heard = await self._say(shown)
            within_s = ANSWER_S if heard else UNHEARD_S * 2**n
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._judged(heard)
            if self._granted:
                return
            if self._refusals:
                raise _gentlest(self._refusals)
            log.debug("token.unanswered", mad=self._mad, managers=heard)
        raise Unavailable(
            f"no manager answered to the token of {self._mad}. Start `everbus manager`"
        )

    async def _say(self, shown: bytes) -> int:
        """
        How many heard it.
        """
        try:
            heard: int = await self._wire.call(
                "PUBLISH", token_channel(self._mad), shown
            )
        except ResponseError as error:
            raise Unavailable(f"the bus refuses: {error}") from error
        return heard

    async def _judged(self, heard: int) -> None:
        """
        Return when one manager has granted, or as many have refused as have *heard*:
        while keys change, one may know a key that another does not know yet.
        """
        while not self._granted and not 0 < heard <= len(self._refusals):
            await self._answered.wait()
            self._answered.clear()


def _gentlest(refusals: list[EverbusError]) -> EverbusError:
    """
    The refusal to go by: one that may pass, if there is one.
    """
    passing = (one for one in refusals if not isinstance(one, Unauthenticated))

    return next(passing, refusals[0])
