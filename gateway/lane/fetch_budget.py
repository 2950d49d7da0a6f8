"""
Bytes that a replica holds of the lower tiers' answers until they are committed.
"""

import asyncio

import msgspec

from everbus.bus.errors import EverbusError
from everbus.bus.messages import TimelinePage, pack
from everbus.gateway.store.read_bound import PAGE_BYTES
from everbus.gateway.telemetry import metrics


class FetchBudget:
    """
    A bound shared by all lanes of a replica.

    Args:
        most_bytes: the bound; a single read always fits.
        page_bytes: taken for a read whose answer is not there yet.
    """

    def __init__(
        self, most_bytes: int = 32 * 1024 * 1024, page_bytes: int = PAGE_BYTES
    ) -> None:
        self.page_bytes = page_bytes
        self._most = most_bytes
        self._taken = 0
        self._given = asyncio.Event()

    async def take(self) -> None:
        """
        Wait until there is room for one more page, and take it.
        """
        if self._is_full():
            metrics.BOUND_REACHED.labels("fetched_max_bytes").inc()
        while self._is_full():
            await self._given.wait()
        self._taken += self.page_bytes

    def _is_full(self) -> bool:
        return self._taken > 0 and self._taken + self.page_bytes > self._most

    def give(self, size: int) -> None:
        """
        Give *size* bytes back; a negative size takes more.
        """
        self._taken -= size
        waiting, self._given = self._given, asyncio.Event()
        waiting.set()


def bytes_of(answer: object) -> int:
    """
    The size of an answer of the lower tiers, as its reply has it.
    """
    if isinstance(answer, EverbusError):
        return 0
    if isinstance(answer, TimelinePage):
        return sum(memoryview(entry).nbytes for entry in _raw_entries(answer))
    return len(pack(answer))


def _raw_entries(page: TimelinePage) -> tuple[msgspec.Raw, ...]:
    return page.entries  # type: ignore[return-value]  # encoded, see page_of
