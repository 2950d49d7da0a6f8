"""
everbus: a MAD's appends and reads of the hot tail, through one replica.

Read in full, a session of more than 20 entries comes from MongoDB: that is measured
by `tests.bench.tiers`, not here.
"""

import asyncio
import os

from everbus.bus import Mad, connect
from everbus.bus.errors import Overloaded
from tests.bench.peers import store_script
from tests.bench.peers.store_script import SESSIONS, TAIL, Stopwatch

# Of the environment, since a command line is for everybody to read.
TOKEN = "EVERBUS_TOKEN"
TIMEOUT_S = 60.0


class Everbus:
    """
    Sessions of one MAD.
    """

    _mad: Mad

    async def open(self, target: str) -> bool:
        """
        Make the sessions.
        """
        self._bus = connect(
            target, mad="bench", token=os.environ[TOKEN], timeout=TIMEOUT_S
        )
        self._mad = await self._bus.__aenter__()
        made = (self._mad.create_session("bench") for _ in range(SESSIONS))
        self._ids = [session.id for session in await asyncio.gather(*made)]
        return False

    async def append(self, session: int, text: str) -> object:
        """
        Add one entry; returns when it is committed.
        """
        return await self._mad.append_and_wait(self._ids[session], {"text": text})

    async def later(self, session: int, text: str) -> None:
        """
        Publish one entry, and wait for nothing unless the queue is full.
        """
        while True:
            try:
                self._mad.append(self._ids[session], {"text": text})
            except Overloaded:
                await self._mad.flush(timeout=TIMEOUT_S)
            else:
                return

    async def committed(self) -> None:
        """
        Wait for all that was published: a read sees what its own MAD sent before.
        """
        await self._mad.flush(timeout=TIMEOUT_S)
        await asyncio.gather(*map(self.count, range(SESSIONS)))

    async def tail(self, session: int) -> int:
        """
        Read the newest entries.
        """
        page = await self._mad.timeline(self._ids[session], after=None, limit=TAIL)
        return len(page.entries)

    async def full(self, session: int) -> int:
        """
        Not measured here.
        """
        raise NotImplementedError("the archiver and MongoDB are not part of this run")

    async def count(self, session: int) -> int:
        """
        The seq of the newest entry: they have no gaps.
        """
        told = await self._mad.get_session(self._ids[session], timeout=TIMEOUT_S)
        return told.last_seq

    async def close(self) -> None:
        """
        Leave the bus.
        """
        await self._bus.__aexit__(None, None, None)


async def measured(store: Everbus, watch: Stopwatch, count: int) -> int:
    """
    What every store can do, and appends that nobody waits for.
    """
    entered = await store_script.measure(store, watch, count, full=False)
    text = store_script.texts()

    async def later(number: int) -> None:
        await store.later(number % SESSIONS, next(text))

    await watch.time(store_script.LATER, later, 10 * count, last=store.committed)
    return entered + 10 * count


if __name__ == "__main__":
    store_script.run(Everbus(), measured)
