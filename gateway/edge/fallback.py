"""
Calls of the managers, with MongoDB as the fallback of reads while the bus is away.

A read is one call of the SDK, on the bus or on MongoDB:

    call = lambda mad: mad.get_session(session_id)
    answer = await fallback.read(
        from_bus=lambda: call(caller.mad()),
        from_warm=lambda: call(fallback.warm(principal)),
    )
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from everbus.bus.client import Mad
from everbus.bus.errors import EverbusError, Overloaded, ReplyTimeout, Unavailable
from everbus.gateway.edge import metrics
from everbus.gateway.edge.warm_reads import WarmReads
from everbus.gateway.health.bus_watchdog import Watchdog
from everbus.gateway.identity.principal import Principal

# How long a read waits for silent managers on a bus that answers pings. A takeover
# takes the lane TTL and a second, 6 s: longer than a reader should wait.
MANAGER_TIMEOUT_S = 2.0
# The same after an unanswered read, or when the bus has just come back.
SILENT_TIMEOUT_S = 0.5
RETRY_AFTER_S = 1.0

T = TypeVar("T")


class Answer(NamedTuple, Generic[T]):
    """
    The result of a read and its source.

    Attributes:
        source: `bus` (the managers' present state) or `warm` (MongoDB's state).
        behind_s: for `warm`, seconds since the bus was last reachable. The last
            commits before that moment may be missing, too.
    """

    value: T
    source: Literal["bus", "warm"] = "bus"
    behind_s: float = 0.0


class ReadFallback:
    """
    Sends requests to the bus, and reads to MongoDB while the bus is away.
    """

    def __init__(
        self,
        watchdog: Watchdog | None = None,
        from_warm: WarmReads | None = None,
        *,
        timeout_s: float = MANAGER_TIMEOUT_S,
    ) -> None:
        """
        Use the bus while *watchdog* reaches it, else *below*.

        Args:
            watchdog: the caller runs it; without one the bus counts as reachable.
            below: reads of the warm tier; None without MongoDB.
        """
        self._watchdog = watchdog
        if watchdog is not None:
            watchdog.on_ping = metrics.set_read_only
        self._warm_reads = from_warm
        self._timeout_s = timeout_s
        self._managers_silent = False

    def warm(self, principal: Principal) -> Mad:
        """
        The SDK's reads for *principal*, answered from MongoDB.

        Raises:
            Unavailable: this edge has no MongoDB.
        """
        if self._warm_reads is None:
            raise Unavailable(
                "the bus is away, and this edge has no MongoDB to read from; set "
                "EVERBUS_MONGO_URL",
                retry_after_s=RETRY_AFTER_S,
            )
        return self._warm_reads.mad(principal)

    async def read(
        self,
        from_bus: Callable[[], Awaitable[T]],
        from_warm: Callable[[], Awaitable[T]] | None = None,
    ) -> Answer[T]:
        """
        The result of *from_bus*; of *from_warm* while the bus is away or no manager
        answers within the timeout.

        Raises:
            Unavailable: neither source answers.
        """
        timeout_s = (
            min(SILENT_TIMEOUT_S, self._timeout_s)
            if self._managers_silent
            else self._timeout_s
        )
        try:
            found = await self._call(from_bus, None if from_warm is None else timeout_s)
        except (Unavailable, Overloaded) as error:
            if from_warm is None or not _is_unreachable(error):
                raise
            self._managers_silent = True
            return await self._read_warm(from_bus, from_warm)
        self._managers_silent = False
        metrics.READS.labels("bus").inc()

        return Answer(found)

    async def write(
        self, call: Callable[[], Awaitable[T]], *, command_id: str = ""
    ) -> T:
        """
        The result of *call*; refused within a second while the bus is away.

        Args:
            command_id: id for a repetition by the caller.

        Raises:
            Unavailable: the bus is away. With the detail `sent` = `maybe` the
                command may have been sent and its outcome is unknown; with `no` it
                was not sent.
        """
        try:
            return await self._call(call, None)
        except _BusAway as error:
            metrics.REFUSED_WRITES.labels("maybe" if error.maybe_sent else "no").inc()
            raise _write_refusal(error, command_id) from error
        except ReplyTimeout:
            raise  # the managers are silent; the error carries the command's id
        except Unavailable as error:
            if not _is_unreachable(error):
                raise
            metrics.REFUSED_WRITES.labels("no").inc()
            # A message of our own: the SDK's names the bus's address.
            unsent = _BusAway("the bus is away", maybe_sent=False)
            raise _write_refusal(unsent, command_id) from error

    @property
    def outage(self) -> EverbusError | None:
        """
        Why the bus is away; None if it is not.
        """
        return None if self._watchdog is None else self._watchdog.outage

    async def _call(
        self, call: Callable[[], Awaitable[T]], timeout_s: float | None
    ) -> T:
        """
        The result of *call*, unless the bus is away or *timeout_s* is over.
        """
        watchdog = self._watchdog
        if watchdog is None:
            return await call()
        if watchdog.outage is not None:
            raise _BusAway(watchdog.outage.message, maybe_sent=False)
        try:
            async with asyncio.timeout(timeout_s) as scope:
                with watchdog.expire_on_outage(scope):
                    return await call()
        except TimeoutError as error:
            if not scope.expired():
                raise
            if watchdog.outage is None:
                raise _NoManager(
                    f"no manager answered within {timeout_s:g} s",
                    retry_after_s=RETRY_AFTER_S,
                ) from error
            raise _BusAway(watchdog.outage.message, maybe_sent=True) from error

    async def _read_warm(
        self,
        from_bus: Callable[[], Awaitable[T]],
        from_warm: Callable[[], Awaitable[T]],
    ) -> Answer[T]:
        # Taken before the read: the result may be newer than stated, never older.
        behind_s = 0.0 if self._watchdog is None else self._watchdog.behind_s
        try:
            found = await from_warm()
        except Unavailable as error:
            error.details.setdefault("retry_after_s", RETRY_AFTER_S)
            if self.outage is not None:
                raise
            # Slow managers are better than none.
            return Answer(await self._call(from_bus, None))
        metrics.READS.labels("warm").inc()

        return Answer(found, "warm", behind_s)


class _BusAway(Unavailable):
    """
    The bus is away.

    Attributes:
        maybe_sent: whether the call had begun when the bus went away.
    """

    def __init__(self, message: str, *, maybe_sent: bool) -> None:
        super().__init__(message, retry_after_s=RETRY_AFTER_S)
        self.maybe_sent = maybe_sent


class _NoManager(Unavailable):
    """
    The bus answers pings, and no manager answers.
    """


def _is_unreachable(error: Unavailable | Overloaded) -> bool:
    """
    Whether *error* comes from the way to the managers, not from a manager.
    """
    # Errors of the SDK: the bus is away (`away_s`), or the command was not sent.
    ours = {"away_s", "command_id"} & error.details.keys()

    return isinstance(error, _BusAway | _NoManager | ReplyTimeout) or bool(ours)


def _write_refusal(away: _BusAway, command_id: str) -> Unavailable:
    details = {
        "retry_after_s": RETRY_AFTER_S,
        "sent": "maybe" if away.maybe_sent else "no",
    }
    if command_id:
        details["command_id"] = command_id
    if not away.maybe_sent:
        return Unavailable(
            f"{away.message}. The command was not sent and will not be applied; try "
            "again later",
            **details,
        )
    return Unavailable(
        f"{away.message}. The command may have been sent: whether it was applied is "
        "unknown until the bus is back. A repetition with the same Idempotency-Key is "
        "safe: it is applied once",
        **details,
    )
