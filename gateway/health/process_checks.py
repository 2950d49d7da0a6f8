"""
Checks of a process: the bus, the tiers, the keys of tokens.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from everbus.bus.errors import EverbusError, Unavailable
from everbus.gateway.health.bus_watchdog import Watchdog
from everbus.gateway.health.process import Check, CheckResult, ProcessHealth
from everbus.gateway.identity.tokens import Identity

log = structlog.get_logger()

TIER_EVERY_S = 5.0
TIER_DEADLINE_S = 2.0
PASSED = CheckResult("pass")


class TierProbe:
    """
    Probes a tier, or the source of keys, at intervals.
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
        Prepare to call *ask*, which raises EverbusError on a failure.
        """
        self._name = name
        self._ask = ask
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._found = CheckResult("pass", "not asked yet")

    def result(self) -> CheckResult:
        """
        The result of the last probe.
        """
        return self._found

    async def run(self) -> None:
        """
        Probe until cancelled.
        """
        while True:
            await self.probe()
            await asyncio.sleep(self._every_s)

    async def probe(self) -> None:
        """
        Probe once.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._ask()
        except TimeoutError:
            self._found = CheckResult(
                "fail", f"no answer within {self._deadline_s:g} s"
            )
        except EverbusError as error:
            # Its message may name addresses; the log has it.
            log.info("tier.away", tier=self._name, reason=error.message)
            self._found = CheckResult("fail", f"{error.code}: it does not answer")
        else:
            took_ms = round((time.monotonic() - began) * 1000, 1)
            self._found = CheckResult("pass", value=took_ms, unit="ms")


class EdgeClient(Protocol):
    """
    What `bus.client.Mad` says of itself.
    """

    @property
    def trouble(self) -> str: ...

    @property
    def broken(self) -> bool: ...


def identity_probe(identity: Identity) -> TierProbe:
    """
    A probe for the keys that verify tokens; it may fetch them.
    """

    async def ask() -> None:
        if not await identity.ready():
            raise Unavailable("the issuer's keys cannot be had")

    return TierProbe("identity", ask)


def bus_check(watchdog: Watchdog, *, essential: bool = True) -> Check:
    """
    The check of the bus.
    """

    def result() -> CheckResult:
        if watchdog.outage is None:
            return CheckResult("pass")
        return CheckResult("fail", watchdog.outage.message, watchdog.behind_s, "s")

    return Check("bus", result, essential)


def edge_health(
    watchdog: Watchdog,
    warm: TierProbe | None,
    *,
    client: EdgeClient | None = None,
    keys: TierProbe | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> ProcessHealth:
    """
    The health of an edge: it serves while it can read, from the bus or MongoDB.

    Args:
        warm: None without MongoDB.
        client: the edge's own connection to a bus that may answer pings and refuse
            its commands.
        keys: of `identity_probe`; None: the keys are configured, so always present.
        stopping: whether the edge is about to end.
    """

    def service() -> CheckResult:
        if client is not None and client.broken:
            return CheckResult("fail", "its connection to the bus is broken for good")
        if watchdog.outage is not None:
            why = "the bus is away"
        elif client is not None and client.trouble:
            # Its text names users and commands of the bus: that is for the log.
            why = "the bus refuses this edge"
        else:
            return PASSED
        if warm is None or warm.result().status == "fail":
            return CheckResult("fail", f"{why}, and the warm tier is away")
        return CheckResult("warn", f"read-only: {why}", watchdog.behind_s, "s")

    checks = [
        Check("service", service, essential=True),
        Check("identity", keys.result if keys else lambda: PASSED, essential=True),
        bus_check(watchdog, essential=False),
        Check("lanes", lambda: _lanes(watchdog)),
    ]
    if warm is not None:
        checks.append(Check("warm", warm.result))
    return ProcessHealth("edge", *checks, stopping=stopping)


def _lanes(watchdog: Watchdog) -> CheckResult:
    unowned_lanes = watchdog.unowned_lanes
    if unowned_lanes is None:
        return CheckResult("pass", "not known")
    if not unowned_lanes:
        return CheckResult("pass", value=0, unit="lanes")
    return CheckResult("fail", "lanes without a manager", unowned_lanes, "lanes")
