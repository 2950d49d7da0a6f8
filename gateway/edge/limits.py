"""
How much is asked of this edge: by one principal, by one tenant, by one address.

Token buckets bound the rate, counters what is worked on at once. All of it is judged
before anything is read or done, and its own memory is bounded. It is kept by each edge
for itself: N edges let N times as much through.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bus.errors import Overloaded
from gateway.edge import metrics
from gateway.edge.parts import Limits
from gateway.identity.principal import Principal

MAX_BUCKETS = 10_000
# What is left of a second by arithmetic alone.
EPSILON_S = 1e-6
# What is found out about tokens that prove bad: verifying one costs a signature.
BAD_TOKENS_RATE = 20.0
BAD_TOKENS_BURST = 200.0


class Bucket(NamedTuple):
    """
    What was left at a time; it fills up by itself.
    """

    left: float
    at: float


class Buckets:
    """
    One token bucket for each name; those that were used last are remembered.

    A name that is forgotten begins with a full one, so forgetting refuses nobody.
    """

    def __init__(self, rate: float, burst: float, now: Callable[[], float]) -> None:
        self._rate, self._burst = rate, max(burst, 1.0)
        self._now = now
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def short_s(self, name: str) -> float:
        """
        In how many seconds there is one for *name* again; 0 if there is now.
        """
        return max(0.0, (1.0 - self._left(name)) / self._rate)

    def take(self, name: str) -> None:
        """
        Take one, whether it is there or not.
        """
        self._buckets[name] = Bucket(max(0.0, self._left(name) - 1.0), self._now())
        self._buckets.move_to_end(name)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)

    def _left(self, name: str) -> float:
        known = self._buckets.get(name)
        if known is None:
            return self._burst
        return min(self._burst, known.left + (self._now() - known.at) * self._rate)


class Limiter:
    """
    Lets requests in, or says which limit they meet and when to come again.
    """

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        """
        Judge by *limits*; *now* tells seconds, from whenever.
        """
        self._limits = limits
        self._rates = Buckets(limits.rate, 2 * limits.rate, now)
        self._tenant_rates = Buckets(limits.tenant_rate, 2 * limits.tenant_rate, now)
        self._strangers = Buckets(BAD_TOKENS_RATE, BAD_TOKENS_BURST, now)
        self._busy: Counter[str] = Counter()
        self._tenants_busy: Counter[str] = Counter()

    def check_stranger(self, peer: str) -> None:
        """
        Let whoever asks from *peer* show a token.

        Raises:
            Overloaded: too many from there proved bad.
        """
        _check(self._strangers, peer, "bad_tokens_of_address")

    def note_bad_token(self, peer: str) -> None:
        """
        Count a token from *peer* that proved bad.
        """
        self._strangers.take(peer)

    def check_rate(self, principal: Principal) -> None:
        """
        Count one more request of *principal*.

        Raises:
            Overloaded: it asks, or its tenant does, more often than it may.
        """
        name, tenant = _names(principal)
        _check(self._rates, name, "rate_of_principal")
        _check(self._tenant_rates, tenant, "rate_of_tenant")
        self._rates.take(name)
        self._tenant_rates.take(tenant)

    @contextmanager
    def at_work(self, principal: Principal) -> Iterator[None]:
        """
        A request of *principal* is worked on for the time of the block.

        Raises:
            Overloaded: as many are as may be.
        """
        name, tenant = _names(principal)
        most = self._limits
        _check_busy(self._busy[name], most.concurrency, "concurrency_of_principal")
        _check_busy(
            self._tenants_busy[tenant],
            most.tenant_concurrency,
            "concurrency_of_tenant",
        )
        self._busy[name] += 1
        self._tenants_busy[tenant] += 1
        try:
            yield
        finally:
            _leave(self._busy, name)
            _leave(self._tenants_busy, tenant)

    @property
    def busy(self) -> int:
        """
        How many requests are worked on now.
        """
        return self._busy.total()


def _check(buckets: Buckets, name: str, limit: str) -> None:
    wait_s = buckets.short_s(name)
    if wait_s > EPSILON_S:
        raise _met(limit, f"come again in {max(wait_s, 0.01):.2f} s", wait_s)


def _check_busy(busy: int, most: int, limit: str) -> None:
    if busy >= most:
        raise _met(limit, f"{busy} requests are worked on; wait for one of them", 1)


def _met(limit: str, remedy: str, wait_s: float) -> Overloaded:
    metrics.LIMITED.labels(limit).inc()

    return Overloaded(
        f"the limit {limit} of this edge is met; {remedy}",
        limit=limit,
        retry_after_s=round(wait_s, 3),
    )


def _leave(busy: Counter[str], name: str) -> None:
    busy[name] -= 1
    if busy[name] <= 0:
        del busy[name]


def _names(principal: Principal) -> tuple[str, str]:
    # Names have no slash, so no two of them can meet here.
    return f"{principal.tenant}/{principal.name}", principal.tenant
