"""
A breaker per tier: when a tier is away, its callers hear of it at once, and it is
left in peace but for one call now and then that finds out whether it is back.

Every call of a tier in a process goes through one, with a deadline.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

import structlog

from bus.errors import Unavailable
from gateway import metrics
from gateway.failures import NOTED
from gateway.store.tiers import ColdTier, Corrupted, WarmTier

log = structlog.get_logger()

FAILURES = 5
OPEN_S = 2.0
OPEN_MOST_S = 30.0

State = Literal["closed", "half_open", "open"]
_TOLD: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}

T = TypeVar("T")
P = ParamSpec("P")
Tier = TypeVar("Tier")


class Breaker:
    """
    Closed, calls pass. Open, they are refused at once: after *failures* failed ones
    in a row, for *open_s*, then twice as long each time up to OPEN_MOST_S. Half
    open, one call passes as a probe, and what becomes of it decides.

    A failed call is one that raises Unavailable or takes too long; a call that is
    refused for what it asks, or that finds an object corrupted, was answered.
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
        self._first_open_s = open_s
        self._clock = clock
        self._failures = 0
        self._open_s = open_s
        # Open: until then. Half open: until then the probe has ended.
        self._until = 0.0
        self._probing = False
        # A call that began before the last change of state says nothing of now.
        self._changes = 0
        self._state: State = "closed"
        metrics.BREAKER.labels(name).set(0)

    @property
    def state(self) -> State:
        """
        As of the last call: an open one becomes half open by the next.
        """
        return self._state

    async def run(self, call: Callable[[], Awaitable[T]], deadline_s: float) -> T:
        """
        What *call* returns, within *deadline_s*.

        Raises:
            Unavailable: the tier is away (the detail `retry_after_s` tells when to
                ask again, if it was not even called), or took too long.
            Exception: whatever else *call* raises.
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
            # Cancelled: nothing was learned, and the next call is the probe.
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
        Count a call that was answered, or that failed with *error*.
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
        if self._state == "half_open":
            self._open_s = min(2 * self._open_s, OPEN_MOST_S)
        elif self._failures < self._most_failures:
            return
        else:
            NOTED.tier_away(self.name)
        self._until = self._clock() + self._open_s
        self._become("open")
        log.warning(
            "breaker.opened",
            tier=self.name,
            failures=self._failures,
            open_s=self._open_s,
            reason=str(error),
        )

    def _close(self) -> None:
        self._failures = 0
        self._open_s = self._first_open_s
        self._become("closed")
        log.info("breaker.closed", tier=self.name)

    def _become(self, state: State) -> None:
        self._state = state
        self._probing = False
        self._changes += 1
        metrics.BREAKER.labels(self.name).set(_TOLD[state])


class _Guarded(Generic[Tier]):
    """
    A tier behind its breaker.
    """

    def __init__(self, tier: Tier, breaker: Breaker, deadline_s: float) -> None:
        self.tier = tier
        self.breaker = breaker
        self.deadline_s = deadline_s


def _through(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """
    The protocol's *method*, for a guarded tier: the tier's own, by the breaker.
    """
    name = method.__name__

    async def guarded(self: _Guarded[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        own: Callable[P, Coroutine[Any, Any, T]] = getattr(self.tier, name)
        return await self.breaker.run(lambda: own(*args, **kwargs), self.deadline_s)

    guarded.__name__ = name
    guarded.__doc__ = method.__doc__
    return guarded


class GuardedWarm(_Guarded[WarmTier]):
    """
    A WarmTier, each of whose calls goes through the breaker, with a deadline.
    """

    prepare = _through(WarmTier.prepare)
    write = _through(WarmTier.write)
    sessions = _through(WarmTier.sessions)
    entries = _through(WarmTier.entries)
    first_since = _through(WarmTier.first_since)
    put_entries = _through(WarmTier.put_entries)
    purge = _through(WarmTier.purge)
    remove = _through(WarmTier.remove)
    idle = _through(WarmTier.idle)
    unfinished = _through(WarmTier.unfinished)
    swap = _through(WarmTier.swap)
    removals = _through(WarmTier.removals)
    removed = _through(WarmTier.removed)
    find = _through(WarmTier.find)
    counts = _through(WarmTier.counts)
    changes = _through(WarmTier.changes)
    events = _through(WarmTier.events)
    appended_by = _through(WarmTier.appended_by)
    snapshot = _through(WarmTier.snapshot)
    checkpoints = _through(WarmTier.checkpoints)
    checkpoint = _through(WarmTier.checkpoint)

    def close(self) -> None:
        """
        Give connections back.
        """
        self.tier.close()


class GuardedCold(_Guarded[ColdTier]):
    """
    A ColdTier, each of whose calls goes through the breaker, with a deadline.
    """

    put = _through(ColdTier.put)
    get = _through(ColdTier.get)
    size = _through(ColdTier.size)
    delete = _through(ColdTier.delete)

    def close(self) -> None:
        """
        Give connections back.
        """
        self.tier.close()
