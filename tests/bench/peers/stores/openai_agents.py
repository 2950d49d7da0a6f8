"""
OpenAI Agents' RedisSession: a list of JSON in Redis, one client for all sessions.
"""

from agents.extensions.memory import RedisSession
from redis.asyncio import Redis

from tests.bench.peers import store_script
from tests.bench.peers.store_script import SESSIONS, TAIL


class Sessions:
    """
    RedisSession of every number.
    """

    async def open(self, target: str) -> bool:
        """
        Make the sessions, which exist from their first item on.
        """
        self._client = Redis.from_url(target)
        self._sessions = [
            RedisSession(f"s{n}", redis_client=self._client) for n in range(SESSIONS)
        ]
        return False

    async def append(self, session: int, text: str) -> object:
        """
        Add one item; returns when Redis has it.
        """
        await self._sessions[session].add_items([{"role": "user", "content": text}])
        return None

    async def tail(self, session: int) -> int:
        """
        Read the newest items.
        """
        return len(await self._sessions[session].get_items(limit=TAIL))

    async def full(self, session: int) -> int:
        """
        Read all items.
        """
        return len(await self._sessions[session].get_items())

    async def count(self, session: int) -> int:
        """
        How many items there are.
        """
        return await self.full(session)

    async def close(self) -> None:
        """
        Close the client.
        """
        await self._client.aclose()


if __name__ == "__main__":
    store_script.run(Sessions())
