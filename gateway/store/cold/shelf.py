"""
What was fetched last, kept at hand: bounded in bytes, each fetched once at a time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Weighed(NamedTuple, Generic[T]):
    """
    A value and about how many bytes it takes.
    """

    value: T
    bytes: int


class Shelf(Generic[T]):
    """
    Values by key; those asked for last, at most *limit* bytes of them.

    However many ask for a value at a time, one of them fetches it. What goes wrong
    is told to all of these and not kept; if the one that fetches is cancelled,
    another does.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[str, Weighed[T]] = OrderedDict()
        self._flights: dict[str, asyncio.Future[T]] = {}

    async def get(self, key: str, fetch: Callable[[], Awaitable[Weighed[T]]]) -> T:
        """
        The value of *key*, as kept or as *fetch* brings it.

        Raises:
            Exception: whatever *fetch* raises.
        """
        while key not in self._kept:
            flight = self._flights.get(key)
            if flight is None:
                return await self._fetched(key, fetch)
            await asyncio.wait([flight])
            if not flight.cancelled():
                return flight.result()
        self._kept.move_to_end(key)

        return self._kept[key].value

    async def _fetched(self, key: str, fetch: Callable[[], Awaitable[Weighed[T]]]) -> T:
        flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            found = await fetch()
            self._keep(key, found)
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

    def _keep(self, key: str, found: Weighed[T]) -> None:
        if found.bytes > self._limit:
            return
        self._kept[key] = found
        self._bytes += found.bytes
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.bytes
