"""
What every hot tier has to do: run `check_hot_tier` over one of your own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from bus.codec import pack
from bus.messages import Session, TimelineEntry
from gateway.store.tiers import HotTier

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
LONG_S = 60.0
SHORT_S = 0.05

Check = Callable[[HotTier], Awaitable[None]]


async def an_admitted_session_is_read_back_whole(tier: HotTier) -> None:
    """
    `get` gives what `admit` was given, with its recent timeline.
    """
    session = a_session("whole")
    _same(await tier.admit(session, LONG_S), True, "admit of a session that is not hot")
    _same(await tier.get("whole"), session, "get")


async def what_is_not_hot_is_none(tier: HotTier) -> None:
    """
    Neither `get` nor `exists` finds what was never admitted.
    """
    _same(await tier.get("nobody"), None, "get")
    _same(await tier.exists("nobody"), False, "exists")


async def a_hot_session_is_never_replaced(tier: HotTier) -> None:
    """
    `admit` leaves a hot copy as it is, whatever it is offered.
    """
    session = a_session("kept", version=3)
    await tier.admit(session, LONG_S)
    offered = a_session("kept", version=2)
    _same(await tier.admit(offered, LONG_S), False, "admit of a hot session")
    _same(await tier.get("kept"), session, "get")


async def a_forgotten_session_is_gone(tier: HotTier) -> None:
    """
    `forget` removes it, and may be repeated.
    """
    await tier.admit(a_session("left"), LONG_S)
    _same(await tier.forget("left"), True, "forget")
    _same(await tier.forget("left"), True, "forget again")
    _same(await tier.exists("left"), False, "exists")


async def a_session_goes_when_its_time_is_up(tier: HotTier) -> None:
    """
    After its TTL it is not hot any more, and may be admitted anew.
    """
    await tier.admit(a_session("brief"), SHORT_S)
    deadline = asyncio.get_running_loop().time() + LONG_S
    while await tier.exists("brief"):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"hot {LONG_S} s after a TTL of {SHORT_S} s")
        await asyncio.sleep(SHORT_S)
    _same(await tier.admit(a_session("brief"), LONG_S), True, "admit after expiry")


async def the_active_ones_are_told(tier: HotTier) -> None:
    """
    `active` and `count` know what is hot, and `active` heeds its limit.
    """
    for name in ("one", "two", "three"):
        await tier.admit(a_session(name), LONG_S)
    _same(set(await tier.active(100)) >= {"one", "two", "three"}, True, "active")
    _same(len(await tier.active(2)), 2, "active of at most 2")
    _same(await tier.count(), len(await tier.active(10_000)), "count")


CHECKS: tuple[Check, ...] = (
    an_admitted_session_is_read_back_whole,
    what_is_not_hot_is_none,
    a_hot_session_is_never_replaced,
    a_forgotten_session_is_gone,
    a_session_goes_when_its_time_is_up,
    the_active_ones_are_told,
)


async def check_hot_tier(make: Callable[[], Awaitable[HotTier]]) -> None:
    """
    Run every check, each on a tier that *make* gives, which must be empty.

    Raises:
        AssertionError: saying which check, what was wanted and what came.
    """
    for check in CHECKS:
        await check(await make())


def a_session(session_id: str, version: int = 1) -> Session:
    """
    A session with something in each field, as a hot tier gets it.
    """
    entries = [
        pack(TimelineEntry(seq, NOW + timedelta(seconds=seq), "fiedler", {"n": seq}))
        for seq in (1, 2)
    ]
    return Session(
        id=session_id,
        version=version,
        owner_id="ada",
        created_at=NOW,
        last_active=NOW + timedelta(hours=1),
        state="dormant",
        last_seq=2,
        acl=("bob",),
        participants={"fiedler": {"role": "guide"}},
        work_in_progress={"step": 1},
        context_summary={"topic": {"de": "Gezeiten", "n": 1.5}},
        tags=("tides",),
        fields={"current_model": "m"},
        context_bytes=7,
        recent_timeline=tuple(entries),
    )


def _same(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise AssertionError(f"{what}: wanted {wanted!r}, got {got!r}")
