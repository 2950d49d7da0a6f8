"""
Who watches which session, for a while: where a commit pushes what happened.

A push is a hint, made by the very commit that made the events; `session.watch` is the
truth, and the numbers of the events tell whoever watches when to ask it. So nothing
here need survive: it is in the lane's memory, and whoever watches asks again in time.
Nothing is pushed to whom the session, as it then is, would refuse an answer.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from bus import keys
from bus.codec import pack
from bus.errors import Overloaded
from bus.events import DELETED, UNSEEN, SessionEvent, life_of
from bus.messages import Session
from gateway.delivery import Work
from gateway.identity.principal import Principal
from handlers.commands import WatchSession
from handlers.live import told
from handlers.outcomes import Event

WATCHED_S = 15.0
# Instances that watch one session; each is told by a message of its own.
MAX_INSTANCES = 256
# Principals by instance and session, in one lane.
MAX_WATCHERS = 20_000
# What is larger is told without its content; whoever watches then asks for it.
PUSH_BYTES = 128 * 1024
COMMIT_BYTES = 4 * 1024 * 1024

# Whether a principal may watch a session, from the ingress of a MAD.
May = Callable[[Principal, str, Session], bool]


class Watcher(NamedTuple):
    """
    A principal that watches through an instance of a MAD.
    """

    mad: str
    instance: str
    principal: Principal

    @property
    def channel(self) -> str:
        """
        Where that instance listens.
        """
        return keys.wake(self.mad, self.instance)


class News(NamedTuple):
    """
    What a commit does to a session.

    Attributes:
        read: the session before; None: there was none.
        now: the session after; None: there is none.
        entries: what was appended, encoded, also before a deletion.
    """

    read: Session | None
    now: Session | None
    events: Sequence[Event]
    entries: Sequence[bytes]


class Watchers:
    """
    Those who watch sessions of one lane.
    """

    def __init__(
        self, may: May, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._may = may
        self._clock = clock
        self._sessions: dict[str, dict[Watcher, float]] = {}
        self._count = 0
        self._swept_at = clock()

    def __bool__(self) -> bool:
        return bool(self._sessions)

    def __len__(self) -> int:
        return self._count

    def watch(self, work: Work, wanted: WatchSession, now_s: float) -> None:
        """
        Let the instance that asks be told for WATCHED_S, if it wants that, and may ask
        for so long.

        Args:
            now_s: the time, since 1970.

        Raises:
            Overloaded: there are too many already; it can ask without `push`.
        """
        principal = work.principal
        if not wanted.push or not work.instance or principal is None:
            return
        now = self._clock()
        self._sweep(now)
        watcher = Watcher(work.entry.mad, work.instance, principal)
        there = self._sessions.get(work.session, {})
        if watcher not in there:
            self._check_room(there, watcher)
            self._count += 1
        there[watcher] = now + min(WATCHED_S, principal.expires_at - now_s)
        self._sessions[work.session] = there

    def pushes(
        self, all_news: Iterable[tuple[str, News]]
    ) -> Iterator[tuple[str, msgspec.Raw]]:
        """
        On which channel is said what, of all that one commit does.
        """
        room = COMMIT_BYTES
        self._sweep(self._clock())
        for session_id, news in all_news:
            if session_id not in self._sessions or not news.events:
                continue
            hearing, asking = self._audience(session_id, news)
            packed = _packed(session_id, _events_of(session_id, news))
            if len(packed) > PUSH_BYTES or len(packed) * len(hearing) > room:
                hearing, asking = set(), hearing | asking
            room -= len(packed) * len(hearing)
            for channel in hearing:
                yield channel, packed
            for channel in asking:
                yield channel, _packed(session_id, [])

    def _audience(self, session_id: str, news: News) -> tuple[set[str], set[str]]:
        """
        The channels that are told, and those that had better ask; who may watch no
        longer is forgotten.
        """
        now = self._clock()
        there = self._sessions[session_id]
        live = {one for one, until in there.items() if until > now}
        life = _one_life(news.events)
        shared = any(map(_shares, life))
        heard = live
        if life[-1].kind == DELETED:
            # With the session ends who may see it; who might just before, is not
            # known any more if that was changed, too.
            heard = set() if shared else live
            self._forget(session_id, live)
        elif shared and news.now is not None:
            session = news.now
            heard = {o for o in live if self._may(o.principal, o.mad, session)}
            self._forget(session_id, live - heard)
        hearing = {one.channel for one in heard}

        return hearing, {one.channel for one in live - heard} - hearing

    def _check_room(self, there: dict[Watcher, float], watcher: Watcher) -> None:
        instances = {(one.mad, one.instance) for one in there}
        instances.add((watcher.mad, watcher.instance))
        if self._count >= MAX_WATCHERS or len(instances) > MAX_INSTANCES:
            raise Overloaded(
                f"{len(instances) - 1} instances watch the session, {self._count} "
                f"watchers the lane; at most {MAX_INSTANCES} and {MAX_WATCHERS}. Ask "
                "without push, now and then"
            )

    def _sweep(self, now: float) -> None:
        """
        Forget those who have not asked again in time.
        """
        if now - self._swept_at < WATCHED_S:
            return
        self._swept_at = now
        for session_id, there in tuple(self._sessions.items()):
            self._forget(session_id, [o for o, until in there.items() if until <= now])

    def _forget(self, session_id: str, watchers: Iterable[Watcher]) -> None:
        there = self._sessions[session_id]
        for watcher in tuple(watchers):
            del there[watcher]
            self._count -= 1
        if not there:
            del self._sessions[session_id]


def _shares(event: Event) -> bool:
    """
    Whether the event changes who may see the session.
    """
    return event.patch is not None and "acl" in event.patch


def _one_life(events: Sequence[Event]) -> Sequence[Event]:
    """
    Those up to the end of the session: after it, that is another one.
    """
    ends = (place + 1 for place, e in enumerate(events) if e.kind == DELETED)

    return events[: next(ends, None)]


def _events_of(session_id: str, news: News) -> list[SessionEvent]:
    """
    What is to be told, as it is told.
    """
    events = _one_life(news.events)
    begun = news.read if events[-1].kind == DELETED else news.now
    # What is begun and ended by one commit begins with its first event.
    created_at = events[0].at if begun is None else begun.created_at
    if created_at is None:
        raise AssertionError(f"session {session_id} began with an append")
    life = life_of(created_at)
    entries = iter(news.entries)

    return [
        told(session_id, life, event, next(entries) if event.at is None else None)
        for event in events
        if event.kind not in UNSEEN
    ]


def _packed(session_id: str, events: Sequence[SessionEvent]) -> msgspec.Raw:
    return msgspec.Raw(pack({"session": session_id, "events": events}))
