"""
The SDK for programs without asyncio: the same calls, and they block.

Each connection runs on an event loop of its own, in a daemon thread. What a
call means is told in `bus.client` and only there.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager
from typing import Any, ParamSpec, TypeVar

from bus import connection
from bus.client import DEFAULT_TIMEOUT_S, Mad
from bus.errors import Unavailable
from bus.messages import CommandOutcome, Session, TimelinePage

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
            Unavailable: the loop is closed, before the call or during it.
        """
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
        End the loop; calls that still wait are cancelled.
        """
        with self._lock:
            self._open = False
            # Behind every call made before: none is left without a loop.
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(END_WITHIN_S)


class SyncMad:
    """
    One instance of a MAD, connected to the bus; made by `connect`.

    Safe to use from many threads. Each method is the one of `bus.client.Mad`
    with the same name, arguments, result and exceptions.
    """

    def __init__(self, mad: Mad, loop: LoopThread) -> None:
        self.name = mad.name
        self._mad = mad
        self._loop = loop

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._mad.waiting

    def create_session(
        self,
        user_id: str,
        *,
        session_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Begin a session owned by *user_id*, at version 1.
        """
        return self._loop.call(
            self._mad.create_session, user_id, session_id=session_id, timeout=timeout
        )

    def get_or_create_session(
        self, user_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        The one session of *user_id* whose id follows from the user's name.
        """
        return self._loop.call(
            self._mad.get_or_create_session, user_id, timeout=timeout
        )

    def get_session(
        self, session_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        The session as it is after everything this instance published before.
        """
        return self._loop.call(self._mad.get_session, session_id, timeout=timeout)

    def update_session(
        self,
        session_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Merge *patch* (RFC 7396) into the session; its version rises by one.
        """
        return self._loop.call(
            self._mad.update_session,
            session_id,
            patch,
            expected_version=expected_version,
            timeout=timeout,
        )

    def delete_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """
        End the session for good.
        """
        self._loop.call(
            self._mad.delete_session,
            session_id,
            expected_version=expected_version,
            timeout=timeout,
        )

    def add_participant(
        self,
        session_id: str,
        mad: str,
        *,
        role: str = "",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Let *mad* take part in the session; twice is the same as once.
        """
        return self._loop.call(
            self._mad.add_participant, session_id, mad, role=role, timeout=timeout
        )

    def remove_participant(
        self, session_id: str, mad: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        End the part of *mad* in the session; twice is the same as once.
        """
        return self._loop.call(
            self._mad.remove_participant, session_id, mad, timeout=timeout
        )

    def join(
        self, session_id: str, *, role: str = "", timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        Take part in the session.
        """
        return self._loop.call(self._mad.join, session_id, role=role, timeout=timeout)

    def leave(self, session_id: str, *, timeout: float = DEFAULT_TIMEOUT_S) -> Session:
        """
        Take part no longer.
        """
        return self._loop.call(self._mad.leave, session_id, timeout=timeout)

    def append(self, session_id: str, entry: Any) -> str:
        """
        Add *entry* to the timeline, fire-and-forget; returns the command's id.

        Waits for its place in the queue, not for the bus.
        """

        async def queued() -> str:
            return self._mad.append(session_id, entry)

        return self._loop.call(queued)

    def append_and_wait(
        self, session_id: str, entry: Any, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> int:
        """
        Add *entry* to the timeline; returns its seq once it is committed.
        """
        return self._loop.call(
            self._mad.append_and_wait, session_id, entry, timeout=timeout
        )

    def flush(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """
        Return when everything published so far is on the bus.
        """
        self._loop.call(self._mad.flush, timeout=timeout)

    def timeline(
        self,
        session_id: str,
        *,
        after: int | None = 0,
        limit: int = 100,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> TimelinePage:
        """
        Entries behind seq *after*, at most *limit*, in ascending seq.
        """
        return self._loop.call(
            self._mad.timeline, session_id, after=after, limit=limit, timeout=timeout
        )

    def outcome(
        self, command_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> CommandOutcome:
        """
        What became of a command of this MAD, by its id.
        """
        return self._loop.call(self._mad.outcome, command_id, timeout=timeout)


@contextmanager
def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
) -> Iterator[SyncMad]:
    """
    A connected MAD; leaving the block flushes what was appended, then closes.

    As `bus.connect`. Ctrl-C in the block, or in a call, leaves it unflushed.
    """
    connecting = connection.connect(url, mad=mad, token=token, timeout=timeout)
    with closing(LoopThread(f"everbus-{mad or 'mad'}")) as loop:
        connected = loop.call(connecting.__aenter__)
        try:
            yield SyncMad(connected, loop)
        except BaseException as error:
            loop.call(connecting.__aexit__, type(error), error, error.__traceback__)
            raise
        loop.call(connecting.__aexit__, None, None, None)


async def _until_told(
    started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
) -> None:
    end = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), end))
    await end.wait()
