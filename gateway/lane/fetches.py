"""
Reads of the lower tiers beside the lane: sessions to make hot, data for commands.

The lane never waits for them. Its loop goes on, and only the sessions concerned
wait. A session that is not hot is loaded once, however many commands wait for it;
data that a command wants beside its session is read for that command alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.messages import Session
from everbus.gateway.lane.admission import Changed, State, Unclaimed
from everbus.gateway.lane.connection import UndecodableSession
from everbus.gateway.lane.decision import Decider
from everbus.gateway.lane.delivery import Delivery, Now
from everbus.gateway.lane.fetch_budget import FetchBudget, bytes_of
from everbus.gateway.lane.intake import FairQueue
from everbus.gateway.lane.lookup import Doubt, Loaded
from everbus.gateway.lane.waiting import WaitingSessions
from everbus.gateway.store.claims import Claim
from everbus.gateway.telemetry import metrics
from everbus.handlers.fetch_requests import FetchRequest

log = structlog.get_logger()

# How long appends wait before the next try to load their session.
LOAD_RETRY_S = 1.0
# Sessions of one load, and loads at once: a slow one holds up no other.
LOADED_AT_ONCE = 256
LOADS_AT_ONCE = 16
READS_AT_ONCE = 32


class LowerTiers(Protocol):
    """
    The lower tiers, as `gateway.store.reader` has them.
    """

    async def load_each(
        self,
        claims: Sequence[Claim],
        found: Callable[[str, Loaded], None],
        wanted: Callable[[Session], bool],
    ) -> None:
        """
        Claim the sessions; call *found* for each as soon as its hot form is there.
        With an error if it cannot be had. A session that is not *wanted*, by its warm
        document alone, stays where it is.
        """
        ...

    async def answer(self, session: Session | None, wanted: FetchRequest) -> Any:
        """
        The data that *wanted* names; raises EverbusError if it cannot be had.
        """
        ...


class Fetches:
    """
    The reads under way for one lane, and the commands that wait for them.

    Args:
        queue: where commands go that can go on.
        nudge: wakes the lane.
        budget: bounds the bytes of answers that are not committed yet.

    Attributes:
        loaded: session id → its doubt and the result of its load; the lane takes it
            from here.
        reads: the reads of data under way.
        held_bytes: the bytes of answers that no batch has taken over yet.
    """

    def __init__(
        self,
        tiers: LowerTiers,
        decider: Decider,
        waiting: WaitingSessions,
        queue: FairQueue,
        nudge: Callable[[], None],
        budget: FetchBudget | None = None,
    ) -> None:
        self.loaded: dict[str, tuple[Doubt, Loaded]] = {}
        self.reads: set[asyncio.Task[None]] = set()
        self._tiers = tiers
        self._decider = decider
        self._waiting = waiting
        self._queue = queue
        self._nudge = nudge
        self._missing: dict[str, Doubt] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._budget = budget or FetchBudget()
        self.held_bytes = 0

    def cancel(self) -> None:
        """
        Read nothing more; the commands are still pending on their streams.
        """
        for task in (*self.reads, *self._loads):
            task.cancel()
        self._missing.clear()
        self.loaded.clear()
        self._budget.give(self.held_bytes)
        self.held_bytes = 0

    def release(self, delivery: Delivery) -> None:
        """
        The batch takes over the data of *delivery*.
        """
        self._budget.give(delivery.given_bytes)
        self.held_bytes -= delivery.given_bytes
        delivery.given_bytes = 0

    def load(self, delivery: Delivery, doubt: Doubt) -> None:
        """
        Let the session of *delivery* wait for its load.
        """
        self._waiting.block(delivery)
        self._missing[delivery.session] = doubt
        if len(self._loads) < LOADS_AT_ONCE:
            task = asyncio.create_task(self._load())
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)

    def read(self, delivery: Delivery) -> None:
        """
        Read the data that *delivery* wants; the session waits if it is a write.
        """
        if self._decider.writes(delivery):
            self._waiting.block(delivery)
        session = self._decider.cache.sessions.get(delivery.session)
        task = asyncio.create_task(self._read(delivery, session))
        self.reads.add(task)
        task.add_done_callback(self.reads.discard)

    def take_loaded(self) -> dict[str, tuple[Doubt, Loaded]]:
        """
        The loads that ended since the last call.
        """
        loaded = self.loaded.copy()
        self.loaded.clear()

        return loaded

    def resume(self, session_id: str, state: State, now: Now) -> None:
        """
        Let the commands of a session go on, now that it is hot or cannot be had.

        An error answers requests. Appends, which have no reply, wait on, unless they
        would wait for ever; so does a write that nobody waits for any more and that may
        have had its effect before the bus lost its memory: only MongoDB tells that.
        """
        cache = self._decider.cache
        match state:
            case UndecodableSession():
                self._answer_waiting(session_id, state, lambda _: True)
            case EverbusError():
                self._answer_waiting(
                    session_id, state, lambda one: self._is_awaited(one, now)
                )
                self._waiting.unblock(session_id, LOAD_RETRY_S)
                return
            case Unclaimed():
                cache.serve_unclaimed(session_id, state.session, state.lineage)
            case Changed():
                pass  # the next lookup reads it again
            case None:
                cache.note_missing(session_id)
            case _:
                cache.sessions[session_id] = state
        self._waiting.unblock(session_id)

    def _is_awaited(self, delivery: Delivery, now: Now) -> bool:
        return delivery.envelope.reply and not self._decider.in_doubt(delivery, now)

    def _answer_waiting(
        self,
        session_id: str,
        error: EverbusError,
        chosen: Callable[[Delivery], bool],
    ) -> None:
        answered = self._waiting.withdraw(session_id, chosen)
        for delivery in answered:
            delivery.given = error
        self._queue.extend(answered)

    async def _load(self) -> None:
        """
        Load the missing sessions, many at once, until none is missing.
        """
        while self._missing:
            some = list(self._missing)[:LOADED_AT_ONCE]
            await self._load_some({name: self._missing.pop(name) for name in some})

    async def _load_some(self, doubts: dict[str, Doubt]) -> None:
        left = set(doubts)

        def found(session_id: str, loaded: Loaded) -> None:
            left.discard(session_id)
            metrics.WARM_LOADS.labels(_outcome(loaded)).inc()
            self.loaded[session_id] = (doubts[session_id], loaded)
            self._nudge()

        def wanted(stored: Session) -> bool:
            if self._has_allowed(stored):
                return True
            left.discard(stored.id)
            metrics.WARM_LOADS.labels("refused").inc()
            return False

        error: EverbusError = Unavailable("the tiers below gave no answer")
        try:
            claims = [doubt.claim for doubt in doubts.values()]
            await self._tiers.load_each(claims, found, wanted)
        except EverbusError as failed:
            error = failed
        except Exception as failed:
            # A defect of the tier: the callers must get an answer all the same.
            log.exception("load.failed", sessions=len(doubts))
            error = _broken(failed)
        for session_id in tuple(left):
            found(session_id, error)

    def _has_allowed(self, stored: Session) -> bool:
        """
        Whether a command that waits for the session may touch it; the others go on to
        their refusal.
        """
        refused = self._waiting.withdraw(
            stored.id, lambda one: self._decider.refused_by(stored, one)
        )
        if refused:
            self._queue.extend(refused)
            self._nudge()
        return stored.id in self._waiting.queues

    async def _read(self, delivery: Delivery, session: Session | None) -> None:
        wanted = delivery.wants
        if wanted is None:
            raise AssertionError("a read needs something wanted")
        try:
            async with self._turns:
                delivery.given = await self._answer(delivery, session, wanted)
        except EverbusError as error:
            delivery.given = error
        except Exception as error:
            log.exception("answer.failed", session=delivery.session)
            delivery.given = _broken(error)
        if self._decider.writes(delivery):
            self._waiting.unblock(delivery.session)
        else:
            self._queue.append(delivery)
        self._nudge()

    async def _answer(
        self, delivery: Delivery, session: Session | None, wanted: FetchRequest
    ) -> Any:
        budget = self._budget
        await budget.take()
        held = 0
        try:
            self._decider.check_received(delivery)
            answer = await self._tiers.answer(session, wanted)
            held = bytes_of(answer)
        finally:
            budget.give(budget.page_bytes - held)
            self.held_bytes += held
            delivery.given_bytes = held

        return answer


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"the tiers below failed: {type(error).__name__}")


def _outcome(found: Loaded) -> str:
    if isinstance(found, EverbusError):
        return found.code
    if found.keeps_hot:
        return "kept"
    return "nowhere" if found.session is None else "found"
