"""
Commands that wait for the tiers below, and how they go on.
"""

from collections import deque
from collections.abc import Callable

from bus.errors import EverbusError
from gateway.admission import Admission
from gateway.below import Below, Loaded, Tiers
from gateway.clock import Now
from gateway.delivery import Work
from gateway.parking import Parking
from gateway.settlement import Settlement

# How long appends wait before a session that could not be loaded is tried again.
LOAD_RETRY_S = 1.0


class Aside:
    """
    What one lane reads from the tiers below, and what waits for it meanwhile.

    Args:
        queue: where commands go that can go on.
        nudge: wakes the lane.
    """

    def __init__(
        self,
        tiers: Tiers,
        admission: Admission,
        settlement: Settlement,
        parking: Parking,
        queue: deque[Work],
        nudge: Callable[[], None],
    ) -> None:
        self._below = Below(tiers, self._answered, nudge)
        self._admission = admission
        self._settlement = settlement
        self._parking = parking
        self._queue = queue
        self._nudge = nudge

    def __len__(self) -> int:
        return len(self._below)

    def cancel(self) -> None:
        """
        Read nothing more; what was asked for is still pending on its stream.
        """
        self._below.cancel()

    def load(self, work: Work) -> None:
        """
        Let the work's session wait until it is loaded.
        """
        self._parking.hold(work)
        self._below.load(work.session)

    def want(self, work: Work) -> None:
        """
        Read what *work* wants; behind a write, its session waits for it.
        """
        if self._settlement.writes(work):
            self._parking.hold(work)
        session = self._settlement.known.sessions.get(work.session)
        self._below.answer(work, session)

    async def admit(self, now: Now) -> None:
        """
        Make hot what was loaded since, and let go on what waits for it.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke.
        """
        if not self._below.loaded:
            return
        loaded = self._below.loaded.copy()
        self._below.loaded.clear()
        true = await self._admission.admit(loaded, now)
        for session_id, answer in true.items():
            self._let_go_on(session_id, answer)

    def _let_go_on(self, session_id: str, answer: Loaded) -> None:
        if not isinstance(answer, EverbusError):
            self._settlement.known.sessions[session_id] = answer
            self._parking.wake(session_id)
            return
        # Requests are told; appends, of which nobody would hear, wait on.
        told = self._parking.withdraw(session_id, _wants_reply)
        for work in told:
            work.given = answer
        self._queue.extend(told)
        self._parking.wake(session_id, LOAD_RETRY_S)

    def _answered(self, work: Work) -> None:
        if self._settlement.writes(work):
            self._parking.wake(work.session)
        else:
            self._queue.append(work)
        self._nudge()


def _wants_reply(work: Work) -> bool:
    return work.envelope is not None and work.envelope.reply
