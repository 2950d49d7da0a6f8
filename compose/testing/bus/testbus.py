"""
A whole bus in memory, for tests of MADs.

It runs on an event loop of its own, in a thread: a test that blocks or computes does
not stop the replicas, the blocking SDK can be tested, and the fixture is the same for
every pytest plugin for asyncio.
"""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from everbus.archiver.archiving import ArchiveReport
from everbus.bus.errors import Invalid
from everbus.bus.sync import LoopThread
from everbus.compose.testing.bus.faults import Fault
from everbus.compose.testing.bus.in_memory import InMemoryBus
from everbus.compose.testing.bus.quiet_logs import quiet_logs
from everbus.compose.testing.bus.under_test import BusUnderTest

P = ParamSpec("P")
T = TypeVar("T")

LEASE_S = 30.0


class TestBus(BusUnderTest):
    """
    A bus in memory for the time of its block, `async with` or `with`.

    Its methods may be called from any thread and block for some milliseconds at most.

    Attributes:
        lease_s: how long after its last heartbeat a MAD counts as alive, on the bus's
            own clock, which `advance` moves.
    """

    # It is no test class, whatever pytest thinks of the name.
    __test__ = False

    def __init__(
        self,
        *,
        replicas: int = 1,
        partitions: int = 2,
        lease_s: float = LEASE_S,
        settings: Mapping[str, str] | None = None,
        logs: bool = False,
    ) -> None:
        """
        Prepare a bus; nothing runs before the block.

        Args:
            replicas: how many SessionManagers serve it.
            settings: more `EVERBUS_*` settings of managers and archiver, for example
                EVERBUS_SESSION_FIELDS, or EVERBUS_COLD_STORE for a tier of your own.
            logs: whether the parts of the bus may log below an error.
        """
        self.url = ""
        self.secret = ""
        self.lease_s = lease_s
        self._replicas = replicas
        self._partitions = partitions
        self._settings = dict(settings or {})
        self._logs = logs
        self._closing = ExitStack()
        self._thread: LoopThread | None = None
        self._inside: InMemoryBus | None = None

    def __enter__(self) -> Self:
        """
        Start it.
        """
        with ExitStack() as closing:
            closing.enter_context(quiet_logs(not self._logs))
            self._thread = LoopThread("everbus-in-memory")
            closing.callback(self._thread.close)
            self._inside = InMemoryBus(self._partitions, self.lease_s, self._settings)
            self._thread.call(self._inside.open, self._replicas)
            closing.callback(self._thread.call, self._inside.close)
            self._closing = closing.pop_all()
        self.url, self.secret = self._inside.url, self._inside.secret

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        End it at once; nothing is kept.
        """
        self._closing.close()
        self._thread = self._inside = None

    async def __aenter__(self) -> Self:
        """
        As `__enter__`.
        """
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        As `__exit__`.
        """
        self.__exit__(kind, error, trace)

    @property
    def replicas(self) -> tuple[str, ...]:
        """
        The names of the replicas that live.
        """
        return self._bus.replicas

    @property
    def faults_left(self) -> int:
        """
        How many requests planned faults still wait for; 0 at the end of a test that
        met all of them.
        """
        return self._bus.faults.left

    def fail_next(
        self,
        code: str,
        *,
        kind: str = "",
        mad: str = "",
        times: int = 1,
        applied: bool = False,
        **details: Any,  # fields of the error, JSON values
    ) -> None:
        """
        Have the next request fail with *code*, one of everbus.bus.errors.

        Args:
            kind: only requests of this kind, for example `session.update`.
            mad: only requests of this MAD.
            times: how many requests fail.
            applied: whether the lane applies the request all the same: with
                `timeout`, the reply that got lost.
            details: what the error carries, as `current_version=3`.

        Raises:
            Invalid: no error has this code, or no request is of this kind.
        """
        self._plan(
            Fault(
                code=code,
                kind=kind,
                mad=mad,
                applied=applied,
                left=times,
                details=details,
            )
        )

    def lose_reply(self, *, kind: str = "", mad: str = "", times: int = 1) -> None:
        """
        Have the next request applied and its reply lost: the caller waits until its
        own timeout.
        """
        self._plan(Fault(code="", kind=kind, mad=mad, applied=True, left=times))

    def lose_command(self, *, kind: str = "", mad: str = "", times: int = 1) -> None:
        """
        Have the next request lost before a lane reads it: the caller waits until its
        own timeout.
        """
        self._plan(Fault(code="", kind=kind, mad=mad, left=times))

    def silence(self, mad: str) -> None:
        """
        Lose the heartbeats of *mad* from now on, its goodbye as well: after
        `advance(bus.lease_s + 1)` all its instances are lost.
        """
        self._run(self._bus.silence, mad)

    def unsilence(self, mad: str) -> None:
        """
        Let the heartbeats of *mad* arrive again.
        """
        self._run(self._bus.unsilence, mad)

    def advance(self, seconds: float) -> None:
        """
        Move the bus's clock forward by *seconds*; returns when all lanes know of the
        MADs that were lost by it.

        A connected MAD stays alive and a running replica keeps its lanes. A silenced
        MAD and a killed replica lose their leases.

        Raises:
            Invalid: time does not run backwards.
        """
        if seconds < 0:
            raise Invalid(f"seconds is {seconds}: time does not run backwards")
        self._run(self._bus.advance, seconds)

    def kill_replica(self, name: str = "") -> str:
        """
        End a replica as SIGKILL does (default: the oldest); returns its name.

        It keeps its lanes until their lease ends: `advance(6)` lets another replica
        take them. A new replica under the same name has them at once.
        """
        if name and name not in self.replicas:
            raise Invalid(f"no replica {name!r} lives: {', '.join(self.replicas)}")
        if not self.replicas:
            raise Invalid("no replica lives any more")
        return self._run(self._bus.kill_replica, name)

    def start_replica(self, name: str = "") -> str:
        """
        Start another replica, or one of that *name* again; returns its name.

        Raises:
            Invalid: a replica of that name lives.
        """
        if name in self.replicas:
            raise Invalid(f"replica {name!r} lives already")
        return self._run(self._bus.start_replica, name)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """
        No MAD reaches the bus for the time of the block; the replicas go on.
        """
        self._run(self._bus.cut)
        try:
            yield
        finally:
            self._run(self._bus.mend)

    def archive(self, idle_s: float = 0.0) -> ArchiveReport:
        """
        Move sessions that nobody used for *idle_s* seconds into the cold tier.
        """
        return self._run(self._bus.archive, idle_s)

    @property
    def _bus(self) -> InMemoryBus:
        if self._inside is None:
            raise Invalid("this TestBus does not run: use it inside its block")
        return self._inside

    def _plan(self, fault: Fault) -> None:
        self._run(self._bus.plan, fault)

    def _run(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if self._thread is None:
            raise Invalid("this TestBus does not run: use it inside its block")

        return self._thread.call(function, *args, **kwargs)
