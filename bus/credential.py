"""
Token exchange: the managers take the token of a MAD and return a grant.

The token goes over a channel, never onto a stream: Redis stores no message of a
channel. Every manager that receives it answers on this instance's wake-up channel.
Every command then carries the grant, which is valid for this instance alone.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from everbus.bus.backoff import HALF_JITTER, jittered
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError, Unauthenticated, Unavailable
from everbus.bus.keys import token as token_channel
from everbus.bus.messages import MAX_TOKEN_BYTES, pack
from everbus.bus.server_errors import CommandRefused
from everbus.bus.waits import set_within

log = structlog.get_logger()

TokenSource = str | Callable[[], str]

NO_TOKEN = "no token: set EVERBUS_TOKEN, or connect(token=…); `everbus dev` starts a bus (EVERBUS_REDIS_URL) and prints a token"  # noqa: E501, S105 - words
ENDED = (
    "the token of this connection has ended; connect() with a fresh one, or give "
    "connect(token=…) a function that returns one"
)
# Before the token: SLOWLOG keeps the first 128 bytes of each argument, and they must
# not contain a token.
UNLOGGED = bytes(128)
ATTEMPTS = 3
# How long one attempt waits for its answers, which may be lost on the way.
ANSWER_S = 1.0
# The same without a listener, doubled each time: on a cluster another node may have
# listeners, and a starting manager listens soon.
UNHEARD_S = 0.1
# How long the MAD's function may take to return a token.
SOURCE_S = 10.0
# Part of its lifetime after which a grant is renewed; a range, so that the instances
# do not renew at once.
RENEW_FROM, RENEW_TO = 0.7, 0.8
RETRY_S = 2.0
# The last commands under a fixed token are on their way that long, at most.
END_MARGIN_S = 1.0
# At most one renewal per interval because commands under the grant were refused.
INVALIDATE_EVERY_S = 10.0


class _Answer(msgspec.Struct):
    """
    Answer of one manager to a token.

    Attributes:
        showing: number of the attempt that it answers.
        grant: empty if the token is refused.
        lasts_s: lifetime of the grant; a duration, since clocks may differ.
        refused: code and message of the refusal.
        tenant: tenant of the principal.
    """

    showing: int
    grant: bytes = b""
    lasts_s: float = 0.0
    refused: tuple[str, str] = ("", "")
    tenant: str = ""


class Credential:
    """
    The grant of one instance, and its renewal.

    Attributes:
        grant: the current grant; empty before the first one.
        tenant: tenant of the principal, received with the grant.
        good_until: until then, by time.monotonic(), neither `check` nor `current` has
            anything to do.
    """

    def __init__(self, url: str, mad: str, instance: str, token: TokenSource) -> None:
        """
        Keep the parts; the first call of `current` sends the token.

        Args:
            token: the token, or a function that returns a fresh one; called in a
                thread, whenever the current grant nears its end.

        Raises:
            Unauthenticated: *token* is empty, or cannot be a token.
        """
        if token == "":
            raise Unauthenticated(NO_TOKEN)
        if isinstance(token, str):
            _check_form(token)
        self.grant, self.tenant = b"", ""
        self._mad = mad
        self._instance = instance
        self._token = token
        self._fixed = isinstance(token, str)
        self._wire = wire_to(url, name=f"mad-{mad}-token")
        self._ends_at = self._refused_at = self.good_until = 0.0
        self._renew_at = math.inf
        self._obtained_at = -math.inf
        self._rescheduled = asyncio.Event()
        self._obtaining = asyncio.Lock()
        self._showing = 0
        self._granted = False
        self._refusals: list[EverbusError] = []
        self._answered = asyncio.Event()

    def check(self) -> None:
        """
        Accept a new command, unless the fixed token has ended.

        Raises:
            Unauthenticated: the managers would refuse it, when nobody waits any more.
        """
        if self._fixed and self.grant and time.monotonic() >= self._refused_at:
            raise Unauthenticated(ENDED)

    async def current(self) -> bytes:
        """
        A valid grant; obtained now if there is none.

        Raises:
            Unauthenticated: the managers refuse the token, or a fixed token has ended.
            RightsRefused, CredentialsRefused: the bus does not let this MAD publish it.
            Unavailable: no manager answered, or the function gave no token; retry.
        """
        self.check()
        if not self._valid():
            async with self._obtaining:
                if not self._valid():
                    await self._obtain()
        return self.grant

    async def run(self) -> None:
        """
        Renew the grant before it expires, until cancelled; no command waits for that.
        """
        while True:
            await self._until_due()
            try:
                async with self._obtaining:
                    await self._obtain()
            except EverbusError as error:
                log.warning("grant.not_renewed", mad=self._mad, error=error.message)
                again_s = math.inf if self._fixed else RETRY_S
                self._renew_at = time.monotonic() + jittered(again_s, HALF_JITTER)

    def invalidate(self) -> None:
        """
        Renew the grant soon: a command under it was refused, so the key that sealed it
        may be revoked.
        """
        due_at = max(time.monotonic(), self._obtained_at + INVALIDATE_EVERY_S)
        if due_at < self._renew_at:
            self._renew(due_at)

    def receive(self, message: dict[str, Any]) -> None:
        """
        Process a message of the wake-up channel, if it is an answer to the token.
        """
        try:
            answer = msgspec.convert(message, _Answer)
        except msgspec.ValidationError:
            # Another kind of message, or not from a manager.
            return
        if answer.showing != self._showing:
            return
        if answer.grant:
            self._accept(answer)
        else:
            code, why = answer.refused
            final = code == Unauthenticated.code
            self._refusals.append((Unauthenticated if final else Unavailable)(why))
        self._answered.set()

    def _valid(self) -> bool:
        return bool(self.grant) and time.monotonic() < self._ends_at

    def _accept(self, answer: _Answer) -> None:
        """
        Keep a grant; of two grants for one attempt the later one stays.
        """
        now = time.monotonic()
        self.grant, self._granted = answer.grant, True
        self.tenant = answer.tenant
        self._ends_at = now + answer.lasts_s
        margin_s = min(END_MARGIN_S, answer.lasts_s / 10)
        self._refused_at = self._ends_at - margin_s
        self.good_until = self._refused_at if self._fixed else self._ends_at
        renew_s = jittered(answer.lasts_s, (RENEW_FROM, RENEW_TO))
        self._renew(math.inf if self._fixed else now + renew_s)

    def _renew(self, at: float) -> None:
        self._renew_at = at
        self._rescheduled.set()

    async def _until_due(self) -> None:
        while (left_s := self._renew_at - time.monotonic()) > 0:
            self._rescheduled.clear()
            await set_within(self._rescheduled, None if math.isinf(left_s) else left_s)

    async def _obtain(self) -> None:
        """
        Send the token until a manager answers.

        A failure leaves the current grant in use until it expires.
        """
        self._obtained_at = time.monotonic()
        try:
            await self._exchange(await self._fresh_token())
        finally:
            await self._wire.close()

    async def _fresh_token(self) -> str:
        source = self._token
        if isinstance(source, str):
            return source
        try:
            async with asyncio.timeout(SOURCE_S):
                token = await asyncio.to_thread(source)
        except Exception as error:
            # Without its text, which may quote a secret.
            raise Unavailable(f"token= failed with {type(error).__name__}") from error
        if not isinstance(token, str) or not token:
            raise Unavailable(f"token= gave {type(token).__name__} instead of a token")
        _check_form(token)
        return token

    async def _exchange(self, token: str) -> None:
        # An answer to an earlier token must not count for this one.
        self._showing += 1
        self._granted = False
        payload = {"instance": self._instance, "token": token, "showing": self._showing}
        request = UNLOGGED + pack(payload)
        for n in range(ATTEMPTS):
            self._refusals.clear()
            listeners = await self._publish(request)
            within_s = ANSWER_S if listeners else UNHEARD_S * 2**n
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._decided(listeners)
            if self._granted:
                return
            if self._refusals:
                raise _most_lenient(self._refusals)
            log.debug("token.unanswered", mad=self._mad, managers=listeners)
        raise Unavailable(
            f"no manager answered to the token of {self._mad}. Start `everbus manager`"
        )

    async def _publish(self, request: bytes) -> int:
        """
        Publish *request*; return the number of listeners.
        """
        try:
            listeners: int = await self._wire.call(
                "PUBLISH", token_channel(self._mad), request
            )
        except CommandRefused as error:
            raise Unavailable(error.message) from error
        return listeners

    async def _decided(self, listeners: int) -> None:
        """
        Return when one manager has granted, or all *listeners* have refused: while keys
        change, one manager may know a key that another does not know yet.
        """
        while not self._granted and not 0 < listeners <= len(self._refusals):
            await self._answered.wait()
            self._answered.clear()


def _check_form(token: str) -> None:
    """
    Accept *token* if the managers can hear it; they answer to nothing larger.

    Raises:
        Unauthenticated: it is too large, or holds what no JWT holds.
    """
    if not token.isascii():
        raise Unauthenticated("the token is not ASCII, as every JWT is; get a new one")
    if len(token) > MAX_TOKEN_BYTES:
        raise Unauthenticated(
            f"the token has {len(token):,} bytes; the managers take at most "
            f"{MAX_TOKEN_BYTES:,}. Have its issuer put fewer claims into it"
        )


def _most_lenient(refusals: list[EverbusError]) -> EverbusError:
    """
    The refusal to raise: a transient one, if there is one.
    """
    passing = (one for one in refusals if not isinstance(one, Unauthenticated))

    return next(passing, refusals[0])
