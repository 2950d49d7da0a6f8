"""
Latencies in bounded memory: exact below 128 us, else within 1.6 %.
"""

import math
from collections.abc import Iterator

# Each doubling has so many buckets, as in HDR histograms.
_SUB_BITS = 6
_EXACT = 2 << _SUB_BITS


class Histogram:
    """
    Counts of durations by bucket; an hour takes 1,700 of them at most.
    """

    __slots__ = ("_counts", "count", "max_us")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.max_us = 0

    def note(self, us: int) -> None:
        """
        Count one duration in microseconds; below 0 counts as 0.
        """
        us = max(us, 0)
        bucket = bucket_of(us)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.max_us = max(self.max_us, us)

    def quantile_us(self, share: float) -> int:
        """
        The duration that *share* of all do not exceed; 0 if there is none.

        Never less than the true one: the highest that falls into its bucket.
        """
        rank, seen = max(1, math.ceil(share * self.count - 1e-9)), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(upper_us(bucket), self.max_us)
        return 0

    def buckets(self) -> Iterator[tuple[int, int]]:
        """
        The lower bound of each bucket in us, and how many fell into it.
        """
        for bucket, count in sorted(self._counts.items()):
            yield lower_us(bucket), count


def bucket_of(us: int) -> int:
    """
    The bucket that a duration falls into.
    """
    if us < _EXACT:
        return us
    shift = us.bit_length() - _SUB_BITS - 1

    return (shift << _SUB_BITS) + (us >> shift)


def lower_us(bucket: int) -> int:
    """
    The least duration in a bucket.
    """
    if bucket < _EXACT:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1

    return (bucket - (shift << _SUB_BITS)) << shift


def upper_us(bucket: int) -> int:
    """
    The greatest duration in a bucket.
    """
    return lower_us(bucket + 1) - 1
