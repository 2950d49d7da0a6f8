"""
Sessions that wait: their commands queue here in order, and no other session waits.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Set

from everbus.gateway.lane.delivery import Delivery


class HeldCommands:
    """
    Numbers and sizes of the commands that the lane has and lets wait.

    Attributes:
        count: the number of them.
        bytes: their size.
    """

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self._counts: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._numbers: dict[str, set[int]] = {}

    def add(self, delivery: Delivery) -> None:
        """
        Count a command that begins to wait.
        """
        self._change(delivery, 1)
        if delivery.publisher is not None and delivery.ordinal is not None:
            numbers = self._numbers.setdefault(delivery.publisher, set())
            numbers.add(delivery.ordinal.n)

    def remove(self, delivery: Delivery) -> None:
        """
        Count a command that waits no more.
        """
        self._change(delivery, -1)
        if delivery.publisher is not None and delivery.ordinal is not None:
            # A command that was sent twice can wait twice, under one number.
            numbers = self._numbers.get(delivery.publisher, set())
            numbers.discard(delivery.ordinal.n)
            if not numbers:
                self._numbers.pop(delivery.publisher, None)

    def numbers(self, publisher: str) -> Set[int]:
        """
        The numbers of a publisher's commands that wait.
        """
        return self._numbers.get(publisher, frozenset())

    def mads_beyond(self, count: int, size: int) -> frozenset[str]:
        """
        The MADs of which more than *count* commands or *size* bytes wait.
        """
        if self.count <= count and self.bytes <= size:
            return frozenset()
        return frozenset(
            mad
            for mad, waiting in self._counts.items()
            if waiting > count or self._sizes[mad] > size
        )

    def clear(self) -> None:
        """
        Forget all.
        """
        self.count = self.bytes = 0
        self._counts.clear()
        self._sizes.clear()
        self._numbers.clear()

    def _change(self, delivery: Delivery, by: int) -> None:
        size = by * len(delivery.packed)
        self.count += by
        self.bytes += size
        self._counts[delivery.entry.mad] += by
        self._sizes[delivery.entry.mad] += size


class WaitingSessions:
    """
    Commands of waiting sessions; each session has a time at which it is due again.

    Attributes:
        queues: session id → its commands in order; empty if no session waits.
        held: numbers and sizes of the commands.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.held = HeldCommands()
        self.queues: dict[str, deque[Delivery]] = {}
        self._due: dict[str, float] = {}

    def block(self, delivery: Delivery, wait_s: float = math.inf) -> None:
        """
        Let the session of *delivery* wait, with *delivery* as its first command.

        Args:
            wait_s: seconds until it is due; without it, it waits for `unblock`.
        """
        self.queues.setdefault(delivery.session, deque()).appendleft(delivery)
        self._due[delivery.session] = self._clock() + wait_s
        self.held.add(delivery)

    def unblock(self, session: str, wait_s: float = 0.0) -> None:
        """
        Make the session due in *wait_s*, if it waits.
        """
        if session in self._due:
            self._due[session] = self._clock() + wait_s

    def enqueue_behind(self, delivery: Delivery) -> bool:
        """
        Queue *delivery* behind the others of its session, if that session waits.
        """
        queue = self.queues.get(delivery.session)
        if queue is None:
            return False
        queue.append(delivery)
        self.held.add(delivery)
        return True

    def withdraw(
        self, session: str, chosen: Callable[[Delivery], bool]
    ) -> list[Delivery]:
        """
        Take out the *chosen* commands of a session; the others wait on.
        """
        queue = self.queues.pop(session, deque())
        taken = [delivery for delivery in queue if chosen(delivery)]
        left = deque(delivery for delivery in queue if not chosen(delivery))
        self._remove(taken)
        if left:
            self.queues[session] = left
        else:
            self._due.pop(session, None)

        return taken

    def withdraw_everywhere(self, chosen: Callable[[Delivery], bool]) -> list[Delivery]:
        """
        Take out the *chosen* commands of all sessions.
        """
        found = [
            session for session, queue in self.queues.items() if any(map(chosen, queue))
        ]
        return [one for session in found for one in self.withdraw(session, chosen)]

    def due_in_s(self) -> float | None:
        """
        Seconds until the next session is due; None if none has a time.
        """
        first = min(self._due.values(), default=math.inf)
        return None if first == math.inf else max(0.0, first - self._clock())

    def release(self) -> list[Delivery]:
        """
        Take out the commands of all sessions that are due, each session's in order.
        """
        now = self._clock()
        due = [session for session, at in self._due.items() if at <= now]
        released: list[Delivery] = []
        for session in due:
            del self._due[session]
            released.extend(self.queues.pop(session))
        self._remove(released)
        return released

    def clear(self) -> None:
        """
        Forget all; the commands are still pending on their streams.
        """
        self.queues.clear()
        self._due.clear()
        self.held.clear()

    def _remove(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.held.remove(delivery)
