"""
Reads of managers below the hot tier: sessions, pages, history, counts.

Nothing here changes a session; its return from the cold tier is in
`gateway.store.rehydration`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.messages import Session, Stats, TierStats
from everbus.gateway.failpoints import FailPoint, disarmed
from everbus.gateway.store.claims import NO_LENGTH, Claim
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.drain_wait import DrainWait
from everbus.gateway.store.feed import EventFeed, EventTiers
from everbus.gateway.store.history import SessionHistory
from everbus.gateway.store.outbox_reader import OutboxReader
from everbus.gateway.store.pricing import Prices, monthly
from everbus.gateway.store.read_bound import PAGE_BYTES, ReadBound
from everbus.gateway.store.rehydration import Rehydration
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import Admissible, Claimed, WarmCounts, WarmSession
from everbus.gateway.store.timeline import NO_VAULT, Timeline
from everbus.gateway.store.warm_roles import WarmTier
from everbus.gateway.telemetry import metrics
from everbus.handlers.fetch_requests import (
    ChangesBetween,
    CheckpointsOf,
    CheckpointState,
    EventsAfter,
    FetchRequest,
    FoundSessions,
    FullContext,
    StateAt,
    Statistics,
    WarmPage,
)

log = structlog.get_logger()

LOADED_AT_ONCE = 256
# How long an answer waits until the archiver has written recent commits.
CATCH_UP_S = 8.0
# A checkpoint that is not there may never have been.
CHECKPOINT_CATCH_UP_S = 2.0

# Commands of that age are not sent again: publishers are forgotten then, too.
COMMANDS_HORIZON = timedelta(hours=24)

# A session that was claimed, or the error.
Claimant = Admissible | EverbusError
# Returns the number of hot sessions and the bytes of the hot tier.
HotCounts = Callable[[], Awaitable[tuple[int, int]]]


def utc_now() -> datetime:
    """
    The time of this machine.
    """
    return datetime.now(UTC)


class NoTiers:
    """
    The reader without a configured tier below: it finds nothing.

    Args:
        outbox: has everything committed, as no archiver empties it.
    """

    def __init__(
        self, outbox: OutboxReader | None = None, page_bytes: int = PAGE_BYTES
    ) -> None:
        self._feed = None if outbox is None else EventFeed(outbox, None, page_bytes)

    async def load_each(
        self,
        claims: Sequence[Claim],
        found: Callable[[str, Claimant], None],
        _wanted: Callable[[Session], bool] | None = None,
    ) -> None:
        """
        Nothing for each.
        """
        for claim in claims:
            found(claim.session, Admissible(None))

    async def answer(self, session: Session | None, wanted: FetchRequest) -> Any:
        """
        The events of a session from the outbox; refuse all other reads: handlers answer
        from the hot tail themselves.

        Raises:
            Unavailable: with the remedy.
        """
        if self._feed and session and isinstance(wanted, EventsAfter):
            return await self._feed.page(session, wanted, DrainWait(0.0))
        raise Unavailable(
            f"{_asked(wanted)} is below the hot tier, and this manager has no MongoDB; "
            "set EVERBUS_MONGO_URL"
        )

    async def close(self) -> None:
        """
        Nothing is open.
        """


class Reader:
    """
    The tiers below, as a manager reads them.

    Args:
        vault: None if no cold tier is configured.
        hot_counts: returns the hot tier's part of the statistics; None leaves it out.
        outbox: has the events that MongoDB does not hold yet; without it, events appear
            when MongoDB holds them.
        catch_up_s: how long an answer may wait for the archiver.
        page_bytes: where a page ends in bytes.
        now: the time, for the audit.
        fail: see `gateway.store.rehydration`.
        sealed: opens sealed timeline entries; None without encryption.
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Archives | None,
        prices: Prices,
        hot_counts: HotCounts | None = None,
        *,
        outbox: OutboxReader | None = None,
        catch_up_s: float = CATCH_UP_S,
        page_bytes: int = PAGE_BYTES,
        now: Callable[[], datetime] = utc_now,
        fail: FailPoint = disarmed,
        sealed: SealedCopies | None = None,
    ) -> None:
        self._warm = warm
        self._vault = vault
        self._prices = prices
        self._hot_counts = hot_counts
        self._catch_up_s = catch_up_s
        self._now = now
        self._bound = ReadBound(page_bytes)
        self._timeline = Timeline(warm, vault, page_bytes, sealed)
        self._past = SessionHistory(warm, page_bytes)
        self._feed = EventFeed(outbox, EventTiers(warm, self._timeline), page_bytes)
        self._returning = Rehydration(warm, vault, self._timeline, now, fail)

    async def load_each(
        self,
        claims: Sequence[Claim],
        found: Callable[[str, Claimant], None],
        wanted: Callable[[Session], bool] | None = None,
    ) -> None:
        """
        Claim sessions to become hot; *found* is called for each as soon as it is read.

        A session that is not *wanted*, by its warm document, stays where it is. A
        session in the cold tier returns from it. At most LOADED_AT_ONCE claims.
        """
        if len(claims) > LOADED_AT_ONCE:
            raise ValueError(f"{len(claims)} claims; at most {LOADED_AT_ONCE}")
        try:
            claimed = await self._warm.claim(claims)
        except EverbusError as failed:
            for claim in claims:
                found(claim.session, failed)
            return

        async def load_one(claim: Claim) -> None:
            held = claimed[claim.session].held
            if wanted is not None and held is not None and not wanted(held.session):
                return
            found(claim.session, await self._claimed(claim, claimed[claim.session]))

        async with asyncio.TaskGroup() as loading:
            for claim in claims:
                loading.create_task(load_one(claim))

    async def _claimed(self, claim: Claim, claimed: Claimed) -> Claimant:
        """
        The claimed session and the commands that it brings along, or the error.
        """
        if claimed.lineage > claim.lineage:
            return _stale_side(claim, claimed.lineage)
        if claimed.keeps_hot or claimed.held is None:
            return Admissible(None, claimed.keeps_hot)
        session = await self._returning.loaded(claimed.held)
        if isinstance(session, EverbusError) or session is None or claimed.known:
            return session if isinstance(session, EverbusError) else Admissible(session)
        beyond = claim.hot if claim.hot and claimed.descends else NO_LENGTH
        since = self._now() - COMMANDS_HORIZON
        try:
            commands = await self._warm.commands(
                session.id, session.created_at, beyond, since
            )
        except EverbusError as error:
            return error
        return Admissible(session, commands=commands)

    async def answer(self, session: Session | None, wanted: FetchRequest) -> Any:
        """
        The answer to *wanted*, about *session* if it concerns one; the class of
        *wanted* documents its form.

        Raises:
            Unavailable: a tier is away, or the archiver is too far behind.
            Corrupted: the wanted object is damaged.
            NotFound: there is no such checkpoint.
            Invalid: there is no such version.
        """
        match wanted:
            case FoundSessions():
                seen_by = (wanted.visible_to, wanted.tenant)
                return await self._warm.find(wanted.query, *seen_by, self._bound)
            case Statistics():
                return await self._stats()
        if session is None:
            raise AssertionError(f"{_asked(wanted)} is asked of a session")
        return await self._answer(session, wanted)

    async def close(self) -> None:
        """
        Cancel reads in progress; the caller closes the tiers.
        """
        await self._returning.close()

    async def _answer(self, session: Session, wanted: FetchRequest) -> Any:
        catch_up = DrainWait(self._catch_up_s)
        match wanted:
            case WarmPage():
                return await self._timeline.page(session, wanted, catch_up)
            case FullContext():
                return await self._context(session, wanted.version, catch_up)
            case StateAt():
                return await self._past.at(session, wanted, catch_up)
            case ChangesBetween():
                return await self._past.between(session, wanted, catch_up)
            case EventsAfter():
                return await self._feed.page(session, wanted, catch_up)
            case CheckpointsOf():
                return await self._warm.checkpoints(
                    session.id, session.created_at, wanted.before, wanted.limit
                )
            case CheckpointState():
                briefly = DrainWait(min(CHECKPOINT_CATCH_UP_S, self._catch_up_s))
                return await self._past.checkpoint(
                    session, wanted.checkpoint_id, briefly
                )
        raise AssertionError(f"nobody answers {_asked(wanted)}")

    async def _context(
        self, session: Session, version: int, catch_up: DrainWait
    ) -> dict[str, Any]:
        """
        The session's full context as of *version* or later.
        """

        async def attempt() -> WarmSession | None:
            there = await self._warm.sessions([session.id], context=True)
            warm_session = there.get(session.id)
            if (
                warm_session is None
                or warm_session.session.created_at != session.created_at
            ):
                return None
            return warm_session if warm_session.session.version >= version else None

        warm_session = await catch_up.first(attempt)
        if warm_session is None:
            raise Unavailable(
                f"version {version} of {session.id} is not in the warm tier yet: the "
                "archiver is behind. Try again later"
            )
        if warm_session.archival_status == "ACTIVE":
            return warm_session.full_context
        return await self._archived_context(warm_session)

    async def _archived_context(self, stub: WarmSession) -> dict[str, Any]:
        session = stub.session
        if self._vault is None:
            raise Unavailable(
                f"session {session.id} is in the cold tier, and {NO_VAULT}"
            )
        manifest = await self._vault.open(stub.pointer, session.id, session.created_at)

        return (await self._vault.document(manifest))[1]

    async def _stats(self) -> Stats:
        counts = await self._warm.counts()
        tiers = _below(counts, self._prices)
        if self._hot_counts is not None:
            sessions, used = await self._hot_counts()
            cost = monthly(used, self._prices.hot)
            tiers["hot"] = TierStats(sessions=sessions, bytes=used, cost=cost)

        return Stats(
            sessions=sum(counts.states.values()), states=counts.states, tiers=tiers
        )


def _stale_side(claim: Claim, lineage: int) -> Unavailable:
    """
    The refusal of a session that another bus claimed later.
    """
    metrics.STALE_SIDE.inc()
    log.error("lineage.stale_side", session=claim.session, lineage=claim.lineage)
    return Unavailable(
        f"session {claim.session} belongs to lineage {lineage}, and this bus has "
        f"{claim.lineage}: another bus, promoted later, serves it. Connect there; if "
        "there is none, restart this bus, which begins a later lineage. If a clock was "
        "ahead when that one began, first `HSET eb:{p}:lineage lineage "
        f"{lineage}` for each partition p",
        stale_side=True,
    )


def _below(counts: WarmCounts, prices: Prices) -> dict[str, TierStats]:
    archived = counts.states.get("archived", 0)
    return {
        "warm": TierStats(
            sessions=sum(counts.states.values()) - archived,
            bytes=counts.bytes,
            cost=monthly(counts.bytes, prices.warm),
        ),
        "cold": TierStats(
            sessions=archived + counts.returned,
            bytes=counts.cold_bytes,
            cost=monthly(counts.cold_bytes, prices.cold),
        ),
    }


def _asked(wanted: FetchRequest) -> str:
    return type(wanted).__name__
