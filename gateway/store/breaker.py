"""
A circuit breaker per tier: while a tier is away, its callers fail at once, and one
probe now and then finds out whether it is back.

Every call of a tier in a process goes through one, with a deadline.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Literal, TypeVar, cast

import structlog

from everbus.bus.backoff import Backoff
from everbus.bus.errors import Unavailable
from everbus.gateway.store.tiers import Corrupted
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import NOTED

log = structlog.get_logger()

FAILURES = 5
OPEN_S = 2.0
OPEN_MOST_S = 30.0

State = Literal["closed", "half_open", "open"]
_TOLD: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}

T = TypeVar("T")
Tier = TypeVar("Tier")


class TierBreaker:
    """
    Closed, calls pass. Open, they are refused at once: after *failures* failed ones
    in a row, for *open_s*, then twice as long each time up to OPEN_MOST_S. Half
    open, one call passes as a probe, and what becomes of it decides.

    A call fails if it raises Unavailable or takes too long; a refusal of the request,
    or a corrupted object, is an answer.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = FAILURES,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._most_failures = failures
        self._clock = clock
        self._failures = 0
        self._backoff = Backoff(open_s, OPEN_MOST_S)
        # Open: until then. Half open: until then the probe has ended.
        self._until = 0.0
        self._probing = False
        # A call that began before the last change of state says nothing about now.
        self._changes = 0
        self._state: State = "closed"
        metrics.BREAKER.labels(name).set(0)

    @property
    def state(self) -> State:
        """
        State after the last call; an open breaker becomes half open by the next.
        """
        return self._state

    async def run(self, call: Callable[[], Awaitable[T]], deadline_s: float) -> T:
        """
        Return the result of *call*, within *deadline_s*.

        Raises:
            Unavailable: the tier is away (the detail `retry_after_s` tells when to
                ask again, if it was not even called), or took too long.
            Exception: any other exception of *call*.
        """
        self._enter(deadline_s)
        entered, began = self._changes, self._clock()
        try:
            result = await self._timed(call, deadline_s)
        except Exception as error:
            away = isinstance(error, Unavailable) and not isinstance(error, Corrupted)
            self._note(entered, began, error if away else None)
            raise
        except BaseException:
            # Cancelled: the outcome is unknown, and the next call is the probe.
            if entered == self._changes:
                self._probing = False
            raise
        self._note(entered, began, None)
        return result

    async def _timed(self, call: Callable[[], Awaitable[T]], deadline_s: float) -> T:
        try:
            async with asyncio.timeout(deadline_s):
                return await call()
        except TimeoutError as error:
            raise Unavailable(
                f"the {self.name} tier did not answer within {deadline_s:g} s; "
                "try again later"
            ) from error

    def _enter(self, deadline_s: float) -> None:
        now = self._clock()
        if self._state == "closed":
            return
        if self._state == "open" and now >= self._until:
            self._become("half_open")
        if self._state == "open" or self._probing:
            metrics.TIER_CALLS.labels(self.name, "refused").inc()
            raise Unavailable(
                f"the {self.name} tier is away; try again later",
                retry_after_s=round(max(self._until - now, 0.05), 3),
            )
        self._probing = True
        self._until = now + deadline_s

    def _note(self, entered: int, began: float, error: Exception | None) -> None:
        """
        Count an answered call, or one failed with *error*.
        """
        outcome = "failed" if error else "ok"
        metrics.TIER_CALLS.labels(self.name, outcome).inc()
        metrics.TIER_SECONDS.labels(self.name).observe(self._clock() - began)
        if entered != self._changes:
            return
        if error is not None:
            self._failed(error)
        elif self._state == "half_open":
            self._close()
        else:
            self._failures = 0

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._state == "closed":
            if self._failures < self._most_failures:
                return
            NOTED.tier_away(self.name)
        open_s = self._backoff.next_s()
        self._until = self._clock() + open_s
        self._become("open")
        log.warning(
            "breaker.opened",
            tier=self.name,
            failures=self._failures,
            open_s=open_s,
            reason=str(error),
        )

    def _close(self) -> None:
        self._failures = 0
        self._backoff.reset()
        self._become("closed")
        log.info("breaker.closed", tier=self.name)

    def _become(self, state: State) -> None:
        self._state = state
        self._probing = False
        self._changes += 1
        metrics.BREAKER.labels(self.name).set(_TOLD[state])


class GuardedTier(Generic[Tier]):
    """
    A tier behind its breaker: each call of a method goes through `run`.

    `close` alone does not: it asks nothing of the store.
    """

    def __init__(self, tier: Tier, breaker: TierBreaker, deadline_s: float) -> None:
        self.tier = tier
        self.breaker = breaker
        self.deadline_s = deadline_s

    def __getattr__(self, name: str) -> Callable[..., Any]:  # a method of the tier
        method: Callable[..., Any] = getattr(self.tier, name)
        if name == "close":
            return method

        async def guarded(*args: object, **kwargs: object) -> Any:
            return await self.breaker.run(
                lambda: method(*args, **kwargs), self.deadline_s
            )

        return guarded


def guarded(tier: Tier, breaker: TierBreaker, deadline_s: float) -> Tier:
    """
    *tier* as its users call it: through *breaker*, each call within *deadline_s*.
    """
    return cast(Tier, GuardedTier(tier, breaker, deadline_s))
