"""
What a lane must know before it can judge, fetched in one round trip a batch.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from bus.codec import ordinal_of
from bus.messages import Session
from bus.wire import Command, Wire, refusal
from gateway.clock import Now
from gateway.delivery import CANCEL_KIND, OUTCOME_KIND, Work
from gateway.fencing import CHUNK, LOST_KIND, lost_in, parse_fences, publisher_of
from gateway.knowledge import Knowledge, asked_of
from gateway.progress import Progress
from gateway.store import attached, hot, names
from gateway.store.newborn import is_newborn
from gateway.store.scripts import script

# Longer than any command may wait anywhere before it is sent again.
PUBLISHER_HORIZON_S = 24 * 3600
# They end who is in a session, so they need to know who that is.
_DETACHING = frozenset(
    {"participant.lost", "participant.remove", "session.delete", LOST_KIND}
)
# What they need is never known beforehand.
_ASKING = frozenset({"session.durable", OUTCOME_KIND, CANCEL_KIND}) | _DETACHING
# Who asks, and the command id that is asked about.
Asked = tuple[str, str]


class Era(NamedTuple):
    """
    What the lane may rely on about the hot tier.

    Attributes:
        since_ms: since when it has lost nothing.
        ttl_ms: how long a hot copy stays after the last write.
        tiers: whether there is anything below it.
    """

    since_ms: int = 0
    ttl_ms: int = 3_600_000
    tiers: bool = False


class Lookup:
    """
    Fills the knowledge of one partition from the hot tier.

    Attributes:
        era: set by the lane when it opens.
        below: session id → its doubtful hot copy, or None: those among the last
            works that have to be loaded from the tiers below.
    """

    def __init__(self, wire: Wire, partition: int, known: Knowledge) -> None:
        self.era = Era()
        self.below: dict[str, Session | None] = {}
        self._wire = wire
        self._partition = partition
        self._known = known

    async def load(self, works: Sequence[Work], now: Now) -> None:
        """
        Learn the sessions, publishers and first replies that *works* touch.

        One round trip for what is not known yet, none if all of it is; a second
        one for the first replies to commands that turn out to be repeated.

        Raises:
            WireFailed: the connection broke.
        """
        known = self._known
        known.firsts.clear()
        known.fences.clear()
        self.below.clear()
        # A hot copy may expire under us once it is that old: it is read again.
        known.fresh_after = now.datetime - timedelta(milliseconds=self.era.ttl_ms * 0.9)
        if all(map(self._knows, works)):
            return
        asked = [(w.entry.mad, a) for w in works if (a := asked_of(w))]
        await self._load_unknown(works, asked, now)
        for work in works:
            known.sight(work)
        await self._load_firsts(
            [*_repeated(known, works), *(f"{mad}:{command}" for mad, command in asked)]
        )
        await self._load_durable(works)
        await self._load_attached(works)

    def _knows(self, work: Work) -> bool:
        """
        Whether nothing has to be loaded, nor be seen, for *work*: as a rule.
        """
        envelope, known = work.envelope, self._known
        return (
            envelope is not None
            and work.publisher in known.progress
            and known.knows(envelope.session)
            and envelope.kind not in _ASKING
            and not known.settled_before(work)
        )

    async def prune(self, owner: str, now_s: int) -> None:
        """
        Forget publishers not heard of for PUBLISHER_HORIZON_S, here and there.

        Raises:
            WireFailed: the connection broke.
        """
        before = now_s - PUBLISHER_HORIZON_S
        publishers = names.publishers(self._partition)
        await self._prune(publishers, owner, lambda p: Progress.parse(p).seen_s, before)
        fences = names.fences(self._partition)
        await self._prune(fences, owner, _fenced_s, before)

    async def _prune(
        self, key: str, owner: str, seen_s: Callable[[bytes], float], before: float
    ) -> None:
        found = await self._wire.call("HGETALL", key)
        stale: list[bytes] = []
        for name, packed in zip(found[::2], found[1::2], strict=True):
            if seen_s(packed) < before:
                stale += (name, packed)
                self._known.progress.pop(name.decode(), None)
        for first in range(0, len(stale), 1000):
            some = stale[first : first + 1000]
            await self._wire.call(
                *script("prune", [names.owner(self._partition), key], owner, *some)
            )

    async def _load_unknown(
        self, works: Sequence[Work], asked: list[Asked], now: Now
    ) -> None:
        sessions = _unknown_sessions(self._known, works)
        publishers = _unknown_publishers(self._known, works, asked)
        if not sessions and not publishers:
            return
        p = self._partition
        commands: list[Command] = [
            c for session in sessions for c in hot.read_commands(p, session)
        ]
        if publishers:
            commands.append(("HMGET", names.publishers(p), *publishers))
            commands.append(("HMGET", names.fences(p), *publishers))
        replies = await self._wire.exchange(commands)
        for i, session in enumerate(sessions):
            self._learn(session, replies[3 * i : 3 * i + 3], now)
        if publishers:
            found = zip(publishers, replies[-2], replies[-1], strict=True)
            for publisher, packed, fences in found:
                self._learn_publisher(publisher, packed, fences)

    def _learn(self, session_id: str, replies: Sequence[Any], now: Now) -> None:
        found = hot.found_in(session_id, replies)
        # Told by a lane that had it in its hands: read again, it may be older.
        self._known.sessions.pop(session_id, None)
        if self._nowhere_else(session_id, found, now):
            self._known.sessions[session_id] = found.session
        else:
            self.below[session_id] = found.session

    def _learn_publisher(
        self, publisher: str, packed: bytes | None, fences: bytes | None
    ) -> None:
        over = parse_fences(fences) if fences else ()
        if packed is not None:
            known = self._known.progress[publisher] = Progress.parse(packed)
            known.fences = over
        elif over:
            self._known.fences[publisher] = over

    def _nowhere_else(self, session_id: str, found: hot.Found, now: Now) -> bool:
        """
        Whether the hot tier tells all that there is to know of a session.
        """
        era = self.era
        if not era.tiers or found.deleted:
            return True
        if found.session is not None:
            written_ms = found.session.last_active.timestamp() * 1000
            return max(written_ms, found.checked_ms) >= era.since_ms
        return not found.elsewhere and is_newborn(
            session_id, now.ms, era.since_ms, era.ttl_ms
        )

    async def _load_firsts(self, wanted: list[str]) -> None:
        if not wanted:
            return
        keys = [names.ledger(self._partition, command) for command in wanted]
        [values] = await self._wire.exchange([("MGET", *keys)])
        self._known.firsts.update(zip(wanted, values, strict=True))

    async def _load_durable(self, works: Sequence[Work]) -> None:
        asking = [w for w in works if _asks_durable(w)]
        if not asking:
            return
        replies = await self._wire.exchange(
            [hot.durable_command(self._partition, work.session) for work in asking]
        )
        for work, reply in zip(asking, replies, strict=True):
            work.given = hot.durable_in(reply)

    async def _load_attached(self, works: Sequence[Work]) -> None:
        asking = [(w, c) for w in works if (c := self._attached_command(w))]
        if not asking:
            return
        replies = await self._wire.exchange([command for _, command in asking])
        for (work, _), members in zip(asking, replies, strict=True):
            if isinstance(members, ResponseError):
                raise refusal(members)
            work.attached = tuple(map(attached.attachment_in, members))

    def _attached_command(self, work: Work) -> Command | None:
        envelope = work.envelope
        if envelope is None or work.trouble or envelope.kind not in _DETACHING:
            return None
        if envelope.kind != LOST_KIND:
            return attached.of_session(self._partition, envelope.session)
        lost = lost_in(envelope)
        if lost is None:
            return None  # it will be refused
        return attached.of_instance(
            self._partition, lost.mad, lost.instance, lost.after, CHUNK
        )


def _fenced_s(packed: bytes) -> float:
    return parse_fences(packed)[-1].since_ms / 1000


def _asks_durable(work: Work) -> bool:
    return (
        work.envelope is not None
        and work.envelope.kind == "session.durable"
        and work.trouble is None
    )


def _unknown_sessions(known: Knowledge, works: Sequence[Work]) -> list[str]:
    found = dict.fromkeys(
        work.session for work in works if work.trouble is None and work.session
    )
    return [session for session in found if not known.knows(session)]


def _unknown_publishers(
    known: Knowledge, works: Sequence[Work], asked: list[Asked]
) -> list[str]:
    found = dict.fromkeys(work.publisher for work in works)
    for mad, identifier in asked:
        if (ordinal := ordinal_of(identifier)) is not None:
            found[f"{mad}:{ordinal.instance}"] = None
    for work in works:
        if (lost := lost_in(work.envelope)) is not None:
            found[publisher_of(lost)] = None
    return [name for name in found if name is not None and name not in known.progress]


def _repeated(known: Knowledge, works: Sequence[Work]) -> list[str]:
    return [
        work.command
        for work in works
        if work.envelope is not None
        and (work.ordinal is None or known.settled_before(work))
    ]
