"""
The contract of every warm tier for sessions that go to the cold tier and return.
"""

from typing import Any

import msgspec

from everbus.compose.testing.contracts.assertions import (
    Check,
    a_rich_story,
    is_empty,
    returned,
    same,
    seqs,
    whole,
)
from everbus.compose.testing.contracts.sample_histories import BEGIN, SampleHistory
from everbus.gateway.store.tiers import WarmSession
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import ListSessions


async def an_archived_session_becomes_a_stub(tier: WarmTier) -> None:
    """
    Only what listing needs stays, and is still found; a repeat changes nothing.
    """
    story = a_rich_story("stub")
    records = [story.create(), story.update({"c": 1}), story.append("x", "y")]
    records.append(story.archive("p1", size=77))
    await tier.write(records)
    await tier.write(records)

    warm_session = (await tier.sessions(["stub"], context=True))["stub"]
    empty: dict[str, Any] = {
        "context_summary": {},
        "work_in_progress": {},
        "fields": {},
    }
    session = msgspec.structs.replace(
        story.session, state="archived", archival_status="S3", **empty
    )
    wanted = WarmSession(
        session=session,
        archival_status="S3",
        pointer="p1",
        through=2,
        bytes=77,
        moves=1,
        unpurged=True,
    )
    same(warm_session, wanted, "the stub")
    page = await tier.find(ListSessions(text="tides", tag="sea"), "ada")
    same(page.sessions, (session,), "find by what the stub does not show")
    counts = await tier.counts()
    same((counts.states, counts.cold_bytes), ({"archived": 1}, 77), "counts")
    same([h.session.id for h in await tier.unfinished("unpurged", 9)], ["stub"], "")


async def a_session_that_changed_is_not_archived(tier: WarmTier) -> None:
    """
    An archiving that is not of this version, seq and moves is a repeat.
    """
    for name in ("version", "seq", "moves"):
        story = SampleHistory(name)
        await tier.write([story.create(), story.append("x")])
        if name == "moves":
            story.moves = 2
        stale = story.archive("p")
        if name == "version":
            await tier.write([story.update()])
        if name == "seq":
            await tier.write([story.append("y")])
        await tier.write([stale])

        warm_session = (await tier.sessions([name]))[name]
        same(warm_session, WarmSession(session=story.session), f"after a stale {name}")


async def nothing_follows_a_stub(tier: WarmTier) -> None:
    """
    A record that is newer than a stub is refused, and the others are written.
    """
    story, other = SampleHistory("quiet"), SampleHistory("other")
    await tier.write([story.create(), story.archive("p")])
    forged = [story.update(), story.append("x")]
    refused = await tier.write([forged[0], other.create(), forged[1]])

    same([r.record for r in refused], forged, "refused")
    warm_session = await tier.sessions(["quiet", "other"])
    same(warm_session["quiet"].archival_status, "S3", "the stub")
    same(warm_session["other"].session, other.session, "the other one")


async def a_returned_session_goes_on(tier: WarmTier) -> None:
    """
    `swap` brings all of it back; its archive stays known, and may be replaced.
    """
    story = a_rich_story("back")
    records = [story.create(), story.update({"c": 1}), story.append("x", "y")]
    records.append(story.archive("p1"))
    await tier.write(records)
    while await tier.purge("back", BEGIN, 2, 1):
        pass
    await returned(tier, story, {"c": 1})
    later = [story.append("z"), story.update({"d": 2})]
    await tier.write(later)
    await tier.write([*records, *later])

    warm_session = (await tier.sessions(["back"], context=True))["back"]
    same(warm_session.session, story.session, "session")
    same(warm_session.full_context, {"c": 1, "d": 2}, "full context")
    same(
        (warm_session.archival_status, warm_session.pointer),
        ("ACTIVE", "p1"),
        "archive",
    )
    same((warm_session.moves, warm_session.unrestored), (2, True), "moves and mark")
    same(await seqs(tier, story), [3], "entries that are here again")
    same((await tier.counts()).returned, 1, "counted as returned")
    await tier.write([story.archive("p2")])
    warm_session = (await tier.sessions(["back"]))["back"]
    same(
        (warm_session.pointer, warm_session.moves, warm_session.through),
        ("p2", 3, 3),
        "archived again",
    )


