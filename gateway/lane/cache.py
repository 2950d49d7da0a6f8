"""
The lane's cache: sessions, publishers' windows, first replies.

All of it is true while the lane's epoch is, since nobody else writes any of it,
and each commit checks that this still holds.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

import msgspec

from everbus.bus.messages import (
    CommandOutcome,
    Reply,
    Session,
    ordinal_of,
    pack,
    unpack,
)
from everbus.bus.settled_numbers import SETTLED_KIND, RefusedCommand, SettledNumbers
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.delivery import CANCEL_KIND, OUTCOME_KIND, Delivery, Received
from everbus.gateway.lane.fencing import LOST_KIND, Fences
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.telemetry import metrics
from everbus.handlers.patches import HOT_BYTES

MAX_SESSIONS = 2_000
MAX_PUBLISHERS = 10_000
# Python's objects take about so many times what a session takes on the wire.
PYTHON_FACTOR = 4
WORST_BYTES = PYTHON_FACTOR * HOT_BYTES
# So long a session that no tier has is believed not to be anywhere: no longer than its
# claim's placeholder stays in the warm tier, see `store.mongo.documents.PLACEHOLDER_S`.
MISSING_S = 60.0
# How often a session that is served unclaimed is to be claimed.
CLAIM_RETRY_S = 1.0
# Of one publisher.
MAX_REFUSALS = 100
# They end attachments, so they need to know them.
DETACHING = frozenset(
    {"participant.lost", "participant.remove", "session.delete", LOST_KIND}
)
# The cache never holds the data that they need.
_ASKING = (
    frozenset({"session.durable", OUTCOME_KIND, CANCEL_KIND, SETTLED_KIND}) | DETACHING
)
_ABOUT_COMMANDS = frozenset({OUTCOME_KIND, CANCEL_KIND})
_STATES = {"ok": "applied", "cancelled": "cancelled"}


class RequestOutcome(msgspec.Struct, frozen=True):
    """
    Body of `request.outcome` and `request.cancel`: the id of the command meant.
    """

    command_id: str


class RequestSettled(msgspec.Struct, frozen=True):
    """
    Body of `request.settled`: the instance whose numbers in this partition are meant.
    """

    instance: str


class BoundedCache(OrderedDict[str, Any]):
    """
    A mapping in order of use that shrinks to *limit* only when asked.

    No LRU that evicts by itself: a batch relies on all that was loaded for it.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def shrink(self) -> None:
        """
        Forget the least recently used beyond the limit.
        """
        while len(self) > self._limit:
            self.popitem(last=False)


class CacheBudget:
    """
    The bytes that the caches of all lanes of a replica may take.

    Args:
        most_bytes: shared equally by the lanes that need them.
    """

    def __init__(self, most_bytes: int = 256 * 1024 * 1024) -> None:
        self._most = most_bytes
        self._caches: WeakSet[LaneCache] = WeakSet()

    def join(self, cache: "LaneCache") -> None:
        """
        Count *cache* as long as it lives.
        """
        self._caches.add(cache)

    @property
    def measures(self) -> bool:
        """
        Whether sizes matter: below, even the largest sessions fit.
        """
        count = sum(len(cache.sessions) for cache in self._caches)
        return count * WORST_BYTES > self._most

    def excess(self, size: int) -> int:
        """
        Bytes that a cache of *size* bytes has to give up.
        """
        used = sum(cache.memory_bytes for cache in self._caches)
        share = self._most // max(1, len(self._caches))
        return max(0, min(used - self._most, size - share))


