"""
Sessions that wait, so that only they do: their commands queue here in order.
"""

import math
from collections import deque
from collections.abc import Callable

from gateway.delivery import Work


class Parking:
    """
    Commands of waiting sessions, each session with the time it is due again.

    Attributes:
        bytes: what the waiting commands take.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._works: dict[str, deque[Work]] = {}
        self._due: dict[str, float] = {}
        self._count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def park(self, work: Work, wait_s: float) -> None:
        """
        Let the work's session wait for *wait_s*, with *work* as its first.
        """
        self._works.setdefault(work.session, deque()).appendleft(work)
        self._due[work.session] = self._clock() + wait_s
        self._add(work)

    def hold(self, work: Work) -> None:
        """
        Let the work's session wait until `wake`, with *work* as its first.
        """
        self.park(work, math.inf)

    def wake(self, session: str, wait_s: float = 0.0) -> None:
        """
        The session is due in *wait_s*, if it waits.
        """
        if session in self._due:
            self._due[session] = self._clock() + wait_s

    def withdraw(self, session: str, chosen: Callable[[Work], bool]) -> list[Work]:
        """
        Take out what waits for the session and is *chosen*; the rest waits on.
        """
        works = self._works.pop(session, deque())
        taken = [work for work in works if chosen(work)]
        left = deque(work for work in works if not chosen(work))
        for work in taken:
            self._remove(work)
        if left:
            self._works[session] = left
        else:
            self._due.pop(session, None)

        return taken

    def take(self, chosen: Callable[[Work], bool]) -> list[Work]:
        """
        Take out what waits for whatever session and is *chosen*.
        """
        found = [
            session for session, works in self._works.items() if any(map(chosen, works))
        ]
        return [work for session in found for work in self.withdraw(session, chosen)]

    def joins(self, work: Work) -> bool:
        """
        Queue *work* behind its session's others if the session waits.
        """
        waiting = self._works.get(work.session) if self._works else None
        if waiting is None:
            return False
        waiting.append(work)
        self._add(work)
        return True

    def due_in_s(self) -> float | None:
        """
        Seconds until the next session is due; None if none waits for a time.
        """
        first = min(self._due.values(), default=math.inf)
        return None if first == math.inf else max(0.0, first - self._clock())

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
        for work in works:
            self._remove(work)
        return works

    def clear(self) -> None:
        """
        Forget all; what waited is still pending on its stream.
        """
        self._works.clear()
        self._due.clear()
        self._count = self.bytes = 0

    def _add(self, work: Work) -> None:
        self._count += 1
        self.bytes += len(work.packed)

    def _remove(self, work: Work) -> None:
        self._count -= 1
        self.bytes -= len(work.packed)
