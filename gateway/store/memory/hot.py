"""
The hot tier in memory: what `HotTier` means, without a server.
"""

import time
from collections.abc import Callable, Sequence

from bus.messages import Session


class MemoryHot:
    """
    Hot copies that are all held below, each until its time is up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[Session, float]] = {}

    async def get(self, session_id: str) -> Session | None:
        """
        See HotTier.
        """
        session, until = self._held.get(session_id, (None, 0.0))
        return session if self._clock() < until else None

    async def admit(self, session: Session, ttl_s: float) -> bool:
        """
        See HotTier.
        """
        if await self.exists(session.id):
            return False
        self._held[session.id] = (session, self._clock() + ttl_s)
        return True

    async def forget(self, session_id: str) -> bool:
        """
        See HotTier.
        """
        self._held.pop(session_id, None)
        return True

    async def exists(self, session_id: str) -> bool:
        """
        See HotTier.
        """
        return await self.get(session_id) is not None

    async def active(self, limit: int) -> Sequence[str]:
        """
        See HotTier.
        """
        now = self._clock()
        return [key for key, (_, until) in self._held.items() if now < until][:limit]

    async def count(self) -> int:
        """
        See HotTier.
        """
        return len(await self.active(len(self._held)))
