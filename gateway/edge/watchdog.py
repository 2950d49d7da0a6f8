"""
Whether the bus is there: it is asked all the time, on a connection of its own.

Requests may hang on a bus that accepts connections and answers nothing, so what they
see says little, and late. A single lost ping counts: a second one would cost another
DEADLINE_S, and who waits is to be answered within a second of asking. A connection that
breaks does not: a new one is opened at once.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from redis.exceptions import ResponseError

from bus.cluster import wire_to
from bus.errors import EverbusError, Unavailable
from gateway.store import names

log = structlog.get_logger()

# Noticed within the sum of the two: a request that hangs is answered with 250 ms left.
EVERY_S = 0.25
DEADLINE_S = 0.5
# A ping that overran its deadline by this much waited for our own event loop, and
# proves nothing of the bus.
STALLED_S = 0.1
# How often it is looked whether every lane has an owner.
LANES_EVERY_S = 5.0


class Watchdog:
    """
    Pings the bus, and ends what waits for it when it is away.

    Attributes:
        trouble: why the bus is away; None if it is not.
        tell: is told after every ping whether the bus is away, and how many seconds
            ago the ping before was.
        since: when it went away or came back, on *clock*.
        unserved: lanes that nobody serves, as of some seconds ago; None if that is
            not known.
    """

    def __init__(
        self,
        url: str,
        partitions: int = 0,
        *,
        every_s: float = EVERY_S,
        deadline_s: float = DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Prepare to watch; nothing is sent before `run`.

        Args:
            partitions: how many lanes there are; 0: they are not looked at.
        """
        self.trouble: Unavailable | None = None
        self.tell: Callable[[bool, float], None] = lambda _away, _seconds: None
        self.unserved: int | None = None
        self.since = self._seen = clock()
        self._wire = wire_to(url, name="everbus-watchdog")
        self._owners = [names.owner(partition) for partition in range(partitions)]
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._looked = clock() - LANES_EVERY_S
        self._scopes: set[asyncio.Timeout] = set()

    @property
    def behind_s(self) -> float:
        """
        How long ago the bus was last known to be there.
        """
        return max(0.0, self._clock() - self._seen)

    @contextmanager
    def ends(self, scope: asyncio.Timeout) -> Iterator[None]:
        """
        Let *scope* expire as soon as the bus is away, while the block runs.
        """
        self._scopes.add(scope)
        try:
            yield
        finally:
            self._scopes.discard(scope)

    async def run(self) -> None:
        """
        Watch until cancelled.
        """
        try:
            while True:
                began = self._clock()
                self.note(began, await self._ping())
                if self.trouble is None:
                    await self._look_at_lanes()
                rest_s = self._every_s - (self._clock() - began)
                await asyncio.sleep(max(0.0, rest_s))
                self.tell(self.trouble is not None, self._clock() - began)
        finally:
            await self._wire.close()

    def note(self, asked_at: float, error: Unavailable | None) -> None:
        """
        Take in what came of a ping that was sent at *asked_at*.
        """
        if error is None:
            self._seen = asked_at
        if (error is None) == (self.trouble is None):
            self.trouble = error
            return
        self.trouble = error
        self.since = self._clock()
        self.tell(error is not None, 0.0)
        if error is None:
            log.info("bus.back")
            return
        self.unserved = None
        log.warning("bus.away", reason=error.message, requests=len(self._scopes))
        for scope in tuple(self._scopes):
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    async def _ping(self) -> Unavailable | None:
        """
        Why the bus does not answer; None if it does.
        """
        began = self._clock()
        error = await self._asked()
        over_s = self._clock() - began - self._deadline_s
        if error is None or -STALLED_S < over_s < STALLED_S:
            return error

        # Sooner, a connection broke, and the next one tells; later, we stood still.
        return await self._asked()

    async def _asked(self) -> Unavailable | None:
        try:
            # The wire's own deadline does not cover every instant of connecting.
            async with asyncio.timeout(self._deadline_s + STALLED_S / 2):
                await self._wire.call("PING", timeout_s=self._deadline_s)
        except (EverbusError, ResponseError, TimeoutError) as error:
            # Clients are told this, so without the address that the error names.
            why = "it refuses" if _answered(error) else "it does not answer"
            return Unavailable(f"the bus is away: {why}")
        return None

    async def _look_at_lanes(self) -> None:
        if not self._owners or self._clock() - self._looked < LANES_EVERY_S:
            return
        self._looked = self._clock()
        try:
            found = await self._wire.exchange(
                [("EXISTS", owner) for owner in self._owners],
                timeout_s=self._deadline_s,
            )
        except EverbusError:
            return  # the next ping tells
        known = all(isinstance(one, int) for one in found)
        self.unserved = len(found) - sum(found) if known else None


def _answered(error: Exception) -> bool:
    """
    Whether the server said something, if not what was wanted.
    """
    return isinstance(error.__cause__, ResponseError) or isinstance(
        error, ResponseError
    )
