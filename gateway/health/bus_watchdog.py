"""
Detects an absent bus by constant pings, on a connection of its own.

Requests may hang on a bus that accepts connections and answers nothing, so they show
little, and late. A single lost ping counts: a second one would cost another
PING_DEADLINE_S, and a waiting client gets an answer within a second of its request. A
broken connection does not count: a new one is opened at once.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from redis.exceptions import ResponseError

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError, Unavailable
from everbus.gateway.store import key_names

log = structlog.get_logger()

# Detection takes at most the sum, which leaves 250 ms of a second for the answer.
PING_EVERY_S = 0.25
PING_DEADLINE_S = 0.5
# A ping that overran its deadline by so much waited for our own event loop, and
# proves nothing about the bus.
STALLED_S = 0.1
# How often the lanes without an owner are counted.
LANES_EVERY_S = 5.0


class Watchdog:
    """
    Pings the bus, and ends waiting calls when it is away.

    Attributes:
        outage: the error while the bus is away; else None.
        on_ping: callback after every ping: whether the bus is away, and the seconds
            since the previous ping.
        since: time of the last change, on *clock*.
        unowned_lanes: lanes without an owner, as of some seconds ago; None if
            unknown.
    """

    def __init__(
        self,
        url: str,
        partitions: int = 0,
        *,
        every_s: float = PING_EVERY_S,
        deadline_s: float = PING_DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Prepare; nothing is sent before `run`.

        Args:
            partitions: number of lanes; 0: owners are not checked.
        """
        self.outage: Unavailable | None = None
        self.on_ping: Callable[[bool, float], None] = lambda _away, _seconds: None
        self.unowned_lanes: int | None = None
        self.since = self._reached_at = clock()
        self._wire = wire_to(url, name="everbus-watchdog")
        self._owners = [key_names.owner(partition) for partition in range(partitions)]
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._lanes_checked_at = clock() - LANES_EVERY_S
        self._scopes: set[asyncio.Timeout] = set()

    @property
    def behind_s(self) -> float:
        """
        Seconds since the last answered ping.
        """
        return max(0.0, self._clock() - self._reached_at)

    @contextmanager
    def expire_on_outage(self, scope: asyncio.Timeout) -> Iterator[None]:
        """
        Expire *scope* as soon as the bus is away, while the block runs.
        """
        self._scopes.add(scope)
        try:
            yield
        finally:
            self._scopes.discard(scope)

    async def run(self) -> None:
        """
        Ping until cancelled.
        """
        try:
            while True:
                began = self._clock()
                self.record_ping(began, await self._ping())
                if self.outage is None:
                    await self._count_unowned_lanes()
                rest_s = self._every_s - (self._clock() - began)
                await asyncio.sleep(max(0.0, rest_s))
                self.on_ping(self.outage is not None, self._clock() - began)
        finally:
            await self._wire.close()

    def record_ping(self, asked_at: float, error: Unavailable | None) -> None:
        """
        Record the outcome of a ping sent at *asked_at*.
        """
        if error is None:
            self._reached_at = asked_at
        if (error is None) == (self.outage is None):
            self.outage = error
            return
        self.outage = error
        self.since = self._clock()
        self.on_ping(error is not None, 0.0)
        if error is None:
            log.info("bus.back")
            return
        self.unowned_lanes = None
        log.warning("bus.away", reason=error.message, requests=len(self._scopes))
        for scope in tuple(self._scopes):
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    async def _ping(self) -> Unavailable | None:
        """
        The error if the bus does not answer; None if it does.
        """
        began = self._clock()
        error = await self._ping_once()
        over_s = self._clock() - began - self._deadline_s
        if error is None or -STALLED_S < over_s < STALLED_S:
            return error

        # Earlier: a connection broke. Later: our own loop stood still. Ask again.
        return await self._ping_once()

    async def _ping_once(self) -> Unavailable | None:
        try:
            # The wire's own deadline does not cover every instant of connecting.
            async with asyncio.timeout(self._deadline_s + STALLED_S / 2):
                await self._wire.call("PING", timeout_s=self._deadline_s)
        except (EverbusError, ResponseError, TimeoutError) as error:
            # Clients see this message, so it omits the address in the error.
            why = "it refuses" if _is_reply(error) else "it does not answer"
            return Unavailable(f"the bus is away: {why}")
        return None

    async def _count_unowned_lanes(self) -> None:
        if not self._owners or self._clock() - self._lanes_checked_at < LANES_EVERY_S:
            return
        self._lanes_checked_at = self._clock()
        try:
            found = await self._wire.exchange(
                [("EXISTS", owner) for owner in self._owners],
                timeout_s=self._deadline_s,
            )
        except EverbusError:
            return  # the next ping shows an outage
        known = all(isinstance(one, int) for one in found)
        self.unowned_lanes = len(found) - sum(found) if known else None


def _is_reply(error: Exception) -> bool:
    """
    Whether the server has replied, even if with an error.
    """
    return isinstance(error.__cause__, ResponseError) or isinstance(
        error, ResponseError
    )
