"""
A part of the stack that is kept running: started again whenever it ends.
"""

import asyncio
import signal
import time
from collections import deque

from compose.processes import PartFailed, Running, Server, start
from compose.records import Say

MAX_DEATHS = 5
DEATHS_WITHIN_S = 30.0
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0


class Part:
    """
    One server and its present incarnation.
    """

    def __init__(self, server: Server, say: Say) -> None:
        """
        Prepare *server*; *say* is told, line by line, what happens to it.
        """
        self.server = server
        self._say = say
        self._running: Running | None = None
        self._ready = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        # Whether the present incarnation's end was ordered by us.
        self._ordered = False

    @property
    def pid(self) -> int:
        """
        The id of the present or, between two, of the last process; 0 if none.
        """
        return self._running.pid if self._running else 0

    @property
    def state(self) -> str:
        """
        `ready` or `starting`.
        """
        return "ready" if self._ready.is_set() else "starting"

    async def start(self) -> Running:
        """
        Start the part and wait until it serves.

        Raises:
            PartFailed: it does not.
        """
        self._running = await start(self.server)
        self._ready.set()

        return self._running

    async def keep(self) -> None:
        """
        Start the part again whenever it ends, for ever.

        Raises:
            PartFailed: it died MAX_DEATHS times within DEATHS_WITHIN_S.
        """
        while True:
            try:
                cause = await self._ended()
            except PartFailed as error:
                cause = error
            self._ready.clear()
            await asyncio.sleep(self._pause(cause))

    async def until_ready(self, timeout: float = 60.0) -> None:
        """
        Wait until the part serves (again); raises TimeoutError.
        """
        async with asyncio.timeout(timeout):
            await self._ready.wait()

    async def restart(self) -> None:
        """
        End the part in order, and wait until its next incarnation serves.
        """
        running = self._order_end()
        if running:
            await running.stop()
        await self.until_ready()

    async def kill(self) -> None:
        """
        End the part by SIGKILL; it is started again at once, see until_ready().
        """
        running = self._order_end()
        if running:
            running.signal(signal.SIGKILL)
            await running.wait()

    async def stop(self) -> None:
        """
        End the part for good; keep() must not run any more.
        """
        if self._running and self._running.alive:
            await self._running.stop()
        self._ready.clear()

    async def _ended(self) -> PartFailed:
        """
        Run the part to its end, which is returned.
        """
        running = self._running
        if running is None or not running.alive:
            running = await self.start()
        code = await running.wait()

        return running.failure(f"ended ({code})")

    def _order_end(self) -> Running | None:
        """
        The incarnation to be ended, if there is one; its end is then no death.
        """
        self._ready.clear()
        if self._running is None or not self._running.alive:
            return None
        self._ordered = True

        return self._running

    def _pause(self, cause: PartFailed) -> float:
        """
        How long to wait before the next start, in seconds.
        """
        if self._ordered:
            self._ordered = False
            return 0.0
        now = time.monotonic()
        self._deaths.append(now)
        recent = sum(now - death < DEATHS_WITHIN_S for death in self._deaths)
        if recent >= MAX_DEATHS:
            raise PartFailed(
                f"{self.server.name} died {recent} times within {DEATHS_WITHIN_S:g} s, "
                f"so the stack ends. {cause}"
            ) from cause
        pause = min(FIRST_PAUSE_S * 2.0 ** (recent - 1), MAX_PAUSE_S)
        what = str(cause).partition(";")[0]
        self._say(f"{what}; it is started again in {pause:g} s")

        return pause
