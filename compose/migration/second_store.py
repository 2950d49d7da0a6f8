"""
The second store of a dual write: what it has not got yet, and the task that sees to it.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec

from everbus.bus.errors import Rejection
from everbus.compose.migration.copying import PASSING, Diverged

# Conversations that everbus has to catch up with; beyond it a backfill has to.
MAX_MARKED = 100_000
# Messages that the old store has to get, of all conversations.
MAX_OWED = 10_000
# Conversations whose place is remembered, so that a write reads no more than its row.
MAX_PLACES = 10_000
AT_ONCE = 8
RETRY_S = 1.0
END_S = 10.0
T = TypeVar("T")

WriteOld = Callable[[str, Mapping[str, Any]], Awaitable[object]]


class DualStatus(msgspec.Struct):
    """
    What the second store has not got, and why.

    Attributes:
        behind: conversations that everbus still has to catch up with.
        owed: messages that the old store still has to get.
        failures: failed attempts; each is repeated.
        dropped: given up since too much waited: a backfill or comparison finds it.
        refused: rows or conversations that everbus cannot take.
        diverged: times that everbus held something else than the old store.
        last_error: text of the newest failure.
    """

    behind: int = 0
    owed: int = 0
    failures: int = 0
    dropped: int = 0
    refused: int = 0
    diverged: int = 0
    last_error: str = ""


class Remembered(Generic[T]):
    """
    The newest MAX_PLACES values by key. A MAD's own install has no cachetools.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[str, T] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> tuple[T, ...]:
        """
        The value of *key* in a tuple, empty without one.
        """
        return (self._values[key],) if key in self._values else ()

    def put(self, key: str, value: T) -> None:
        """
        Remember *value*; the oldest one goes.
        """
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > MAX_PLACES:
            self._values.popitem(last=False)

    def forget(self, key: str) -> None:
        """
        Forget the value of *key*, if there is one.
        """
        self._values.pop(key, None)


class SecondStore:
    """
    Brings up the second store, conversation by conversation, until nothing is left.
    """

    def __init__(
        self,
        bring_up: Callable[[str, Remembered[Any]], Awaitable[None]],
        write_old: WriteOld,
        status: DualStatus,
    ) -> None:
        self._bring_up, self._write_old = bring_up, write_old
        self._status = status
        self._marked: OrderedDict[str, None] = OrderedDict()
        self._owed: dict[str, deque[Mapping[str, Any]]] = {}
        self._places: Remembered[Any] = Remembered()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._work = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """
        Begin to follow.
        """
        self._tasks.add(asyncio.create_task(self._follow()))

    async def end(self) -> None:
        """
        Stop following, after one more attempt of at most END_S.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._catch_up()

    def snapshot(self) -> DualStatus:
        """
        The status now.
        """
        return msgspec.structs.replace(
            self._status, behind=len(self._marked), owed=self._count_owed()
        )

    def mark(self, key: str) -> None:
        """
        The old store has more of *key* than everbus.
        """
        if key not in self._marked and len(self._marked) >= MAX_MARKED:
            self._status.dropped += 1
            return
        self._marked[key] = None
        self._work.set()

    def owe(self, key: str, message: Mapping[str, Any]) -> None:
        """
        Everbus has a message that the old store has to get, in this order.
        """
        if self._count_owed() >= MAX_OWED:
            self._status.dropped += 1
            return
        self._owed.setdefault(key, deque()).append(message)
        self._work.set()

    async def pay(self, key: str) -> None:
        """
        Give the old store what it has to get of *key*; raises what it raises.
        """
        async with self._turn(key):
            await self._pay(key)

    async def attempt_within(self, key: str, seconds: float) -> None:
        """
        Wait for an attempt at *key*, at most so long; the attempt goes on.
        """
        attempt = asyncio.create_task(self._attempt(key))
        self._tasks.add(attempt)
        attempt.add_done_callback(self._tasks.discard)
        await asyncio.wait({attempt}, timeout=seconds)

    async def _follow(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if not await self._catch_up():
                await asyncio.sleep(RETRY_S)
                self._work.set()

    async def _catch_up(self) -> bool:
        """
        One attempt at all that waits; whether all succeeded.
        """
        left = iter([*self._marked, *self._owed])
        failed = 0

        async def worker() -> None:
            nonlocal failed
            for key in left:
                failed += not await self._attempt(key)

        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(worker())
        return not failed

    async def _attempt(self, key: str) -> bool:
        async with self._turn(key):
            # Before the old store is read: a write meanwhile marks it again.
            marked = key in self._marked
            self._marked.pop(key, None)
            try:
                await self._pay(key)
                if marked:
                    await self._bring_up(key, self._places)
            except Diverged as error:
                self._status.diverged += 1
                self._status.last_error = str(error)
            except asyncio.CancelledError:
                self._mark_if(marked, key)
                raise
            except Exception as error:  # noqa: BLE001 - foreign stores; it is repeated
                return self._failed(error, marked, key)
        return True

    def _failed(self, error: Exception, marked: bool, key: str) -> bool:
        self._status.last_error = f"{type(error).__name__}: {error}"
        if isinstance(error, Rejection) and not isinstance(error, PASSING):
            self._status.refused += 1
            return True
        self._status.failures += 1
        self._mark_if(marked, key)

        return False

    def _mark_if(self, marked: bool, key: str) -> None:
        if marked:
            self.mark(key)

    async def _pay(self, key: str) -> None:
        while owed := self._owed.get(key):
            await self._write_old(key, owed[0])
            owed.popleft()
        self._owed.pop(key, None)

    def _count_owed(self) -> int:
        return sum(map(len, self._owed.values()))

    def _turn(self, key: str) -> asyncio.Lock:
        return self._turns.setdefault(key, asyncio.Lock())