class LaneCache:
    """
    The loaded part of one partition, which every decision keeps up to date.

    Attributes:
        sessions: session id → Session, or None where there is none.
        windows: publisher → its sequence window.
        first_replies: `<mad>:<command id>` → first reply as loaded, or None.
        refusals: publisher → its latest refused commands that had no reply; a copy for
            publishers that missed the announcement.
        fences: publisher → its fenced epochs, of publishers without a window.
        senders: (publisher, grant, epoch) → the principal, as verified in this batch.
        held: gives the numbers of a publisher's commands that wait in the lane.
        fresh_after: a session last written before may have left the hot tier.
        records_lost: a publisher without a record may have had one: the hot tier lost
            records so lately that none was forgotten for its age since.
        unclaimed: session id → the lineage of its hot copy: sessions that are served
            though nobody could claim them.
    """

    def __init__(self, budget: CacheBudget | None = None) -> None:
        self._budget = budget or CacheBudget()
        self._budget.join(self)
        self._sizes: dict[str, int] = {}
        self._measured = 0
        self.fresh_after = datetime.fromtimestamp(0, UTC)
        self.records_lost = False
        self.sessions: BoundedCache = BoundedCache(MAX_SESSIONS)
        self.windows: BoundedCache = BoundedCache(MAX_PUBLISHERS)
        self.first_replies: dict[str, bytes | None] = {}
        self.fences: dict[str, Fences] = {}
        self.senders: dict[tuple[str, bytes, int], Principal] = {}
        self.held: Callable[[str], Set[int]] = lambda _: frozenset()
        self.unclaimed: dict[str, int] = {}
        self._claimed_anew_at: dict[str, float] = {}
        self._missing_until: dict[str, float] = {}
        self.refusals: BoundedCache = BoundedCache(MAX_PUBLISHERS)

    def serve_unclaimed(self, session_id: str, session: Session, lineage: int) -> None:
        """
        Rely on a hot copy in doubt for CLAIM_RETRY_S; then it is to be claimed anew.
        """
        self.sessions[session_id] = session
        self.unclaimed[session_id] = lineage
        self._claimed_anew_at[session_id] = time.monotonic() + CLAIM_RETRY_S

    def note_missing(self, session_id: str) -> None:
        """
        Believe for MISSING_S that no tier has the session; then it is claimed anew.
        """
        self.sessions[session_id] = None
        self._missing_until[session_id] = time.monotonic() + MISSING_S

    def drop(self, session_id: str) -> None:
        """
        Forget the state of one session.
        """
        self.sessions.pop(session_id, None)
        self.unclaimed.pop(session_id, None)
        self._missing_until.pop(session_id, None)

    def forget(self) -> None:
        """
        Drop the whole content, because it may not be true any more.
        """
        self.sessions.clear()
        self._sizes.clear()
        self._measured = 0
        self.unclaimed.clear()
        self._missing_until.clear()
        self.windows.clear()
        self.first_replies.clear()
        self.senders.clear()
        self.refusals.clear()

    def note_refusal(self, publisher: str, refused: RefusedCommand) -> None:
        """
        Keep a refusal that no reply tells, with the latest ones of its publisher.
        """
        kept = self.refusals.setdefault(publisher, deque(maxlen=MAX_REFUSALS))
        kept.append(refused)

    def settled_numbers(self, mad: str, instance: str, lineage: int) -> SettledNumbers:
        """
        Which numbers of a publisher are settled, and which of them were refused.
        """
        publisher = f"{mad}:{instance}"
        window: ProducerWindow | None = self.windows.get(publisher)

        return SettledNumbers(
            lineage=lineage,
            mark=window.high_water if window is not None else 0,
            open=tuple(window.runs) if window is not None else (),
            refused=tuple(self.refusals.get(publisher, ())),
        )

    def begin(self, fresh_after: datetime) -> None:
        """
        Forget what only the batch before needed; older hot copies are read again.
        """
        self.fresh_after = fresh_after
        self.first_replies.clear()
        self.fences.clear()
        self.senders.clear()

    def covers(self, received: Sequence[Received]) -> bool:
        """
        Whether all that the commands need is here, which is the rule.
        """
        return all(map(self._covers_one, received))

    def counts(self, publisher: str | None) -> bool:
        """
        Whether the window of *publisher* is here and can be relied on.
        """
        window: ProducerWindow | None = self.windows.get(publisher or "")
        return window is not None and not window.undecodable

    def _covers_one(self, received: Received) -> bool:
        return (
            isinstance(received, Delivery)
            and self.counts(received.publisher)
            and self.knows(received.session)
            and received.envelope.kind not in _ASKING
            and not self.settled_before(received)
        )

    def knows(self, session_id: str) -> bool:
        """
        Whether the cached state of a session is surely still true.
        """
        if session_id not in self.sessions:
            return not session_id
        if session_id in self.unclaimed:
            return time.monotonic() < self._claimed_anew_at[session_id]
        session: Session | None = self.sessions[session_id]
        if session is None:
            return time.monotonic() < self._missing_until.get(session_id, math.inf)
        # A dormant session leaves the hot tier as soon as MongoDB holds it.
        return session.state == "active" and session.last_active > self.fresh_after

    def shrink(self, *, windows: bool) -> None:
        """
        Forget the least recently used, between batches only.
        """
        self.sessions.shrink()
        self._shrink_bytes()
        if len(self._missing_until) > MAX_SESSIONS:
            for one in self._missing_until.keys() - self.sessions.keys():
                del self._missing_until[one]
        if windows:
            self.windows.shrink()
            self.refusals.shrink()

    @property
    def memory_bytes(self) -> int:
        """
        About the memory of its sessions; an unmeasured one counts as the largest.
        """
        unknown = max(0, len(self.sessions) - len(self._sizes))
        return self._measured + unknown * WORST_BYTES

    def measure(self, session_ids: Iterable[str]) -> None:
        """
        Note the sizes of these sessions, if they matter.
        """
        if not self._budget.measures:
            return
        for one in session_ids:
            session = self.sessions.get(one)
            size = PYTHON_FACTOR * len(pack(session)) if session is not None else 100
            self._measured += size - self._sizes.get(one, 0)
            self._sizes[one] = size

    def _shrink_bytes(self) -> None:
        if not self._budget.measures:
            return
        gone = self._sizes.keys() - self.sessions.keys()
        self._forget_sizes(gone)
        excess = self._budget.excess(self.memory_bytes)
        if excess:
            metrics.BOUND_REACHED.labels("cache_max_bytes").inc()
        while excess > 0 and self.sessions:
            oldest, _ = self.sessions.popitem(last=False)
            excess -= self._sizes.get(oldest, WORST_BYTES)
            self._forget_sizes((oldest,))

    def _forget_sizes(self, session_ids: Iterable[str]) -> None:
        for one in session_ids:
            self._measured -= self._sizes.pop(one, 0)

    def settled_before(self, delivery: Delivery) -> bool:
        """
        Whether an earlier delivery of the same command was settled.
        """
        if delivery.ordinal is None:
            return self.first_replies.get(delivery.command) is not None
        window: ProducerWindow | None = self.windows.get(delivery.publisher or "")
        return window is not None and window.settled(delivery.ordinal.n)

    def observe(self, received: Received) -> ProducerWindow | None:
        """
        The window of the command's publisher, begun at this command if unknown.

        Must see a publisher's commands in their order: the first one decides which
        numbers count as settled. Not where records were lost: the numbers before it
        may be sent again, and the admission of their session settles what MongoDB
        holds.
        """
        if received.ordinal is None or received.publisher is None:
            return None
        window: ProducerWindow | None = self.windows.get(received.publisher)
        if window is None:
            first = 1 if self.records_lost else received.ordinal.n
            window = ProducerWindow.starting_at(first)
            window.fences = self.fences.get(received.publisher, ())
            self.windows[received.publisher] = window
        return window

    def outcome(
        self, mad: str, asked: str, kept: Mapping[str, bytes]
    ) -> CommandOutcome:
        """
        The outcome of the command *asked* about, by *kept* first replies or windows.

        `pending` only if the lane has the command: what is neither settled nor here
        never arrived, or it was lost.
        """
        command = f"{mad}:{asked}"
        first = kept.get(command) or self.first_replies.get(command)
        if first == b"":
            # Known from MongoDB, see `admission`; its reply is not known.
            return CommandOutcome("applied")
        if first is not None:
            reply = unpack(first, Reply)
            state = _STATES.get(reply.code, "rejected")
            return CommandOutcome(state, reply.code, reply.message)  # type: ignore[arg-type]
        ordinal = ordinal_of(asked)
        if ordinal is None:
            return CommandOutcome("unknown")
        publisher = f"{mad}:{ordinal.instance}"
        if ordinal.n in self.held(publisher):
            return CommandOutcome("pending")
        window: ProducerWindow | None = self.windows.get(publisher)
        if window is None or ordinal.n <= window.floor or not window.settled(ordinal.n):
            return CommandOutcome("unknown")
        return CommandOutcome("applied")


def asked_of(delivery: Delivery) -> str | None:
    """
    The command id that a `request.outcome` or `request.cancel` is about, else None.
    """
    envelope = delivery.envelope
    if envelope.kind not in _ABOUT_COMMANDS:
        return None
    try:
        return str(unpack(envelope.body, RequestOutcome).command_id)
    except msgspec.ValidationError:
        return None


def counted_in(delivery: Delivery) -> str | None:
    """
    The instance that a `request.settled` is about, else None.
    """
    if delivery.envelope.kind != SETTLED_KIND:
        return None
    try:
        return str(unpack(delivery.envelope.body, RequestSettled).instance)
    except msgspec.ValidationError:
        return None
