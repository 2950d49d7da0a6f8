"""
What managers read from the tiers below the hot one: sessions, pages, history, counts.

Nothing here changes a session; that one comes back from the cold tier, which is no
change, is in `gateway.store.returning`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from bus.errors import EverbusError, Unavailable
from bus.messages import Session, Stats, TierStats
from gateway.failpoints import FailPoint, disarmed
from gateway.store.catchup import CatchUp
from gateway.store.cold.vault import Vault
from gateway.store.feed import Below, Feed
from gateway.store.past import Past
from gateway.store.pricing import Prices, monthly
from gateway.store.returning import Loaded, Returning
from gateway.store.tiers import Held, WarmCounts, WarmTier
from gateway.store.timeline import NO_VAULT, Timeline
from gateway.store.unconfirmed import Unconfirmed
from handlers.wanted import (
    ChangesBetween,
    CheckpointsOf,
    CheckpointState,
    EventsAfter,
    FoundSessions,
    FullContext,
    StateAt,
    Statistics,
    Wanted,
    WarmPage,
)

LOADED_AT_ONCE = 256
# How long an answer waits for the archiver to write what was just committed.
CATCH_UP_S = 8.0
# A checkpoint that is not there may never have been.
CHECKPOINT_CATCH_UP_S = 2.0

# Asks how many sessions are hot, and the bytes that the hot tier takes.
HotCounts = Callable[[], Awaitable[tuple[int, int]]]


def utc_now() -> datetime:
    """
    The time of this machine.
    """
    return datetime.now(UTC)


class NoTiers:
    """
    Stands for the tiers below where none is configured: nothing is there.

    Args:
        outbox: where everything that was committed lies, as nobody takes it away.
    """

    def __init__(self, outbox: Unconfirmed | None = None) -> None:
        self._feed = None if outbox is None else Feed(outbox, None)

    async def load_each(
        self, session_ids: Sequence[str], found: Callable[[str, Loaded], None]
    ) -> None:
        """
        None for each.
        """
        for session_id in session_ids:
            found(session_id, None)

    async def answer(self, session: Session | None, wanted: Wanted) -> Any:
        """
        What happened in a session, as long as the outbox has it; refuse all else:
        what the hot tail has, the handlers know without asking.

        Raises:
            Unavailable: with the remedy.
        """
        if self._feed and session and isinstance(wanted, EventsAfter):
            return await self._feed.page(session, wanted, CatchUp(0.0))
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
        hot_counts: what tells the hot tier's part of the statistics; without it
            they have none.
        outbox: where what MongoDB does not hold yet is; without it, what happens in
            sessions is told when MongoDB holds it.
        catch_up_s: how long an answer may wait for the archiver.
        now: the time, for the audit.
        fail: see `gateway.store.returning`.
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Vault | None,
        prices: Prices,
        hot_counts: HotCounts | None = None,
        *,
        outbox: Unconfirmed | None = None,
        catch_up_s: float = CATCH_UP_S,
        now: Callable[[], datetime] = utc_now,
        fail: FailPoint = disarmed,
    ) -> None:
        self._warm = warm
        self._vault = vault
        self._prices = prices
        self._hot_counts = hot_counts
        self._catch_up_s = catch_up_s
        self._timeline = Timeline(warm, vault)
        self._past = Past(warm)
        self._feed = Feed(outbox, Below(warm, self._timeline))
        self._returning = Returning(warm, vault, self._timeline, now, fail)

    async def load(self, session_ids: Sequence[str]) -> dict[str, Loaded]:
        """
        Sessions as they are to become hot, with their recent timeline, packed; None
        for those that no tier holds, an error for those that cannot be had.

        One that is in the cold tier returns from it. LOADED_AT_ONCE ids at most.
        """
        loaded: dict[str, Loaded] = {}
        await self.load_each(session_ids, loaded.__setitem__)

        return loaded

    async def load_each(
        self, session_ids: Sequence[str], found: Callable[[str, Loaded], None]
    ) -> None:
        """
        As `load`, but *found* is told of each session as soon as it is there.
        """
        if len(session_ids) > LOADED_AT_ONCE:
            raise ValueError(f"{len(session_ids)} ids; at most {LOADED_AT_ONCE}")
        held: dict[str, Held] = {}
        error: EverbusError | None = None
        try:
            held = await self._warm.sessions(session_ids)
        except EverbusError as failed:
            error = failed

        async def tell(session_id: str, there: Held) -> None:
            found(session_id, await self._returning.loaded(there))

        async with asyncio.TaskGroup() as loading:
            for session_id, there in held.items():
                loading.create_task(tell(session_id, there))
            for session_id in set(session_ids) - held.keys():
                found(session_id, error)

    async def answer(self, session: Session | None, wanted: Wanted) -> Any:
        """
        What *wanted* names, of *session* where it is of one; in the form that the
        class of *wanted* tells.

        Raises:
            Unavailable: a tier is away, or the archiver is too far behind.
            Corrupted: what is wanted is damaged.
            NotFound: there is no such checkpoint.
            Invalid: there is no such version.
        """
        match wanted:
            case FoundSessions():
                seen_by = (wanted.visible_to, wanted.tenant)
                return await self._warm.find(wanted.query, *seen_by)
            case Statistics():
                return await self._stats()
        if session is None:
            raise AssertionError(f"{_asked(wanted)} is asked of a session")
        return await self._answer(session, wanted)

    async def close(self) -> None:
        """
        Give up what is under way; the tiers are closed by who made them.
        """
        await self._returning.close()

    async def _answer(self, session: Session, wanted: Wanted) -> Any:
        catch_up = CatchUp(self._catch_up_s)
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
                briefly = CatchUp(min(CHECKPOINT_CATCH_UP_S, self._catch_up_s))
                return await self._past.checkpoint(
                    session, wanted.checkpoint_id, briefly
                )
        raise AssertionError(f"nobody answers {_asked(wanted)}")

    async def _context(
        self, session: Session, version: int, catch_up: CatchUp
    ) -> dict[str, Any]:
        """
        The session's full context as of *version* or later.
        """

        async def attempt() -> Held | None:
            there = await self._warm.sessions([session.id], context=True)
            held = there.get(session.id)
            if held is None or held.session.created_at != session.created_at:
                return None
            return held if held.session.version >= version else None

        held = await catch_up.first(attempt)
        if held is None:
            raise Unavailable(
                f"version {version} of {session.id} is not in the warm tier yet: the "
                "archiver is behind. Try again later"
            )
        if held.archival_status == "ACTIVE":
            return held.full_context
        return await self._archived_context(held)

    async def _archived_context(self, stub: Held) -> dict[str, Any]:
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


def _asked(wanted: Wanted) -> str:
    return type(wanted).__name__
