"""
Admission of sessions to the hot tier, after their claim in the warm one.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Literal, NamedTuple

import structlog

from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.keys import EDGE, GATEWAY
from everbus.bus.messages import Session, ordinal_of
from everbus.bus.wire import Command
from everbus.gateway.lane.cache import LaneCache
from everbus.gateway.lane.connection import (
    LaneConnection,
    UndecodableSession,
    check_fenced,
)
from everbus.gateway.lane.delivery import Now
from everbus.gateway.lane.lookup import Doubt, Loaded
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import hot_copy, key_names
from everbus.gateway.store.hot_copy import Admitting, Settling
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import Admissible
from everbus.gateway.store.uuid_age import stays_ms
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

# What a lane does with a hot copy in doubt while MongoDB is away.
Doubts = Literal["wait", "serve"]


class Changed(Enum):
    """
    The hot copy is another one by now: the session must be looked up once more.
    """

    CHANGED = auto()


class Unclaimed(NamedTuple):
    """
    A hot copy in doubt that is served all the same, see `Admission`.
    """

    session: Session
    lineage: int


State = Session | Unclaimed | EverbusError | Changed | None


class AdmissionTerms(NamedTuple):
    """
    Lifetimes of what an admission writes, and what it does in doubt.
    """

    hot_ttl_ms: int = 3_600_000
    ledger_ttl_ms: int = 600_000
    doubts: Doubts = "wait"


class Admission:
    """
    Admits sessions into one partition's hot tier, under the connection's epoch.

    A session in doubt that cannot be claimed, since MongoDB is away, is not available
    (`wait`), or its hot copy is served unclaimed (`serve`): what is committed to it
    counts as of the copy's own lineage, so that the later claim decides on it, too.
    """

    def __init__(
        self,
        wire: LaneConnection,
        partition: int,
        cache: LaneCache,
        terms: AdmissionTerms,
        sealed: SealedCopies | None = None,
    ) -> None:
        self._sealed = sealed
        self._wire = wire
        self._partition = partition
        self._cache = cache
        self._terms = terms

    async def admit(
        self, loaded: Mapping[str, tuple[Doubt, Loaded]], now: Now
    ) -> dict[str, State]:
        """
        Make the *loaded* sessions hot; returns the true state of each.

        Raises:
            LaneLost: the lane has another owner; nothing was admitted.
            WireFailed: the connection broke.
        """
        states: dict[str, State] = {}
        settling = _Numbers(self._partition, self._cache)
        await self._know_windows(loaded, settling)
        commands: dict[str, Command] = {}
        if self._sealed is not None:
            await self._sealed.ready(_tenants_of(loaded))
        for session_id, (doubt, read) in loaded.items():
            if isinstance(read, EverbusError):
                states[session_id] = self._without(session_id, doubt, read)
                continue
            state = states[session_id] = _true_state(session_id, doubt, read)
            if not isinstance(state, EverbusError):
                settled = settling.settled(read, now)
                admitting = self._admitting(session_id, doubt, read, now)
                commands[session_id] = hot_copy.admit_command(
                    self._partition, session_id, admitting, settled, self._sealed
                )
        replies = await self._wire.exchange(list(commands.values())) if commands else []
        for session_id, reply in zip(commands, replies, strict=True):
            if check_fenced(reply)[0] == b"changed":
                states[session_id] = Changed.CHANGED
        settling.forget_cached()

        return states

    def _admitting(
        self, session_id: str, doubt: Doubt, read: Admissible, now: Now
    ) -> Admitting:
        return Admitting(
            self._wire.owner,
            read.session,
            doubt.found,
            read.keeps_hot,
            doubt.claim.lineage,
            stays_ms(session_id, now.ms, self._terms.hot_ttl_ms),
            self._terms.ledger_ttl_ms,
        )

    def _without(self, session_id: str, doubt: Doubt, error: EverbusError) -> State:
        """
        The state of a session that could not be claimed.
        """
        copy = doubt.found.session
        if copy is None or not isinstance(error, Unavailable):
            return error
        metrics.DOUBTFUL.labels(self._terms.doubts).inc()
        log.warning(
            "session.doubtful",
            session=session_id,
            answer=self._terms.doubts,
            reason=error.message,
        )
        if self._terms.doubts == "wait" or error.details.get("stale_side"):
            return error
        return Unclaimed(copy, doubt.found.lineage)

    async def _know_windows(
        self, loaded: Mapping[str, tuple[Doubt, Loaded]], settling: "_Numbers"
    ) -> None:
        """
        Load the records of the publishers whose commands came along.
        """
        for _, read in loaded.values():
            if isinstance(read, Admissible):
                settling.add(read)
        names = settling.unknown()
        if not names:
            return
        key = key_names.publishers(self._partition)
        for first in range(0, len(names), 1000):
            some = names[first : first + 1000]
            settling.learn(some, await self._wire.call("HMGET", key, *some))


class _Numbers:
    """
    The settled numbers of publishers, also from the documents of sessions.

    A session tells the MAD that a command counts for, not the ingress that it came by:
    the edge's and the gateway's are tried as well.
    """

    def __init__(self, partition: int, cache: LaneCache) -> None:
        self._partition = partition
        self._cache = cache
        self._numbers: dict[str, None] = {}
        self._windows: dict[str, ProducerWindow] = {}
        self._written: set[str] = set()

    def add(self, read: Admissible) -> None:
        """
        Note which publishers *read* names.
        """
        for mad, command in read.commands:
            if (ordinal := ordinal_of(command)) is not None:
                self._numbers.update(dict.fromkeys(_publishers(mad, ordinal.instance)))

    def unknown(self) -> list[str]:
        """
        The publishers whose windows the cache does not have.
        """
        cached = self._cache.windows
        self._windows |= {n: cached[n] for n in self._numbers if n in cached}

        return [name for name in self._numbers if name not in cached]

    def learn(self, names: list[str], records: list[Any]) -> None:
        """
        Note the *records* of publishers as the hot tier has them.
        """
        for name, packed in zip(names, records, strict=True):
            if packed is not None:
                self._windows[name] = ProducerWindow.read(packed)

    def settled(self, read: Admissible, now: Now) -> Settling:
        """
        Settle the commands of *read*; what is to be written of it.
        """
        changed: set[str] = set()
        free: list[str] = []
        refused: list[str] = []
        for mad, command in read.commands:
            ordinal = ordinal_of(command)
            if ordinal is None:
                free += (f"{at}:{command}" for at in dict.fromkeys((mad, EDGE)))
            elif ordinal.partition == self._partition:
                for name in self._known(mad, ordinal.instance):
                    window = self._windows.setdefault(name, ProducerWindow())
                    at = f"{name.partition(':')[0]}:{command}"
                    if window.undecodable:
                        free.append(at)
                    elif not window.settled(ordinal.n):
                        window.settle(ordinal.n, now.ms // 1000)
                        changed.add(name)
                    else:
                        # It came again while MongoDB was away, and was refused.
                        refused.append(at)
        self._written |= changed
        windows = {name: self._windows[name].pack() for name in sorted(changed)}

        return Settling(windows, free, refused)

    def forget_cached(self) -> None:
        """
        Let the cache read the written windows anew.
        """
        for name in self._written:
            self._cache.windows.pop(name, None)

    def _known(self, mad: str, instance: str) -> list[str]:
        names = _publishers(mad, instance)

        return [name for name in names if name in self._windows] or names


def _publishers(mad: str, instance: str) -> list[str]:
    return [f"{at}:{instance}" for at in dict.fromkeys((mad, EDGE, GATEWAY))]


def _tenants_of(loaded: Mapping[str, tuple[Doubt, Loaded]]) -> set[str]:
    found = (read for _, read in loaded.values() if isinstance(read, Admissible))

    return {read.session.tenant for read in found if read.session is not None}


def _true_state(
    session_id: str, doubt: Doubt, read: Admissible
) -> Session | EverbusError | None:
    """
    The state that counts; the error if there is none that anybody can read.
    """
    if doubt.found.undecodable and read.session is None:
        return UndecodableSession(
            f"the hot copy of session {session_id} does not decode, and no tier below "
            "holds the session; its commands are dead letters. Delete the key, or put "
            "back what was there",
            cause=UndecodableSession.cause,
        )
    if read.keeps_hot:
        return doubt.found.session
    copy = doubt.found.session
    if copy is not None:
        log.warning(
            "session.replaced",
            session=session_id,
            version=copy.version,
            last_seq=copy.last_seq,
            lineage=doubt.found.lineage,
            by_version=read.session.version if read.session else None,
            by_last_seq=read.session.last_seq if read.session else None,
        )
    return read.session
