"""
Fills the lane's cache before a batch is decided, in one round trip.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
from redis.exceptions import ResponseError

from everbus.bus.errors import EverbusError
from everbus.bus.messages import ordinal_of
from everbus.bus.server_errors import refusal
from everbus.bus.wire import Command, Wire
from everbus.gateway.lane.cache import DETACHING, LaneCache, asked_of, counted_in
from everbus.gateway.lane.delivery import (
    Delivery,
    Now,
    Received,
)
from everbus.gateway.lane.fencing import (
    CHUNK,
    LOST_KIND,
    Fences,
    lost_in,
    parse_fences,
    publisher_of,
)
from everbus.gateway.lane.hot_epoch import HotEpoch, HotEpochs
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import attachments, hot_copy, key_names
from everbus.gateway.store.claims import Claim, length_of
from everbus.gateway.store.scripts import script
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import Admissible
from everbus.gateway.store.uuid_age import is_newborn
from everbus.gateway.telemetry.failures import NOTED

log = structlog.get_logger()

# Longer than any command may wait anywhere before it is sent again.
PUBLISHER_HORIZON_S = 24 * 3600
# The asking MAD, and the command id that it asks about.
Asked = tuple[str, str]


class Doubt(NamedTuple):
    """
    A session that must be claimed before it is used.

    Attributes:
        claim: the claim to make.
        found: what the hot tier has of it.
    """

    claim: Claim
    found: hot_copy.Found


# The result of a claim, or why there is none.
Loaded = Admissible | EverbusError


class Lookup:
    """
    Fills the cache of one partition from the hot tier.

    Attributes:
        hot_epoch: set by the lane when it opens.
        sealed: opens sealed hot copies; None without encryption.
        partition: the lane's number.
        below: session id → its doubt: the sessions of the last batch that must be
            claimed in the lower tiers.
    """

    def __init__(
        self, wire: Wire, partition: int, cache: LaneCache, epochs: HotEpochs
    ) -> None:
        self.hot_epoch = HotEpoch()
        self.sealed: SealedCopies | None = None
        self.below: dict[str, Doubt] = {}
        self._epochs = epochs
        self._wire = wire
        self.partition = partition
        self._cache = cache

    async def load(self, received: Sequence[Received], now: Now) -> None:
        """
        Load the sessions, windows and first replies that the commands touch.

        One round trip for the unknown ones; a second one for the first replies to
        commands that turn out to be repeated. Without it if the cache covers them.

        Raises:
            WireFailed: the connection broke.
        """
        cache = self._cache
        self.below.clear()
        deliveries = [one for one in received if isinstance(one, Delivery)]
        asked = [(d.entry.mad, a) for d in deliveries if (a := asked_of(d))]
        await self._load_unknown(received, deliveries, asked, now)
        for one in received:
            cache.observe(one)
        await self._load_first_replies(
            [
                *_repeated(cache, deliveries),
                *(f"{mad}:{command}" for mad, command in asked),
            ]
        )
        await self._load_durable(deliveries)
        await self._load_attached(deliveries)

    async def prune(self, owner: str, now_s: int) -> None:
        """
        Forget publishers that were silent for PUBLISHER_HORIZON_S, here and in Redis.

        Raises:
            WireFailed: the connection broke.
        """
        before = now_s - PUBLISHER_HORIZON_S
        publishers = key_names.publishers(self.partition)
        await self._prune(publishers, owner, _settled_s, before)
        fences = key_names.fences(self.partition)
        await self._prune(fences, owner, _fenced_s, before)

    async def _prune(
        self, key: str, owner: str, seen_s: Callable[[bytes], float], before: float
    ) -> None:
        found = await self._wire.call("HGETALL", key)
        stale: list[bytes] = []
        for name, packed in zip(found[::2], found[1::2], strict=True):
            try:
                old = seen_s(packed) < before
            except ValueError:
                # Kept: what is not there any more would count as never settled.
                self._report_undecodable(name.decode(errors="replace"))
                continue
            if old:
                stale += (name, packed)
                self._cache.windows.pop(name.decode(), None)
        for first in range(0, len(stale), 1000):
            some = stale[first : first + 1000]
            await self._wire.call(
                *script("prune", [key_names.owner(self.partition), key], owner, *some)
            )

    async def _load_unknown(
        self,
        received: Sequence[Received],
        deliveries: Sequence[Delivery],
        asked: list[Asked],
        now: Now,
    ) -> None:
        sessions = _unknown_sessions(self._cache, deliveries)
        publishers = _unknown_publishers(self._cache, received, deliveries, asked)
        if not sessions and not publishers:
            return
        p = self.partition
        commands: list[Command] = [
            c for session in sessions for c in hot_copy.read_commands(p, session)
        ]
        if publishers:
            commands.append(("HMGET", key_names.publishers(p), *publishers))
            commands.append(("HMGET", key_names.fences(p), *publishers))
        replies = await self._wire.exchange(commands)
        if self.sealed is not None:
            replies = await self.sealed.open_copies(sessions, replies)
        found = [
            (session, hot_copy.found_in(session, replies[3 * i : 3 * i + 3]))
            for i, session in enumerate(sessions)
        ]
        if any(one.session is None for _, one in found) and self.hot_epoch.tiers:
            # Their age is to vouch for them, by a clock that nobody has set.
            self.hot_epoch = await self._epochs.steady(self.hot_epoch, now)
        for session, one in found:
            self._learn(session, one, now)
        lost_s = (now.ms - self.hot_epoch.since_ms) / 1000
        self._cache.records_lost = lost_s < PUBLISHER_HORIZON_S
        if publishers:
            known = zip(publishers, replies[-2], replies[-1], strict=True)
            for publisher, packed, fences in known:
                self._learn_publisher(publisher, packed, fences)

    def _learn(self, session_id: str, found: hot_copy.Found, now: Now) -> None:
        # The last commit's state is the newest; a state read now may be older.
        self._cache.drop(session_id)
        if self._is_whole(session_id, found, now):
            self._cache.sessions[session_id] = found.session
            return
        claim = Claim(
            session=session_id,
            lineage=self.hot_epoch.lineage,
            hot=None if found.session is None else length_of(found.session),
            hot_lineage=found.lineage,
        )
        self.below[session_id] = Doubt(claim, found)

    def _learn_publisher(
        self, publisher: str, packed: bytes | None, fences: bytes | None
    ) -> None:
        windows = self._cache.windows
        # Only one that does not decode is looked up though it is here.
        before: ProducerWindow | None = windows.pop(publisher, None)
        window = ProducerWindow() if packed is None else ProducerWindow.read(packed)
        over: Fences = ()
        try:
            over = parse_fences(fences) if fences else ()
        except ValueError:
            window.undecodable = True
        if window.undecodable:
            if before is None:
                self._report_undecodable(publisher)
            # It counts what was refused since.
            window = before or window
        elif packed is None:
            if over:
                self._cache.fences[publisher] = over
            return
        window.fences = over
        windows[publisher] = window

    def _report_undecodable(self, publisher: str) -> None:
        NOTED.count("undecodable_records")
        log.error(
            "producer.undecodable",
            lane=self.partition,
            publisher=publisher,
            key=key_names.publishers(self.partition),
        )

    def _is_whole(self, session_id: str, found: hot_copy.Found, now: Now) -> bool:
        """
        Whether no lower tier can hold more of the session than the hot tier.
        """
        epoch = self.hot_epoch
        if found.undecodable:
            return False
        if not epoch.tiers or found.deleted:
            return True
        if found.session is not None:
            return found.lineage == epoch.lineage
        return not found.elsewhere and is_newborn(
            session_id, now.ms, epoch.since_ms, epoch.ttl_ms
        )

    async def _load_first_replies(self, wanted: list[str]) -> None:
        if not wanted:
            return
        keys = [key_names.ledger(self.partition, command) for command in wanted]
        [values] = await self._wire.exchange([("MGET", *keys)])
        if self.sealed is not None:
            values = await self.sealed.open_replies(wanted, values)
        self._cache.first_replies.update(zip(wanted, values, strict=True))

    async def _load_durable(self, deliveries: Sequence[Delivery]) -> None:
        asking = [d for d in deliveries if d.envelope.kind == "session.durable"]
        if not asking:
            return
        p = self.partition
        replies = await self._wire.exchange(
            [hot_copy.durable_command(p, delivery.session) for delivery in asking]
        )
        for delivery, reply in zip(asking, replies, strict=True):
            refused = hot_copy.refusal_in(reply)
            delivery.given = refused or hot_copy.durable_in(reply)

    async def _load_attached(self, deliveries: Sequence[Delivery]) -> None:
        asking = [(d, c) for d in deliveries if (c := self._attached_command(d))]
        if not asking:
            return
        replies = await self._wire.exchange([command for _, command in asking])
        for (delivery, _), members in zip(asking, replies, strict=True):
            if isinstance(members, ResponseError):
                raise refusal(members)
            delivery.attached = tuple(map(attachments.attachment_in, members))

    def _attached_command(self, delivery: Delivery) -> Command | None:
        envelope = delivery.envelope
        if envelope.kind not in DETACHING:
            return None
        if envelope.kind != LOST_KIND:
            return attachments.of_session(self.partition, envelope.session)
        lost = lost_in(envelope)
        if lost is None:
            return None  # the decision refuses it
        return attachments.of_instance(
            self.partition, lost.mad, lost.instance, lost.after, CHUNK
        )


def _settled_s(packed: bytes) -> float:
    return ProducerWindow.parse(packed).seen_s


def _fenced_s(packed: bytes) -> float:
    return parse_fences(packed)[-1].since_ms / 1000


def _unknown_sessions(cache: LaneCache, deliveries: Sequence[Delivery]) -> list[str]:
    found = dict.fromkeys(one.session for one in deliveries if one.session)

    return [session for session in found if not cache.knows(session)]


def _unknown_publishers(
    cache: LaneCache,
    received: Sequence[Received],
    deliveries: Sequence[Delivery],
    asked: list[Asked],
) -> list[str]:
    found = dict.fromkeys(one.publisher for one in received)
    for mad, identifier in asked:
        if (ordinal := ordinal_of(identifier)) is not None:
            found[f"{mad}:{ordinal.instance}"] = None
    for delivery in deliveries:
        if (lost := lost_in(delivery.envelope)) is not None:
            found[publisher_of(lost)] = None
        if (instance := counted_in(delivery)) is not None:
            found[f"{delivery.entry.mad}:{instance}"] = None
    return [name for name in found if name is not None and not cache.counts(name)]


def _repeated(cache: LaneCache, deliveries: Sequence[Delivery]) -> list[str]:
    return [
        delivery.command
        for delivery in deliveries
        if delivery.ordinal is None or cache.settled_before(delivery)
    ]
