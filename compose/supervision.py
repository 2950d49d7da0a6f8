"""
Supervision of a process of the stack: it is started again whenever it ends.
"""

import asyncio
import signal
import time
from collections import deque

from everbus.bus.backoff import Backoff
from everbus.compose.process_records import Say
from everbus.compose.processes import ProcessFailed, ProcessSpec, RunningProcess, start

MAX_DEATHS = 5
DEATHS_WITHIN_S = 30.0
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0


class SupervisedProcess:
    """
    One server and its present incarnation.
    """

    def __init__(self, server: ProcessSpec, say: Say) -> None:
        """
        Prepare *server*; *say* gets each event as a line of text.
        """
        self.server = server
        self._say = say
        self._running: RunningProcess | None = None
        self._ready = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        # Whether the supervisor ordered the end of the present incarnation.
        self._ordered = False

    @property
    def pid(self) -> int:
        """
        The id of the present process, else of the last one; 0 before the first.
        """
        return self._running.pid if self._running else 0

    @property
    def state(self) -> str:
        """
        `ready` or `starting`.
        """
        return "ready" if self._ready.is_set() else "starting"

    async def start(self) -> RunningProcess:
        """
        Start the process and wait until it serves.

        Raises:
            ProcessFailed: the process does not serve.
        """
        self._running = await start(self.server)
        self._ready.set()

        return self._running

    async def keep(self) -> None:
        """
        Start the process again whenever it ends, for ever.

        Raises:
            ProcessFailed: it died MAX_DEATHS times within DEATHS_WITHIN_S.
        """
        while True:
            try:
                cause = await self._ended()
            except ProcessFailed as error:
                cause = error
            self._ready.clear()
            await asyncio.sleep(self._pause(cause))

    async def until_ready(self, timeout: float = 60.0) -> None:
        """
        Wait until the process serves (again); raises TimeoutError.
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
        End the process for good; keep() must not run any more.
        """
        if self._running and self._running.alive:
            await self._running.stop()
        self._ready.clear()

    async def _ended(self) -> ProcessFailed:
        """
        Run the process to its end; returns the error that describes it.
        """
        running = self._running
        if running is None or not running.alive:
            running = await self.start()
        code = await running.wait()

        return running.failure(f"ended ({code})")

    def _order_end(self) -> RunningProcess | None:
        """
        The incarnation to end, if any; its end then does not count as a death.
        """
        self._ready.clear()
        if self._running is None or not self._running.alive:
            return None
        self._ordered = True

        return self._running

    def _pause(self, cause: ProcessFailed) -> float:
        """
        The pause before the next start, in seconds.
        """
        if self._ordered:
            self._ordered = False
            return 0.0
        now = time.monotonic()
        self._deaths.append(now)
        recent = sum(now - death < DEATHS_WITHIN_S for death in self._deaths)
        if recent >= MAX_DEATHS:
            raise ProcessFailed(
                f"{self.server.name} died {recent} times within {DEATHS_WITHIN_S:g} s, "
                f"so the stack ends. {cause}"
            ) from cause
        pause = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S).after(recent)
        what = str(cause).partition(";")[0]
        self._say(f"{what}; it is started again in {pause:g} s")

        return pause
