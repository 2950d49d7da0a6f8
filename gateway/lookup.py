"""
What a lane must know before it can judge, fetched in one round trip a batch.
"""

from collections.abc import Sequence

from bus.codec import ordinal_of
from bus.wire import Command, Wire
from gateway.delivery import Work
from gateway.knowledge import Knowledge, asked_of
from gateway.progress import Progress
from gateway.store import hot, names
from gateway.store.scripts import script

# Longer than any command may wait anywhere before it is sent again.
PUBLISHER_HORIZON_S = 24 * 3600
# Who asks, and the command id that is asked about.
Asked = tuple[str, str]


class Lookup:
    """
    Fills the knowledge of one partition from the hot tier.
    """

    def __init__(self, wire: Wire, partition: int, known: Knowledge) -> None:
        self._wire = wire
        self._partition = partition
        self._known = known

    async def load(self, works: Sequence[Work]) -> None:
        """
        Learn the sessions, publishers and first replies that *works* touch.

        One round trip for what is not known yet, none if all of it is; a second
        one for the first replies to commands that turn out to be repeated.

        Raises:
            WireFailed: the connection broke.
        """
        known = self._known
        known.firsts.clear()
        if all(map(self._knows, works)):
            return
        asked = [(w.entry.mad, a) for w in works if (a := asked_of(w))]
        await self._load_unknown(works, asked)
        for work in works:
            known.sight(work)
        await self._load_firsts(
            [*_repeated(known, works), *(f"{mad}:{command}" for mad, command in asked)]
        )

    def _knows(self, work: Work) -> bool:
        """
        Whether nothing has to be loaded, nor be seen, for *work*: as a rule.
        """
        envelope, known = work.envelope, self._known
        return (
            envelope is not None
            and work.publisher in known.progress
            and envelope.session in known.sessions
            and not known.settled_before(work)
        )

    async def prune(self, owner: str, now_s: int) -> None:
        """
        Forget publishers not heard of for PUBLISHER_HORIZON_S, here and there.

        Raises:
            WireFailed: the connection broke.
        """
        key = names.publishers(self._partition)
        found = await self._wire.call("HGETALL", key)
        before = now_s - PUBLISHER_HORIZON_S
        stale: list[bytes] = []
        for name, packed in zip(found[::2], found[1::2], strict=True):
            if Progress.parse(packed).seen_s < before:
                stale += (name, packed)
                self._known.progress.pop(name.decode(), None)
        for first in range(0, len(stale), 1000):
            some = stale[first : first + 1000]
            await self._wire.call(
                *script("prune", [names.owner(self._partition), key], owner, *some)
            )

    async def _load_unknown(self, works: Sequence[Work], asked: list[Asked]) -> None:
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
        replies = await self._wire.exchange(commands)
        for i, session in enumerate(sessions):
            values, tail = replies[2 * i], replies[2 * i + 1]
            self._known.sessions[session] = hot.session_of(session, values, tail)
        if publishers:
            for publisher, packed in zip(publishers, replies[-1], strict=True):
                if packed is not None:
                    self._known.progress[publisher] = Progress.parse(packed)

    async def _load_firsts(self, wanted: list[str]) -> None:
        if not wanted:
            return
        keys = [names.ledger(self._partition, command) for command in wanted]
        [values] = await self._wire.exchange([("MGET", *keys)])
        self._known.firsts.update(zip(wanted, values, strict=True))


def _unknown_sessions(known: Knowledge, works: Sequence[Work]) -> list[str]:
    found = dict.fromkeys(
        work.envelope.session
        for work in works
        if work.envelope is not None and work.trouble is None and work.envelope.session
    )
    return [session for session in found if session not in known.sessions]


def _unknown_publishers(
    known: Knowledge, works: Sequence[Work], asked: list[Asked]
) -> list[str]:
    found = dict.fromkeys(work.publisher for work in works)
    for mad, identifier in asked:
        if (ordinal := ordinal_of(identifier)) is not None:
            found[f"{mad}:{ordinal.instance}"] = None
    return [name for name in found if name is not None and name not in known.progress]


def _repeated(known: Knowledge, works: Sequence[Work]) -> list[str]:
    return [
        work.command
        for work in works
        if work.envelope is not None
        and (work.ordinal is None or known.settled_before(work))
    ]
