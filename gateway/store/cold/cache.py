"""
A cache of fetched objects, bounded in bytes, with one fetch per key at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class Weighed(NamedTuple, Generic[T]):
    """
    A value and about its size in bytes.
    """

    value: T
    bytes: int


class ArchiveCache(Generic[T]):
    """
    Values by key, least recently used first out, at most *limit* bytes.

    Of concurrent calls for a value, one fetches it. All of them get its error, which is
    not kept; if the fetching call is cancelled, another one fetches.
    """

    def __init__(self, limit: int) -> None:
        self._kept: LRUCache[str, Weighed[T]] = LRUCache(
            limit, getsizeof=attrgetter("bytes")
        )
        self._flights: dict[str, asyncio.Future[T]] = {}

    async def get(self, key: str, fetch: Callable[[], Awaitable[Weighed[T]]]) -> T:
        """
        The value of *key*, from the cache or from *fetch*.

        Raises:
            Exception: any exception of *fetch*.
        """
        while key not in self._kept:
            flight = self._flights.get(key)
            if flight is None:
                return await self._fetched(key, fetch)
            await asyncio.wait([flight])
            if not flight.cancelled():
                return flight.result()
        return self._kept[key].value

    async def _fetched(self, key: str, fetch: Callable[[], Awaitable[Weighed[T]]]) -> T:
        flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            found = await fetch()
            if found.bytes <= self._kept.maxsize:
                self._kept[key] = found
            flight.set_result(found.value)
        except Exception as error:
            flight.set_exception(error)
            raise
        finally:
            del self._flights[key]
            # If this was cancelled, the others try; and asyncio does not complain
            # of an error that nobody else waited for.
            flight.cancel()

        return found.value
