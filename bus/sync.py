"""
The SDK for programs without asyncio: the same calls, and they block.

Each connection runs on an event loop of its own, in a daemon thread. What a
call means is told in `bus.client` and only there.
"""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from bus import connection
from bus.client import DEFAULT_TIMEOUT_S, Mad
from bus.connection import OnLost, SpoolPath
from bus.credential import TokenSource
from bus.errors import EverbusError, Invalid, Unavailable
from bus.events import SessionEvent
from bus.messages import Durability
from bus.spool import MAX_BYTES as SPOOL_BYTES

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
            target=lambda: asyncio.run(_until_told(started)), name=name, daemon=True
        )
        self._thread.start()
        self._loop, self._end = started.result(END_WITHIN_S)
        self._open = True
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def runs(self) -> bool:
        """
        Whether the thread can do anything: not in a forked child, which has none, and
        not while the interpreter ends, which stops it for good.
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
        The result of a coroutine function run on the loop; from any thread.

        A KeyboardInterrupt while it waits cancels the coroutine.

        Raises:
            Unavailable: the loop is closed, before the call or during it; or this is
                a forked child, or the end of the interpreter.
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
        End the loop, if it runs; calls that still wait are cancelled.
        """
        if not self.runs:
            return
        with self._lock:
            self._open = False
            # Behind every call made before: none is left without a loop.
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(END_WITHIN_S)


def _blocking(
    method: Callable[Concatenate[Mad, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SyncMad", P], T]:
    """
    The method of SyncMad that blocks until *method* of Mad is done.
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

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._mad.waiting

    @property
    def losses(self) -> int:
        """
        How often this instance had to join anew, since it was unheard for too long.
        """
        return self._mad.losses

    def append(
        self, session_id: str, entry: Any, *, durability: Durability = "hot"
    ) -> str:
        """
        Add *entry* to the timeline, fire-and-forget; returns the command's id.

        Waits for its place in the queue, not for the bus.
        """

        async def queued() -> str:
            return self._mad.append(session_id, entry, durability=durability)

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
        Merge *patch* into the session, fire-and-forget; returns the command's id.

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

    def watch(
        self, session_id: str, *, after: str | None = None
    ) -> Iterator[SessionEvent]:
        """
        Everything that happens in the session, in order, each event once.

        As `bus.client.Mad.watch`, but the loop over it blocks until there is more.
        """
        return self._events(self._mad.watch(session_id, after=after))

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
    cancel = _blocking(Mad.cancel)


@contextmanager
def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: TokenSource | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    lease: bool = True,
    on_lost: OnLost | None = None,
    spool: SpoolPath | None = None,
    spool_bytes: int = SPOOL_BYTES,
) -> Iterator[SyncMad]:
    """
    A connected MAD; leaving the block flushes what was appended, then closes.

    As `bus.connect`. Ctrl-C in the block, or in a call, leaves it unflushed.
    *on_lost* is called in the connection's own thread: it may set a flag or put
    something into a queue, but calls of this MAD are refused there.
    """
    connecting = connection.connect(
        url,
        mad=mad,
        token=token,
        timeout=timeout,
        lease=lease,
        on_lost=on_lost,
        spool=spool,
        spool_bytes=spool_bytes,
    )
    with closing(LoopThread(f"everbus-{mad or 'mad'}")) as loop:
        connected = loop.call(connecting.__aenter__)
        try:
            yield SyncMad(connected, loop)
        except BaseException as error:
            if loop.runs:
                loop.call(connecting.__aexit__, type(error), error, error.__traceback__)
            raise
        if loop.runs:
            loop.call(connecting.__aexit__, None, None, None)


async def _until_told(
    started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
) -> None:
    end = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), end))
    await end.wait()
