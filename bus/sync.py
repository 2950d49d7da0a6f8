"""
The SDK for programs without asyncio: the same calls, blocking.

Each connection runs on its own event loop in a daemon thread. `bus.client` describes
the calls.
"""

import asyncio
import os
import sys
import threading
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import CancelledError, Future
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    closing,
    contextmanager,
    suppress,
)
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from everbus.bus import connection
from everbus.bus.client import DEFAULT_TIMEOUT_S, Mad
from everbus.bus.connection import OnLost, SpoolPath
from everbus.bus.credential import TokenSource
from everbus.bus.errors import EverbusError, Invalid, Unavailable
from everbus.bus.events import SessionEvent
from everbus.bus.messages import CommittedTurn, Durability
from everbus.bus.single_use import SingleUse
from everbus.bus.spool import MAX_BYTES as SPOOL_BYTES
from everbus.bus.unsettled import OnRefused

P = ParamSpec("P")
T = TypeVar("T")

END_WITHIN_S = 10.0


class LoopThread:
    """
    An event loop in a daemon thread, from construction to `close`.
    """

    def __init__(self, name: str) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(_until_closed(started)), name=name, daemon=True
        )
        self._thread.start()
        self._loop, self._end = started.result(END_WITHIN_S)
        self._open = True
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def runs(self) -> bool:
        """
        Whether the thread runs: not in a forked child, and not while the interpreter
        exits.
        """
        return os.getpid() == self._process and not sys.is_finalizing()

    def call(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """
        Run a coroutine function on the loop, from any thread; return its result.

        A KeyboardInterrupt during the wait cancels the coroutine.

        Raises:
            Unavailable: the loop was closed before or during the call; or this is a
                forked child, or the interpreter exits.
            Invalid: this is the loop's own thread.
        """
        if threading.current_thread() is self._thread:
            raise Invalid(
                "called from the connection's own thread, as on_lost is: it would wait "
                "for itself. Set a flag there, and call from a thread of your own"
            )
        if not self.runs:
            raise Unavailable(
                "this connection stayed in the process that made it; connect() anew"
            )
        with self._lock:
            if not self._open:
                raise Unavailable("this connection is closed; connect() anew")
            coroutine = function(*args, **kwargs)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise Unavailable("the connection was closed during the call") from error
        finally:
            future.cancel()

    def close(self) -> None:
        """
        End the loop; waiting calls are cancelled. Idempotent.
        """
        if not self.runs:
            return
        with self._lock:
            self._open = False
            # After every earlier call: none is left without a loop.
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(END_WITHIN_S)


def _blocking(
    method: Callable[Concatenate[Mad, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SyncMad", P], T]:
    """
    Blocking method of SyncMad for *method* of Mad.
    """

    @wraps(method)
    def blocking(self: "SyncMad", /, *args: P.args, **kwargs: P.kwargs) -> T:
        function: Callable[P, Coroutine[Any, Any, T]]
        function = getattr(self._mad, method.__name__)
        return self._loop.call(function, *args, **kwargs)

    return blocking


class SyncMad:
    """
    One instance of a MAD, connected to the bus; made by `connect`.

    Safe to use from many threads. Each method is the one of `bus.client.Mad`
    with the same name, arguments, result and exceptions.
    """

    def __init__(self, mad: Mad, loop: LoopThread) -> None:
        self.name = mad.name
        self.instance = mad.instance
        self._mad = mad
        self._loop = loop

    def __repr__(self) -> str:
        return f"{self._mad!r:.200} in its own thread"

    @property
    def waiting(self) -> int:
        """
        Number of commands that are not on the bus yet.
        """
        return self._mad.waiting

    @property
    def losses(self) -> int:
        """
        How often this instance lost its lease and had to join again.
        """
        return self._mad.losses

    def append(
        self,
        session_id: str,
        entry: Any,
        *,
        expected_last_seq: int | None = None,
        durability: Durability = "hot",
    ) -> str:
        """
        Append *entry* to the timeline without waiting; return the command's id.

        Waits for its place in the queue, not for the bus.
        """

        async def queued() -> str:
            return self._mad.append(
                session_id,
                entry,
                expected_last_seq=expected_last_seq,
                durability=durability,
            )

        return self._loop.call(queued)

    def update_later(
        self,
        session_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        durability: Durability = "hot",
    ) -> str:
        """
        Merge *patch* into the session without waiting; return the command's id.

        Waits for its place in the queue, not for the bus.
        """

        async def queued() -> str:
            return self._mad.update_later(
                session_id,
                patch,
                expected_version=expected_version,
                durability=durability,
            )

        return self._loop.call(queued)

    def turn(
        self,
        session_id: str,
        entries: Iterable[Any] = (),
        patch: Mapping[str, Any] | None = None,
        *,
        expected_version: int | None = None,
        expected_last_seq: int | None = None,
        turn_id: str | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> CommittedTurn:
        """
        Append *entries* and merge *patch*, all or nothing; the version rises by one.

        As `await mad.turn(…)` of `bus.client.Mad`.
        """

        async def sent() -> CommittedTurn:
            return await self._mad.turn(
                *(session_id, entries, patch),
                expected_version=expected_version,
                expected_last_seq=expected_last_seq,
                turn_id=turn_id,
                command_id=command_id,
                durability=durability,
                timeout=timeout,
            )

        return self._loop.call(sent)

    def watch(
        self, session_id: str, *, after: str | None = None
    ) -> Iterator[SessionEvent]:
        """
        The events of the session, in order, each once.

        As `bus.client.Mad.watch`, but each step blocks until the next event.
        """

        async def begun() -> AsyncGenerator[SessionEvent, None]:
            return self._mad.watch(session_id, after=after)

        return self._events(self._loop.call(begun))

    def _events(
        self, watched: AsyncGenerator[SessionEvent, None]
    ) -> Iterator[SessionEvent]:
        async def following() -> SessionEvent | None:
            return await anext(watched, None)

        async def end() -> None:
            await watched.aclose()

        try:
            while (event := self._loop.call(following)) is not None:
                yield event
        finally:
            # The connection may be gone already, or it ends in its own thread.
            with suppress(EverbusError):
                self._loop.call(end)

    create_session = _blocking(Mad.create_session)
    get_or_create_session = _blocking(Mad.get_or_create_session)
    get_session = _blocking(Mad.get_session)
    update_session = _blocking(Mad.update_session)
    delete_session = _blocking(Mad.delete_session)
    suspend_session = _blocking(Mad.suspend_session)
    resume_session = _blocking(Mad.resume_session)
    durable = _blocking(Mad.durable)
    list_sessions = _blocking(Mad.list_sessions)
    stats = _blocking(Mad.stats)
    add_participant = _blocking(Mad.add_participant)
    remove_participant = _blocking(Mad.remove_participant)
    join = _blocking(Mad.join)
    leave = _blocking(Mad.leave)
    append_and_wait = _blocking(Mad.append_and_wait)
    flush = _blocking(Mad.flush)
    timeline = _blocking(Mad.timeline)
    session_at = _blocking(Mad.session_at)
    diff = _blocking(Mad.diff)
    create_checkpoint = _blocking(Mad.create_checkpoint)
    checkpoints = _blocking(Mad.checkpoints)
    broadcast = _blocking(Mad.broadcast)
    restore_checkpoint = _blocking(Mad.restore_checkpoint)
    outcome = _blocking(Mad.outcome)
    call = _blocking(Mad.call)
    cancel = _blocking(Mad.cancel)


def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: TokenSource | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    lease: bool = True,
    on_lost: OnLost | None = None,
    on_refused: OnRefused | None = None,
    spool: SpoolPath | None = None,
    spool_bytes: int = SPOOL_BYTES,
) -> AbstractContextManager[SyncMad]:
    """
    Connect a MAD; leaving the block flushes the appended entries, then closes.

    As `bus.connect`. Ctrl-C in the block, or in a call, skips the flush. *on_lost* is
    called in the connection's thread: it may set a flag or fill a queue, but calls of
    this MAD raise Invalid there.
    """
    connecting = connection.connect(
        url,
        mad=mad,
        token=token,
        timeout=timeout,
        lease=lease,
        on_lost=on_lost,
        on_refused=on_refused,
        spool=spool,
        spool_bytes=spool_bytes,
    )
    return SingleUse(_connected(connecting, f"everbus-{mad or 'mad'}"))


@contextmanager
def _connected(
    connecting: AbstractAsyncContextManager[Mad], thread: str
) -> Iterator[SyncMad]:
    with closing(LoopThread(thread)) as loop:
        connected = loop.call(connecting.__aenter__)
        try:
            yield SyncMad(connected, loop)
        except BaseException as error:
            if loop.runs:
                loop.call(connecting.__aexit__, type(error), error, error.__traceback__)
            raise
        if loop.runs:
            loop.call(connecting.__aexit__, None, None, None)


async def _until_closed(
    started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
) -> None:
    end = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), end))
    await end.wait()
