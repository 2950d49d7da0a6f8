"""
Subscribers of sessions, and the push that each commit sends them.

A push is a hint, made by the very commit that made the events; `session.watch` is the
truth, and the numbers of the events tell a subscriber when to ask it. So nothing here
need survive: it is in the lane's memory, and a subscriber asks again in time. Nobody
gets a push for a session that, as it then is, would refuse them an answer.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from everbus.bus import keys
from everbus.bus.errors import Overloaded
from everbus.bus.events import DELETED, TIER_MOVES, SessionEvent, generation_of
from everbus.bus.messages import Session, pack
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.delivery import Delivery
from everbus.handlers.commands import WatchSession
from everbus.handlers.live import session_event
from everbus.handlers.outcomes import Event

WATCHED_S = 15.0
# Instances that watch one session; each gets a message of its own.
MAX_INSTANCES = 256
# Principals by instance and session, in one lane.
MAX_SUBSCRIBERS = 20_000
# A larger push goes out without its content; the subscriber then asks for it.
PUSH_BYTES = 128 * 1024
COMMIT_BYTES = 4 * 1024 * 1024

# Whether a principal may get pushes at all: its token is not revoked.
Hears = Callable[[Principal], bool]
# Whether a principal may watch a session, from the ingress of a MAD.
May = Callable[[Principal, str, Session], bool]


class Subscriber(NamedTuple):
    """
    A principal that watches through an instance of a MAD.
    """

    mad: str
    instance: str
    principal: Principal

    @property
    def channel(self) -> str:
        """
        The channel of that instance.
        """
        return keys.wake(self.mad, self.instance)


class Change(NamedTuple):
    """
    The change of a session by one commit, as subscribers see it.

    Attributes:
        read: the session before; None if there was none.
        now: the session after; None if there is none.
        entries: appended entries, encoded, also those before a deletion.
    """

    read: Session | None
    now: Session | None
    events: Sequence[Event]
    entries: Sequence[bytes]


class Subscribers:
    """
    The subscribers of one lane.

    Attributes:
        sessions: session id → its subscribers, each with its end on the clock.
    """

    def __init__(
        self,
        may: May,
        hears: Hears = lambda _: True,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._may = may
        self._hears = hears
        self._clock = clock
        self.sessions: dict[str, dict[Subscriber, float]] = {}
        self._count = 0
        self._swept_at = clock()

    def __bool__(self) -> bool:
        return bool(self.sessions)

    def __len__(self) -> int:
        return self._count

    def watch(self, delivery: Delivery, wanted: WatchSession, now_s: float) -> None:
        """
        Subscribe the asking instance for WATCHED_S, if it wants pushes; at most until
        its principal expires.

        Args:
            now_s: the time, since 1970.

        Raises:
            Overloaded: there are too many already; it can ask without `push`.
        """
        principal = delivery.principal
        if not wanted.push or not delivery.instance or principal is None:
            return
        now = self._clock()
        self._sweep(now)
        subscriber = Subscriber(delivery.entry.mad, delivery.instance, principal)
        there = self.sessions.get(delivery.session, {})
        if subscriber not in there:
            self._check_room(there, subscriber)
            self._count += 1
        there[subscriber] = now + min(WATCHED_S, principal.expires_at - now_s)
        self.sessions[delivery.session] = there

    def pushes(
        self, changes: Iterable[tuple[str, Change]]
    ) -> Iterator[tuple[str, msgspec.Raw]]:
        """
        Messages to publish, by channel.
        """
        room = COMMIT_BYTES
        self._sweep(self._clock())
        for session_id, change in changes:
            if session_id not in self.sessions or not change.events:
                continue
            full, hinted = self._audience(session_id, change)
            packed = _packed(session_id, _events_of(session_id, change))
            if len(packed) > PUSH_BYTES or len(packed) * len(full) > room:
                full, hinted = set(), full | hinted
            room -= len(packed) * len(full)
            for channel in full:
                yield channel, packed
            for channel in hinted:
                yield channel, _packed(session_id, [])

    def _audience(self, session_id: str, change: Change) -> tuple[set[str], set[str]]:
        """
        Channels that get the content, and channels that get only a hint to ask.

        Forgets the subscribers that may watch no longer.
        """
        now = self._clock()
        there = self.sessions[session_id]
        live = {
            one
            for one, until in there.items()
            if until > now and self._hears(one.principal)
        }
        events = _one_generation(change.events)
        shared = any(map(_shares, events))
        allowed = live
        if events[-1].kind == DELETED:
            # The access list ends with the session. If the same commit changed it,
            # nobody knows any more who might see the session just before.
            allowed = set() if shared else live
            self._forget(session_id, live)
        elif shared and change.now is not None:
            session = change.now
            allowed = {o for o in live if self._may(o.principal, o.mad, session)}
            self._forget(session_id, live - allowed)
        full = {one.channel for one in allowed}

        return full, {one.channel for one in live - allowed} - full

    def _check_room(
        self, there: dict[Subscriber, float], subscriber: Subscriber
    ) -> None:
        instances = {(one.mad, one.instance) for one in there}
        instances.add((subscriber.mad, subscriber.instance))
        if self._count >= MAX_SUBSCRIBERS or len(instances) > MAX_INSTANCES:
            raise Overloaded(
                f"{len(instances) - 1} instances watch the session, {self._count} "
                f"subscribers the lane; at most {MAX_INSTANCES} and "
                f"{MAX_SUBSCRIBERS}. Ask without push, now and then"
            )

    def _sweep(self, now: float) -> None:
        """
        Forget the subscribers that have not asked again in time.
        """
        if now - self._swept_at < WATCHED_S:
            return
        self._swept_at = now
        for session_id, there in tuple(self.sessions.items()):
            self._forget(session_id, [o for o, until in there.items() if until <= now])

    def _forget(self, session_id: str, subscribers: Iterable[Subscriber]) -> None:
        there = self.sessions[session_id]
        for subscriber in tuple(subscribers):
            del there[subscriber]
            self._count -= 1
        if not there:
            del self.sessions[session_id]


def _shares(event: Event) -> bool:
    """
    Whether the event changes the session's access list.
    """
    return event.patch is not None and "acl" in event.patch


def _one_generation(events: Sequence[Event]) -> Sequence[Event]:
    """
    Events up to the session's deletion; later ones belong to a new generation.
    """
    ends = (place + 1 for place, e in enumerate(events) if e.kind == DELETED)

    return events[: next(ends, None)]


def _events_of(session_id: str, change: Change) -> list[SessionEvent]:
    """
    The events to push, in their public form.
    """
    events = _one_generation(change.events)
    begun = change.read if events[-1].kind == DELETED else change.now
    # A session that one commit creates and deletes begins with its first event.
    created_at = events[0].at if begun is None else begun.created_at
    if created_at is None:
        raise AssertionError(f"session {session_id} began with an append")
    generation = generation_of(created_at)
    entries = iter(change.entries)

    return [
        session_event(
            session_id, generation, event, next(entries) if event.at is None else None
        )
        for event in events
        if event.kind not in TIER_MOVES
    ]


def _packed(session_id: str, events: Sequence[SessionEvent]) -> msgspec.Raw:
    return msgspec.Raw(pack({"session": session_id, "events": events}))
