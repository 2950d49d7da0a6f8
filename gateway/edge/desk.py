"""
The way of a request to the managers, and of a read past them while the bus is away.

A read of one kind is one call of the SDK, whoever answers it:

    call = lambda mad: mad.get_session(session_id)
    answer = await desk.read(
        ask=lambda: call(caller.mad()),
        below=lambda: call(desk.warm(principal)),
    )
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from bus.client import Mad
from bus.errors import EverbusError, ReplyTimeout, Unavailable
from gateway.edge import metrics
from gateway.edge.below import Below
from gateway.edge.watchdog import Watchdog
from gateway.identity.principal import Principal

# How long a read waits for managers that do not answer on a bus that is there. A
# takeover takes the lane TTL and a second, 6 s: longer than a reader should wait.
PATIENCE_S = 2.0
# And for those that did not answer the last one, or whose bus has just come back.
HASTE_S = 0.5
RETRY_AFTER_S = 1.0

T = TypeVar("T")


class Answer(NamedTuple, Generic[T]):
    """
    What a read found, and where.

    Attributes:
        source: `bus` (as the managers have it now) or `warm` (as MongoDB has it).
        behind_s: for `warm`: how long ago the bus was last there, in seconds. What
            had been committed in the moment before may be missing, too.
    """

    value: T
    source: Literal["bus", "warm"] = "bus"
    behind_s: float = 0.0


class Desk:
    """
    Where requests go.
    """

    def __init__(
        self,
        watchdog: Watchdog | None = None,
        below: Below | None = None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """
        Ask the bus, as long as *watchdog* sees it; else what is *below*.

        Args:
            watchdog: who runs it is the caller's; without, nothing is ever away.
            below: None where no MongoDB is configured.
        """
        self._watchdog = watchdog
        if watchdog is not None:
            watchdog.tell = metrics.tell_away
        self._below = below
        self._patience_s = patience_s
        self._silent = False

    def warm(self, principal: Principal) -> Mad:
        """
        The SDK's reading calls for *principal*, answered past the managers.

        Raises:
            Unavailable: there is nothing to read from.
        """
        if self._below is None:
            raise Unavailable(
                "the bus is away, and this edge has no MongoDB to read from; set "
                "EVERBUS_MONGO_URL",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._below.mad(principal)

    async def read(
        self,
        ask: Callable[[], Awaitable[T]],
        below: Callable[[], Awaitable[T]] | None = None,
    ) -> Answer[T]:
        """
        What *ask* finds on the bus; while that is away, or no manager answers within
        the desk's patience, what *below* finds.

        Raises:
            Unavailable: neither can tell.
        """
        patience_s = (
            min(HASTE_S, self._patience_s) if self._silent else self._patience_s
        )
        try:
            found = await self._asked(ask, None if below is None else patience_s)
        except Unavailable as error:
            if below is None or not _unheard(error):
                raise
            self._silent = True
            return await self._read_below(ask, below)
        self._silent = False
        metrics.READS.labels("bus").inc()

        return Answer(found)

    async def write(
        self, ask: Callable[[], Awaitable[T]], *, command_id: str = ""
    ) -> T:
        """
        What *ask* leads to; refused within a second while the bus is away.

        Args:
            command_id: by which the caller can send it again.

        Raises:
            Unavailable: the bus is away. The detail `sent` tells whether the command
                may have been sent: if so, it is unknown whether it was applied.
        """
        try:
            return await self._asked(ask, None)
        except _Away as error:
            metrics.REFUSED_WRITES.labels("maybe" if error.began else "no").inc()
            raise _refusal(error, command_id) from error
        except ReplyTimeout:
            raise  # its managers are silent, and it tells its id
        except Unavailable as error:
            if not _unheard(error):
                raise
            metrics.REFUSED_WRITES.labels("no").inc()
            # In our words: the SDK's name the bus's address.
            unsent = _Away("the bus is away", began=False)
            raise _refusal(unsent, command_id) from error

    @property
    def trouble(self) -> EverbusError | None:
        """
        Why the bus is away; None if it is not.
        """
        return None if self._watchdog is None else self._watchdog.trouble

    async def _asked(
        self, ask: Callable[[], Awaitable[T]], patience_s: float | None
    ) -> T:
        """
        What *ask* leads to, unless the bus is away or *patience_s* is over.
        """
        dog = self._watchdog
        if dog is None:
            return await ask()
        if dog.trouble is not None:
            raise _Away(dog.trouble.message, began=False)
        try:
            async with asyncio.timeout(patience_s) as scope:
                with dog.ends(scope):
                    return await ask()
        except TimeoutError as error:
            if not scope.expired():
                raise
            if dog.trouble is None:
                raise _Unanswered(
                    f"no manager answered within {patience_s:g} s",
                    retry_after_s=RETRY_AFTER_S,
                ) from error
            raise _Away(dog.trouble.message, began=True) from error

    async def _read_below(
        self, ask: Callable[[], Awaitable[T]], below: Callable[[], Awaitable[T]]
    ) -> Answer[T]:
        # Before reading: what is read may be newer, never older.
        behind_s = 0.0 if self._watchdog is None else self._watchdog.behind_s
        try:
            found = await below()
        except Unavailable as error:
            error.details.setdefault("retry_after_s", RETRY_AFTER_S)
            if self.trouble is not None:
                raise
            # Slow managers are better than none.
            return Answer(await self._asked(ask, None))
        metrics.READS.labels("warm").inc()

        return Answer(found, "warm", behind_s)


class _Away(Unavailable):
    """
    The bus is away.

    Attributes:
        began: whether something had been asked by then.
    """

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message, retry_after_s=RETRY_AFTER_S)
        self.began = began


class _Unanswered(Unavailable):
    """
    The bus is there, and nobody on it answers.
    """


def _unheard(error: Unavailable) -> bool:
    """
    Whether *error* is about the way to the managers, and no answer of theirs.
    """
    # The SDK's own: the bus is away (`away_s`), or what was asked was not sent.
    ours = {"away_s", "command_id"} & error.details.keys()

    return isinstance(error, _Away | _Unanswered | ReplyTimeout) or bool(ours)


def _refusal(away: _Away, command_id: str) -> Unavailable:
    details = {"retry_after_s": RETRY_AFTER_S, "sent": "maybe" if away.began else "no"}
    if command_id:
        details["command_id"] = command_id
    if not away.began:
        return Unavailable(
            f"{away.message}. Nothing was sent, it will not be applied; try again "
            "later",
            **details,
        )
    return Unavailable(
        f"{away.message}. The command may have been sent: whether it was applied is "
        "unknown until the bus is back. To repeat it with the same Idempotency-Key is "
        "safe: it is applied once",
        **details,
    )
