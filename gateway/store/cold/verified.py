"""
Verified objects of the cold tier; the one place that reports corruption.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from everbus.bus.errors import TooLarge
from everbus.gateway.store.cold.format import open_chunk
from everbus.gateway.store.cold.manifest import ArchivePart, Chunk, corrupted
from everbus.gateway.store.tiers import ColdTier, Corrupted
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

T = TypeVar("T")


@contextmanager
def alarm(key: str) -> Iterator[None]:
    """
    Log and count a Corrupted error raised in the block.
    """
    try:
        yield
    except Corrupted as error:
        metrics.CORRUPTED.inc()
        # Without a traceback: the object is at fault, and the reason says how.
        log.error("cold.corrupted", key=key, reason=error.message)  # noqa: TRY400
        raise


class Verified:
    """
    A cold tier that returns verified objects, or raises.
    """

    def __init__(self, cold: ColdTier) -> None:
        self._cold = cold

    async def opened(self, key: str, limit: int, opened: Callable[[bytes], T]) -> T:
        """
        What *opened* makes of the object, which has at most *limit* bytes; it runs
        in a thread.

        Raises:
            Corrupted: there is no such object, it is longer, or *opened* raises it.
        """
        with alarm(key):
            try:
                data = await self._cold.get(key, limit)
            except TooLarge as error:
                raise corrupted(key, f"has more than {limit} bytes") from error
            if data is None:
                raise corrupted(key, "is missing")
            return await asyncio.to_thread(opened, data)

    async def chunk(self, key: str, chunk: Chunk) -> list[bytes]:
        """
        The packed entries of a chunk.
        """
        return await self.opened(
            key, chunk.bytes, lambda data: open_chunk(key, chunk, data)
        )

    async def put(self, key: str, data: bytes) -> None:
        """
        Put an object there; it is not read back.
        """
        await self._cold.put(key, data)

    async def read_back(self, key: str, data: bytes) -> None:
        """
        Accept an object that was just put, if it is there as it was given.
        """

        def check(there: bytes) -> None:
            if there != data:
                raise corrupted(key, "is not what was just put there")

        await self.opened(key, len(data), check)

    async def check_length(self, key: str, part: ArchivePart) -> None:
        """
        Accept an object that has the length that its manifest says.
        """
        size = await self._cold.size(key)
        with alarm(key):
            if size is None:
                raise corrupted(key, "is missing")
            if size != part.bytes:
                raise corrupted(key, f"has {size} bytes and not {part.bytes}")

    async def exists(self, key: str) -> bool:
        """
        Whether there is such an object.
        """
        return await self._cold.size(key) is not None

    async def delete(self, key: str) -> None:
        """
        Remove an object, if it is there.
        """
        await self._cold.delete(key)

    def close(self) -> None:
        """
        Give connections back.
        """
        self._cold.close()
