"""
What every warm tier has to find, and how it counts.
"""

from datetime import timedelta

from everbus.compose.testing.contracts.assertions import (
    Check,
    a_rich_story,
    all_found,
    refuses,
    same,
)
from everbus.compose.testing.contracts.sample_histories import BEGIN, MAD, SampleHistory
from everbus.gateway.store.read_bound import ReadBound
from everbus.gateway.store.tiers import WarmSession
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import ListSessions

HOUR = timedelta(hours=1)


async def the_longest_idle_come_first(tier: WarmTier) -> None:
    """
    `idle` pages through sessions by their last activity, without stubs.
    """
    stories = [
        SampleHistory(f"s{n}", BEGIN + timedelta(minutes=n // 2)) for n in range(8)
    ]
    await tier.write([story.create() for story in stories])
    await tier.write([stories[3].suspend(), stories[5].archive("p")])
    before = BEGIN + timedelta(minutes=3)
    wanted = ["s0", "s1", "s2", "s3", "s4"]
    found: list[WarmSession] = []
    while len(found) < 20:
        last = found[-1].session if found else None
        after = (last.last_active, last.id) if last else None
        page = await tier.idle(before, after, 2)
        if not page:
            break
        found += page

    same([warm_session.session.id for warm_session in found], wanted, "idle sessions")


async def every_session_is_paged_by_its_id(tier: WarmTier) -> None:
    """
    `every` shows each session of each tenant once, stubs as well, deleted ones not.
    """
    stories = [SampleHistory(f"s{n}", BEGIN, tenant=f"t{n % 2}") for n in range(7)]
    await tier.write([story.create() for story in stories])
    await tier.write([stories[2].archive("p"), stories[4].delete()])
    found: list[WarmSession] = []
    while page := await tier.every(found[-1].session.id if found else "", 2):
        found += page

    ids = [one.session.id for one in found]
    same(ids, ["s0", "s1", "s2", "s3", "s5", "s6"], "every session")


async def sessions_are_found_by_what_they_are(tier: WarmTier) -> None:
    """
    Each filter, and all of them together; only what the asker may see.
    """
    ada = a_rich_story("ada1")
    acl = ("ada", MAD, "mad:carl", "user:dora")
    bob = SampleHistory("bob1", BEGIN + HOUR, "bob", acl=acl)
    eve = SampleHistory(
        "eve1", BEGIN + 2 * HOUR, "eve", fields={"model": "Tides-2 ТИДЫ"}
    )
    await tier.write([ada.create(), bob.create(), eve.create(), bob.suspend()])

    for query, visible_to, wanted in (
        (ListSessions(), "", ["eve1", "bob1", "ada1"]),
        (ListSessions(), "ada", ["bob1", "ada1"]),
        (ListSessions(), "mallory", []),
        # As entries of an access list: a plain name there admits both.
        (ListSessions(), "user:ada", ["bob1", "ada1"]),
        (ListSessions(), f"mad:{MAD}", ["bob1"]),
        (ListSessions(), "mad:carl", ["bob1"]),
        (ListSessions(), "user:carl", []),
        (ListSessions(), "user:mad:carl", []),
        (ListSessions(), "carl", []),
        (ListSessions(), "user:dora", ["bob1"]),
        (ListSessions(), "mad:dora", []),
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
        (ListSessions(active_since=eve.generation, owner="eve"), "", ["eve1"]),
        (ListSessions(active_before=eve.generation, owner="eve"), "", []),
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
        tenant: SampleHistory(f"{tenant}-1", BEGIN, "ada", tenant=tenant, **parts)
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
                asked = f"{query} for {visible_to!r} of {tenant!r}"
                same([s.id for s in page.sessions], wanted, asked)
                same({s.tenant for s in page.sessions} <= {tenant}, True, asked)


async def found_sessions_are_paged(tier: WarmTier) -> None:
    """
    Pages of any size show every session once, also many of the same instant.
    """
    stories = [
        SampleHistory(f"s{n:02}", BEGIN + timedelta(minutes=n // 6)) for n in range(20)
    ]
    await tier.write([story.create() for story in stories])
    wanted = [f"s{n:02}" for n in reversed(range(20))]
    since, before = BEGIN + timedelta(minutes=1), BEGIN + timedelta(minutes=3)

    for limit in (1, 3, 7, 20, 1000):
        same(await all_found(tier, ListSessions(limit=limit)), wanted, f"by {limit}")
        timed = ListSessions(limit=limit, active_since=since, active_before=before)
        same(await all_found(tier, timed), wanted[2:14], f"by {limit}, timed")
    page = await tier.find(ListSessions(), "", "", ReadBound(1))
    same([s.id for s in page.sessions], wanted[:1], "a page of one byte")
    page = await tier.find(ListSessions(cursor=page.next), "", "", ReadBound(1))
    same([s.id for s in page.sessions], wanted[1:2], "the page behind it")
    for cursor in ("", "x", "ä", "AAAA", "MTIgLi4v"):
        await refuses(tier.find(ListSessions(cursor=cursor), ""), "cursor")
    for limit in (0, 1001):
        await refuses(tier.find(ListSessions(limit=limit), ""), "limit")
    await refuses(tier.find(ListSessions(text=" ?!"), ""), "text")


async def sessions_are_counted(tier: WarmTier) -> None:
    """
    By state, with what they take.
    """
    stories = [SampleHistory(f"s{n}") for n in range(4)]
    await tier.write([story.create() for story in stories])
    await tier.write([stories[0].suspend(), stories[1].archive("p", size=10)])
    await tier.write([stories[2].delete()])

    counts = await tier.counts()
    same(counts.states, {"active": 1, "dormant": 1, "archived": 1}, "states")
    same((counts.cold_bytes, counts.returned), (10, 0), "archives")
    same(counts.bytes >= 0, True, "bytes")


CHECKS: tuple[Check, ...] = (
    the_longest_idle_come_first,
    every_session_is_paged_by_its_id,
    sessions_are_found_by_what_they_are,
    tenants_are_found_apart,
    found_sessions_are_paged,
    sessions_are_counted,
)
