"""
Sessions that wait, so that only they do: their commands queue here in order.
"""

from collections import deque
from collections.abc import Callable

from gateway.delivery import Work


class Parking:
    """
    Commands of waiting sessions, each session with the time it is due again.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._works: dict[str, deque[Work]] = {}
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(works) for works in self._works.values())

    def park(self, work: Work, wait_s: float) -> None:
        """
        Let the work's session wait for *wait_s*, with *work* as its first.
        """
        session = _session(work)
        self._works.setdefault(session, deque()).appendleft(work)
        self._due[session] = self._clock() + wait_s

    def joins(self, work: Work) -> bool:
        """
        Queue *work* behind its session's others if the session waits.
        """
        waiting = self._works.get(_session(work))
        if waiting is None:
            return False
        waiting.append(work)
        return True

    def due_in_s(self) -> float | None:
        """
        Seconds until the next session is due; None if none waits.
        """
        if not self._due:
            return None
        return max(0.0, min(self._due.values()) - self._clock())

    def release(self) -> list[Work]:
        """
        The commands of all sessions that are due, each session's in order.
        """
        now = self._clock()
        due = [session for session, at in self._due.items() if at <= now]
        works: list[Work] = []
        for session in due:
            del self._due[session]
            works.extend(self._works.pop(session))
        return works

    def clear(self) -> None:
        """
        Forget all; what waited is still pending on its stream.
        """
        self._works.clear()
        self._due.clear()


def _session(work: Work) -> str:
    return work.envelope.session if work.envelope is not None else ""