async def swapping_needs_what_was_seen(tier: WarmTier) -> None:
    """
    Of two that saw the same, one swaps; nobody does after another change.
    """
    story = SampleHistory("swapped")
    await tier.write([story.create(), story.update({"c": 1}), story.archive("p")])
    stub = (await tier.sessions(["swapped"]))["swapped"]
    back = whole(stub, story.session, {"c": 1})
    done = [await tier.swap(stub, back), await tier.swap(stub, back)]
    same(done, [True, False], "swapped twice")
    seen = (await tier.sessions(["swapped"]))["swapped"]
    await tier.write([story.append("x")])
    marked = msgspec.structs.replace(seen, unrestored=False)
    same(await tier.swap(seen, marked), False, "swapped after an append")


async def swapping_marks_keeps_the_rest(tier: WarmTier) -> None:
    """
    A mark is cleared from what was read without context; the context stays.
    """
    story = a_rich_story("marked")
    await tier.write([story.create(), story.update({"c": 1}), story.archive("p")])
    [stub] = await tier.unfinished("unpurged", 9)
    purged = msgspec.structs.replace(stub, unpurged=False)
    same(await tier.swap(stub, purged), True, "clearing unpurged")
    same(await tier.unfinished("unpurged", 9), [], "unpurged")
    page = await tier.find(ListSessions(text="tides"), "")
    same(len(page.sessions), 1, "found by what the stub does not show")
    await returned(tier, story, {"c": 1})
    [back] = await tier.unfinished("unrestored", 9)
    restored = msgspec.structs.replace(back, unrestored=False)
    same(await tier.swap(back, restored), True, "clearing unrestored")
    warm_session = (await tier.sessions(["marked"], context=True))["marked"]
    same(
        (warm_session.unrestored, warm_session.full_context),
        (False, {"c": 1}),
        "what stays",
    )


async def archived_entries_leave_in_steps(tier: WarmTier) -> None:
    """
    `purge` heeds its bounds and ends with 0; late records bring nothing back.
    """
    story = SampleHistory("purged")
    records = [story.create(), *(story.append(n) for n in range(10))]
    records.append(story.archive("p"))
    await tier.write(records)
    same(await tier.purge("purged", BEGIN, 7, 3) <= 3, True, "at most 3 at once")
    while await tier.purge("purged", BEGIN, 7, 3):
        pass
    same(await seqs(tier, story), [8, 9, 10], "entries behind 7")
    await tier.purge("purged", BEGIN, 10, 1000)
    await tier.write(records)
    same(await seqs(tier, story), [], "after a late record")


async def put_entries_fill_holes(tier: WarmTier) -> None:
    """
    What is there stays, what is missing comes; a generation that is over gets nothing.
    """
    story = SampleHistory("filled")
    records = [story.create(), story.append("a", "b", "c")]
    await tier.write(records)
    packed = list(await tier.entries("filled", BEGIN, 1, 3))
    await tier.purge("filled", BEGIN, 2, 100)
    for _ in range(2):
        await tier.put_entries("filled", BEGIN, packed)
    same(list(await tier.entries("filled", BEGIN, 1, 9)), packed, "entries")
    await tier.write([story.delete()])
    await tier.put_entries("filled", BEGIN, packed)
    await is_empty(tier, story)


async def archives_of_deleted_sessions_are_noted(tier: WarmTier) -> None:
    """
    A stub or a returned session that is deleted leaves its pointer, until removed.
    """
    for name, comes_back in (("gone", False), ("back", True)):
        story = SampleHistory(name)
        await tier.write([story.create(), story.archive(f"p-{name}")])
        if comes_back:
            await returned(tier, story, {})
        deleted = story.delete()
        await tier.write([deleted])
        await tier.write([deleted])
    together = SampleHistory("together")
    await tier.write([together.create(), together.archive("p-t"), together.delete()])

    same(list(await tier.removals(9)), ["p-back", "p-gone", "p-t"], "removals")
    same(len(await tier.removals(2)), 2, "at most 2")
    for _ in range(2):
        await tier.removed("p-gone")
    same(list(await tier.removals(9)), ["p-back", "p-t"], "removals after one is done")


CHECKS: tuple[Check, ...] = (
    an_archived_session_becomes_a_stub,
    a_session_that_changed_is_not_archived,
    nothing_follows_a_stub,
    a_returned_session_goes_on,
    swapping_needs_what_was_seen,
    swapping_marks_keeps_the_rest,
    archived_entries_leave_in_steps,
    put_entries_fill_holes,
    archives_of_deleted_sessions_are_noted,
)
