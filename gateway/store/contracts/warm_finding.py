"""
What every warm tier has to find, and how it counts.
"""

from datetime import timedelta

from gateway.store.contracts.claims import (
    Check,
    a_rich_story,
    all_found,
    refuses,
    same,
)
from gateway.store.contracts.stories import BEGIN, MAD, Story
from gateway.store.tiers import Held, WarmTier
from handlers.commands import ListSessions

HOUR = timedelta(hours=1)


async def the_longest_idle_come_first(tier: WarmTier) -> None:
    """
    `idle` pages through sessions by their last activity, without stubs.
    """
    stories = [Story(f"s{n}", BEGIN + timedelta(minutes=n // 2)) for n in range(8)]
    await tier.write([story.create() for story in stories])
    await tier.write([stories[3].suspend(), stories[5].archive("p")])
    before = BEGIN + timedelta(minutes=3)
    wanted = ["s0", "s1", "s2", "s3", "s4"]
    found: list[Held] = []
    while len(found) < 20:
        last = found[-1].session if found else None
        after = (last.last_active, last.id) if last else None
        page = await tier.idle(before, after, 2)
        if not page:
            break
        found += page

    same([held.session.id for held in found], wanted, "idle sessions")


async def sessions_are_found_by_what_they_are(tier: WarmTier) -> None:
    """
    Each filter, and all of them together; only what the asker may see.
    """
    ada = a_rich_story("ada1")
    bob = Story("bob1", BEGIN + HOUR, "bob", acl=("ada", MAD))
    eve = Story("eve1", BEGIN + 2 * HOUR, "eve", fields={"model": "Tides-2 ТИДЫ"})
    await tier.write([ada.create(), bob.create(), eve.create(), bob.suspend()])

    for query, visible_to, wanted in (
        (ListSessions(), "", ["eve1", "bob1", "ada1"]),
        (ListSessions(), "ada", ["bob1", "ada1"]),
        (ListSessions(), "mallory", []),
        (ListSessions(owner="bob"), "", ["bob1"]),
        (ListSessions(owner="bob"), "eve", []),
        (ListSessions(participant="hopper"), "", ["ada1"]),
        (ListSessions(state="dormant"), "", ["bob1"]),
        (ListSessions(tag="sea"), "", ["ada1"]),
        (ListSessions(tag="se"), "", []),
        (ListSessions(text="TIDES"), "", ["eve1", "ada1"]),
        (ListSessions(text="tides moon"), "", ["ada1"]),
        (ListSessions(text="тиды"), "", ["eve1"]),
        (ListSessions(active_since=BEGIN + HOUR), "", ["eve1", "bob1"]),
        (ListSessions(active_before=BEGIN + HOUR), "", ["ada1"]),
        (ListSessions(active_since=eve.life, owner="eve"), "", ["eve1"]),
        (ListSessions(active_before=eve.life, owner="eve"), "", []),
        (
            ListSessions(owner="ada", tag="sea", text="moon", state="active"),
            "ada",
            ["ada1"],
        ),
    ):
        page = await tier.find(query, visible_to)
        same([s.id for s in page.sessions], wanted, f"{query} for {visible_to!r}")
    page = await tier.find(ListSessions(owner="ada"), "")
    same(page.sessions, (ada.session,), "a found session")


async def tenants_are_found_apart(tier: WarmTier) -> None:
    """
    Each asker finds the sessions of its tenant only, by whichever filter; that is so
    for those in the cold tier as well.
    """
    filters = {"fields": {"model": "tides"}, "tags": ("sea",), "acl": (MAD,)}
    parts = {"participants": {MAD: {}}, **filters}
    houses = ("", "acme", "globex")
    stories = {
        tenant: Story(f"{tenant}-1", BEGIN, "ada", tenant=tenant, **parts)
        for tenant in houses
    }
    await tier.write([story.create() for story in stories.values()])
    await tier.write([stories["acme"].suspend(), stories["acme"].archive("p")])

    for tenant in (*houses, "ACME", "acme-1"):
        wanted = [f"{tenant}-1"] if tenant in houses else []
        for query in (
            ListSessions(),
            ListSessions(owner="ada"),
            ListSessions(tag="sea", participant=MAD),
            ListSessions(text="ada"),
            ListSessions(active_since=BEGIN),
        ):
            for visible_to in ("", "ada", MAD):
                page = await tier.find(query, visible_to, tenant)
                told = f"{query} for {visible_to!r} of {tenant!r}"
                same([s.id for s in page.sessions], wanted, told)
                same({s.tenant for s in page.sessions} <= {tenant}, True, told)


async def found_sessions_are_paged(tier: WarmTier) -> None:
    """
    Pages of any size show every session once, also many of the same instant.
    """
    stories = [Story(f"s{n:02}", BEGIN + timedelta(minutes=n // 6)) for n in range(20)]
    await tier.write([story.create() for story in stories])
    wanted = [f"s{n:02}" for n in reversed(range(20))]
    since, before = BEGIN + timedelta(minutes=1), BEGIN + timedelta(minutes=3)

    for limit in (1, 3, 7, 20, 1000):
        same(await all_found(tier, ListSessions(limit=limit)), wanted, f"by {limit}")
        timed = ListSessions(limit=limit, active_since=since, active_before=before)
        same(await all_found(tier, timed), wanted[2:14], f"by {limit}, timed")
    for cursor in ("", "x", "ä", "AAAA", "MTIgLi4v"):
        await refuses(tier.find(ListSessions(cursor=cursor), ""), "cursor")
    for limit in (0, 1001):
        await refuses(tier.find(ListSessions(limit=limit), ""), "limit")
    await refuses(tier.find(ListSessions(text=" ?!"), ""), "text")


async def sessions_are_counted(tier: WarmTier) -> None:
    """
    By state, with what they take.
    """
    stories = [Story(f"s{n}") for n in range(4)]
    await tier.write([story.create() for story in stories])
    await tier.write([stories[0].suspend(), stories[1].archive("p", size=10)])
    await tier.write([stories[2].delete()])

    counts = await tier.counts()
    same(counts.states, {"active": 1, "dormant": 1, "archived": 1}, "states")
    same((counts.cold_bytes, counts.returned), (10, 0), "archives")
    same(counts.bytes >= 0, True, "bytes")


CHECKS: tuple[Check, ...] = (
    the_longest_idle_come_first,
    sessions_are_found_by_what_they_are,
    tenants_are_found_apart,
    found_sessions_are_paged,
    sessions_are_counted,
)
