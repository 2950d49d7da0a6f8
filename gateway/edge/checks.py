"""
What the health of a process is judged by: the bus, the tiers, the keys of tokens.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from bus.errors import EverbusError, Unavailable
from gateway.edge.health import Check, Finding, Health
from gateway.edge.watchdog import Watchdog
from gateway.identity.tokens import Identity

log = structlog.get_logger()

TIER_EVERY_S = 5.0
TIER_DEADLINE_S = 2.0
FINE = Finding("pass")


class TierWatch:
    """
    Asks a tier, or whoever has the keys, now and then whether it is there.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], Awaitable[object]],
        *,
        every_s: float = TIER_EVERY_S,
        deadline_s: float = TIER_DEADLINE_S,
    ) -> None:
        """
        Prepare to call *ask*, which raises EverbusError if it is not.
        """
        self._name = name
        self._ask = ask
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._found = Finding("pass", "not asked yet")

    def look(self) -> Finding:
        """
        What the last answer was.
        """
        return self._found

    async def run(self) -> None:
        """
        Ask until cancelled.
        """
        while True:
            await self.examine()
            await asyncio.sleep(self._every_s)

    async def examine(self) -> None:
        """
        Ask once.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._ask()
        except TimeoutError:
            self._found = Finding("fail", f"no answer within {self._deadline_s:g} s")
        except EverbusError as error:
            # Its message may name addresses; the log has it.
            log.info("tier.away", tier=self._name, reason=error.message)
            self._found = Finding("fail", f"{error.code}: it does not answer")
        else:
            took_ms = round((time.monotonic() - began) * 1000, 1)
            self._found = Finding("pass", value=took_ms, unit="ms")


def keys_watch(identity: Identity) -> TierWatch:
    """
    Whether there are keys to judge tokens with, which may have to be fetched.
    """

    async def ask() -> None:
        if not await identity.ready():
            raise Unavailable("the issuer's keys cannot be had")

    return TierWatch("identity", ask)


def bus_check(watchdog: Watchdog, *, essential: bool = True) -> Check:
    """
    Whether the bus is there.
    """

    def look() -> Finding:
        if watchdog.trouble is None:
            return Finding("pass")
        return Finding("fail", watchdog.trouble.message, watchdog.behind_s, "s")

    return Check("bus", look, essential)


def edge_health(
    watchdog: Watchdog,
    warm: TierWatch | None,
    *,
    keys: TierWatch | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Health:
    """
    How an edge is: it serves while it can read, from the bus or past it.

    Args:
        warm: None where no MongoDB is configured.
        keys: of `keys_watch`; None: the keys are there, or there would be no edge.
        stopping: whether it is about to end.
    """

    def service() -> Finding:
        if watchdog.trouble is None:
            return FINE
        if warm is None or warm.look().status == "fail":
            return Finding("fail", "the bus is away, and so is the warm tier")
        return Finding("warn", "read-only: the bus is away", watchdog.behind_s, "s")

    checks = [
        Check("service", service, essential=True),
        Check("identity", keys.look if keys else lambda: FINE, essential=True),
        bus_check(watchdog, essential=False),
        Check("lanes", lambda: _lanes(watchdog)),
    ]
    if warm is not None:
        checks.append(Check("warm", warm.look))
    return Health("edge", *checks, stopping=stopping)


def _lanes(watchdog: Watchdog) -> Finding:
    unserved = watchdog.unserved
    if unserved is None:
        return Finding("pass", "not known")
    if not unserved:
        return Finding("pass", value=0, unit="lanes")
    return Finding("fail", "lanes without a manager", unserved, "lanes")
