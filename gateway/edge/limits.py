"""
Limits on requests to this edge: per principal, per tenant, per address.

Token buckets bound the rate, counters bound the requests in flight. Both are checked
before anything is read or done, and their memory is bounded. Each edge counts for
itself: N edges let N times as much through.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cachetools import LRUCache

from everbus.bus.errors import Overloaded
from everbus.gateway.edge import metrics
from everbus.gateway.edge.context import EdgeLimits
from everbus.gateway.identity.principal import Principal

MAX_BUCKETS = 10_000
# Rounding error of the arithmetic on seconds.
EPSILON_S = 1e-6
# One bad token is verified so often: its key may be published later.
SAME_TOKEN_RATE = 1.0
SAME_TOKEN_BURST = 50.0
# An address has its burst of bad tokens again after so long.
BAD_TOKENS_WINDOW_S = 10.0


class Bucket(NamedTuple):
    """
    The tokens left at one moment; they refill with time.
    """

    tokens: float
    at: float


class Buckets:
    """
    One token bucket per name, for the names used last.

    A forgotten name starts with a full bucket, so forgetting refuses nobody.
    """

    def __init__(self, rate: float, burst: float, now: Callable[[], float]) -> None:
        self._rate, self._burst = rate, max(burst, 1.0)
        self._now = now
        self._buckets: LRUCache[str, Bucket] = LRUCache(MAX_BUCKETS)

    def wait_s(self, name: str) -> float:
        """
        Seconds until the bucket of *name* has a token; 0 if it has one now.
        """
        return max(0.0, (1.0 - self._tokens_left(name)) / self._rate)

    def take(self, name: str) -> None:
        """
        Take one token; an empty bucket stays empty.
        """
        self._buckets[name] = Bucket(
            max(0.0, self._tokens_left(name) - 1.0), self._now()
        )

    def _tokens_left(self, name: str) -> float:
        known = self._buckets.get(name)
        if known is None:
            return self._burst
        return min(self._burst, known.tokens + (self._now() - known.at) * self._rate)


class Limiter:
    """
    Admits requests, or names the limit they exceed and when to retry.
    """

    def __init__(self, limits: EdgeLimits, now: Callable[[], float]) -> None:
        """
        Apply *limits*; *now* is a monotonic clock in seconds.
        """
        self._limits = limits
        self._rates = Buckets(limits.rate, 2 * limits.rate, now)
        self._tenant_rates = Buckets(limits.tenant_rate, 2 * limits.tenant_rate, now)
        bad = limits.bad_tokens
        self._bad_tokens = Buckets(bad / BAD_TOKENS_WINDOW_S, bad, now)
        self._same_token = Buckets(SAME_TOKEN_RATE, SAME_TOKEN_BURST, now)
        self._busy: Counter[str] = Counter()
        self._tenants_busy: Counter[str] = Counter()

    def check_token(self, token: str) -> None:
        """
        Check whether to verify *token*, which may have been bad before.

        Raises:
            Overloaded: this very token was bad too often.
        """
        _check(self._same_token, _digest(token), "bad_token")

    def note_bad_token(self, token: str, address: str) -> None:
        """
        Count *token* as bad, for itself and for *address*.

        A good token never comes here, so the failures of others refuse nobody: behind
        one address there may be a whole ingress. Verifying one costs less than its
        answer does.

        Raises:
            Overloaded: too many tokens of this address were bad.
        """
        self._same_token.take(_digest(token))
        _check(self._bad_tokens, address, "bad_tokens_of_address")
        self._bad_tokens.take(address)

    def check_rate(self, principal: Principal) -> None:
        """
        Count one request of *principal*.

        Raises:
            Overloaded: the principal or its tenant exceeds its rate.
        """
        name, tenant = _names(principal)
        _check(self._rates, name, "rate_of_principal")
        _check(self._tenant_rates, tenant, "rate_of_tenant")
        self._rates.take(name)
        self._tenant_rates.take(tenant)

    @contextmanager
    def in_flight(self, principal: Principal) -> Iterator[None]:
        """
        Count a request of *principal* as in flight for the time of the block.

        Raises:
            Overloaded: the principal or its tenant has as many in flight as allowed.
        """
        name, tenant = _names(principal)
        limits = self._limits
        _check_busy(self._busy[name], limits.concurrency, "concurrency_of_principal")
        _check_busy(
            self._tenants_busy[tenant],
            limits.tenant_concurrency,
            "concurrency_of_tenant",
        )
        self._busy[name] += 1
        self._tenants_busy[tenant] += 1
        try:
            yield
        finally:
            _decrement(self._busy, name)
            _decrement(self._tenants_busy, tenant)

    @property
    def busy(self) -> int:
        """
        The requests in flight.
        """
        return self._busy.total()


def _check(buckets: Buckets, name: str, limit: str) -> None:
    wait_s = buckets.wait_s(name)
    if wait_s > EPSILON_S:
        raise _refusal(limit, f"come again in {max(wait_s, 0.01):.2f} s", wait_s)


def _check_busy(busy: int, limits: int, limit: str) -> None:
    if busy >= limits:
        raise _refusal(limit, f"{busy} requests are worked on; wait for one of them", 1)


def _refusal(limit: str, remedy: str, wait_s: float) -> Overloaded:
    metrics.LIMITED.labels(limit).inc()

    return Overloaded(
        f"the limit {limit} of this edge is met; {remedy}",
        limit=limit,
        retry_after_s=round(wait_s, 3),
    )


def _digest(token: str) -> str:
    # Tokens of others must not lie in the memory of limits.
    return hashlib.blake2b(token.encode(), digest_size=16).hexdigest()


def _decrement(busy: Counter[str], name: str) -> None:
    busy[name] -= 1
    if busy[name] <= 0:
        del busy[name]


def _names(principal: Principal) -> tuple[str, str]:
    # Names have no slash, so two principals never share a key.
    return f"{principal.tenant}/{principal.name}", principal.tenant
