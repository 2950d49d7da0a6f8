"""
A MAD whose sockets closed is missed long before its lease ends; others are not.
"""

import time
from functools import partial

import pytest

from everbus.bus import connect, keys
from everbus.gateway.presence import lane as presence
from everbus.gateway.presence import mad_liveness
from everbus.gateway.store import lease_records
from tests.integration.conftest import ON_EACH_SERVER, a_replica, a_token, until
from tests.integration.presence.leases import MARGIN_S, LeaseBook, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRACE_S = 1.0


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"lost_after_disconnect_s": GRACE_S}
    made = partial(presence.PresenceParts, **fields)
    monkeypatch.setattr("tests.integration.presence.leases.PresenceParts", made)
    monkeypatch.setattr(mad_liveness, "LOOK_EVERY_S", 0.1)


async def looked(book: LeaseBook, times: int = 3) -> None:
    """
    Return after so many looks at the listeners.
    """

    async def calls() -> int:
        stats = await book.bus.client.info("commandstats")
        return stats.get("cmdstat_pubsub|numsub", {"calls": 0})["calls"]

    least = await calls() + times

    async def claim() -> bool:
        return await calls() >= least

    await until(claim, "looks", 20)


@ON_EACH_SERVER
@pytest.mark.usefixtures("hasty")
async def test_an_instance_whose_listener_went_is_missed_after_the_grace(
    book: LeaseBook,
):
    """
    The other one never listened, as a client without a subscription.
    """
    async with watched(book, ttl_ms=30_000, settle=False):
        await book.bus.client.hset(lease_records.WATCH, "grace_ms", 0)
        async with book.bus.client.pubsub() as heard:
            await heard.subscribe(keys.wake("ann", "i1"))
            await book.say("join", "i1", "silent")
            await book.until("i1", "living")
            await looked(book)
        gone = time.monotonic()
        lost = await book.until("i1", "lost", within_s=20)
        took_s = time.monotonic() - gone
        silent = await book.of("silent")

    assert lost.noticed == "disconnect"
    assert GRACE_S <= took_s <= GRACE_S + MARGIN_S
    assert silent.state == "living"


@pytest.mark.usefixtures("hasty")
async def test_a_listener_that_returns_within_the_grace_kills_nobody(
    book: LeaseBook, monkeypatch
):
    async with watched(book, ttl_ms=30_000, settle=False):
        await book.bus.client.hset(lease_records.WATCH, "grace_ms", 0)
        channel = keys.wake("ann", "i1")
        async with book.bus.client.pubsub() as first:
            await first.subscribe(channel)
            await book.say("join", "i1")
            await book.until("i1", "living")
            await looked(book)
        await looked(book)
        async with book.bus.client.pubsub() as second:
            await second.subscribe(channel)
            await looked(book, 3 * round(GRACE_S / mad_liveness.LOOK_EVERY_S))
            found = await book.of("i1")

    assert found.state == "living"


@pytest.mark.usefixtures("hasty")
async def test_a_heartbeat_without_a_listener_keeps_the_lease(book: LeaseBook):
    """
    The bus refuses its SUBSCRIBE, say: whose heart beats is no dead one.
    """
    async with watched(book, ttl_ms=30_000, settle=False):
        await book.bus.client.hset(lease_records.WATCH, "grace_ms", 0)
        async with book.bus.client.pubsub() as heard:
            await heard.subscribe(keys.wake("ann", "i1"))
            await book.say("join", "i1")
            await book.until("i1", "living")
            await looked(book)
        for _ in range(2 * round(GRACE_S / mad_liveness.LOOK_EVERY_S) // 3):
            await looked(book)
            await book.say("beat", "i1")
        found = await book.of("i1")

    assert found.state == "living"


@pytest.mark.usefixtures("hasty")
async def test_without_the_setting_only_the_lease_counts(book: LeaseBook, monkeypatch):
    made = partial(presence.PresenceParts, lost_after_disconnect_s=0)
    monkeypatch.setattr("tests.integration.presence.leases.PresenceParts", made)
    async with watched(book, ttl_ms=30_000, settle=False) as lane:
        assert lane._looking() == []


async def test_an_sdk_whose_subscription_was_cut_beats_at_once_and_is_not_lost(
    book: LeaseBook,
):
    lost: list[int] = []
    token = a_token("ann")
    await book.bus.register("ann")
    settings = {"EVERBUS_LOST_AFTER_DISCONNECT_S": "2"}
    async with (
        a_replica(book.bus.url, "one", **settings),
        connect(book.bus.url, mad="ann", token=token, on_lost=lost.append) as ann,
    ):
        await book.until(ann.instance, "living", within_s=20)
        before = await book.of(ann.instance)
        await book.bus.client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")

        async def claim() -> bool:
            found = await book.of(ann.instance)
            return found is not None and found.heard_ms > before.heard_ms

        # The next heartbeat would be due after a third of 30 s.
        await until(claim, "a heartbeat", 5)
        await looked(book, 30)
        found = await book.of(ann.instance)

    assert (found.state, lost) == ("living", [])
