"""
The contract of every warm tier: run `check_warm_tier` over your own.

It needs a fresh, empty store per check, so it takes a factory:

    await check_warm_tier(make)    # async def make() -> WarmTier

A failed check raises AssertionError with the wanted value. `prepare` is
called before each, `close` after it.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from everbus.compose.testing.contracts import (
    warm_archives,
    warm_claims,
    warm_events,
    warm_finding,
    warm_history,
)
from everbus.compose.testing.contracts.assertions import (
    Check,
    a_rich_story,
    entry_in,
    is_empty,
    same,
    seqs,
    steps,
)
from everbus.compose.testing.contracts.sample_histories import BEGIN, MAD, SampleHistory
from everbus.gateway.store.read_bound import ReadBound
from everbus.gateway.store.tiers import SNAPSHOT_EVERY, WarmSession
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import ListSessions

HOUR = timedelta(hours=1)


async def a_session_is_held_whole(tier: WarmTier) -> None:
    """
    A record's state comes back field by field, also as a summary.
    """
    story = a_rich_story("whole")
    await tier.write([story.create()])

    warm_session = (await tier.sessions(["whole", "nobody"]))["whole"]
    same(warm_session, WarmSession(session=story.session), "sessions")
    same(set(await tier.sessions(["nobody"])), set(), "sessions of an unknown id")


async def a_session_only_goes_forward(tier: WarmTier) -> None:
    """
    Records that come again, late or in the same write, change nothing.
    """
    story = SampleHistory("forward")
    records = [story.create(), story.update(tags=("a",)), story.append("x", "y")]
    records += [story.update(tags=("b",)), story.suspend(), story.append("z")]
    for record in records:
        await tier.write([record])
    for late in (records, records[:2], records[3:4], records[2:3]):
        await tier.write(late)

    warm_session = await tier.sessions(["forward"])
    same(warm_session["forward"].session, story.session, "sessions")
    same(await seqs(tier, story), [1, 2, 3], "entries")
    same(len(await steps(tier, story)), story.session.version, "changes")


async def entries_are_read_in_order(tier: WarmTier) -> None:
    """
    `entries` gives what there is between two seqs; `first_since` finds by time.
    """
    story = SampleHistory("ordered")
    said = [
        {"n": n, "big": 2**53 - n, "deep": [{"a": None}, 1.5, "ü"]} for n in range(9)
    ]
    await tier.write([story.create(), *(story.append(one) for one in said)])

    found = [entry_in(e) for e in await tier.entries("ordered", BEGIN, 3, 7)]
    same([e.seq for e in found], [3, 4, 5, 6, 7], "seqs")
    same([e.entry for e in found], said[2:7], "entries")
    same({e.author for e in found}, {MAD}, "authors")
    first = await tier.first_since("ordered", BEGIN, found[2].at)
    same(first, 5, "first_since at an entry's time")
    between = found[2].at + timedelta(milliseconds=1)
    same(await tier.first_since("ordered", BEGIN, between), 6, "first_since between")
    end = story.session.last_active + HOUR
    same(await tier.first_since("ordered", BEGIN, end), None, "first_since at the end")
    same(await tier.entries("ordered", BEGIN + HOUR, 1, 9), [], "another life's")
    for newest_first, wanted in ((False, [1]), (True, [9])):
        bound = ReadBound(1, newest_first)
        few = await tier.entries("ordered", BEGIN, 1, 9, bound)
        same([entry_in(e).seq for e in few], wanted, "seqs of a read of one byte")


async def a_deleted_session_leaves_nothing(tier: WarmTier) -> None:
    """
    Neither document, timeline nor history stays, nor comes back by a late record.
    """
    story = SampleHistory("deleted")
    records = [story.create(), story.append("x"), story.checkpoint("c")]
    records.append(story.update(steps=SNAPSHOT_EVERY))
    await tier.write(records)
    await tier.write([story.delete()])
    for late in (records, records[1:2], records[3:]):
        await tier.write(late)

    same(await tier.sessions(["deleted"]), {}, "sessions")
    await is_empty(tier, story)
    same((await tier.counts()).states, {}, "counts")
    same((await tier.find(ListSessions(), "")).sessions, (), "find")


async def nothing_is_held_of_a_session_that_is_not(tier: WarmTier) -> None:
    """
    What does not bring its session is refused where there is none, and leaves nothing.
    """
    story, other = SampleHistory("unborn"), SampleHistory("born")
    first = story.create()
    early = [story.append("x"), story.broadcast("y")]
    later = [story.update(), story.append("z")]
    refused = await tier.write([early[0], other.create(), early[1]])

    same([r.record for r in refused], early, "refused")
    same(set(await tier.sessions(["unborn", "born"])), {"born"}, "sessions")
    await is_empty(tier, story)
    same(await tier.write([first, *later]), [], "refused after it was brought")
    warm_session = await tier.sessions(["unborn"])
    same(warm_session["unborn"].session, story.session, "session")
    same(await seqs(tier, story), [2], "entries")


async def a_later_life_has_nothing_of_an_earlier_one(tier: WarmTier) -> None:
    """
    An id that was deleted and made again begins anew, in one write or in many.
    """
    for name, at_once in (("together", True), ("apart", False)):
        first, second = (
            SampleHistory(name),
            SampleHistory(name, BEGIN + HOUR, owner="bob"),
        )
        old = [first.create(), first.append("1", "2"), first.update({"a": 1})]
        new = [second.create(), second.append("one")]
        records = [*old, first.delete(), *new]
        for part in [records] if at_once else [[record] for record in records]:
            await tier.write(part)
        await tier.write([*old, *new])
        await tier.write(old)

        warm_session = (await tier.sessions([name], context=True))[name]
        same(warm_session, WarmSession(session=second.session), "sessions")
        same(await seqs(tier, second), [1], "entries of the later life")
        await is_empty(tier, first)


async def turns_are_kept(tier: WarmTier) -> None:
    """
    Entries keep their turn, in whatever way they came, and its end keeps it as well.
    """
    story = SampleHistory("turned")
    records = [story.create(), story.turn("t-1", "a", "b", tags=("sea",))]
    records += [story.append("c"), story.turn("t-2", "d")]
    await tier.write(records)
    await tier.write(records)

    packed = await tier.entries("turned", BEGIN, 1, 4)
    turns = ["t-1", "t-1", "", "t-2"]
    same([entry_in(one).turn for one in packed], turns, "turns of the entries")
    found = await tier.events("turned", BEGIN, (1, 0), 9)
    ends = [(one.kind, one.version, one.seq, one.turn) for one in found]
    wanted = [("session.turned", 2, 2, "t-1"), ("session.turned", 3, 4, "t-2")]
    same(ends, wanted, "ends of the turns")
    audits = await tier.appended_by("turned", BEGIN, 1, 4)
    same(len({audits[1], audits[2]}), 1, "commands of one turn's entries")
    last = await tier.sessions(["turned"])
    same(last["turned"].session, story.session, "sessions")


CHECKS: tuple[Check, ...] = (
    a_session_is_held_whole,
    a_session_only_goes_forward,
    entries_are_read_in_order,
    turns_are_kept,
    a_deleted_session_leaves_nothing,
    nothing_is_held_of_a_session_that_is_not,
    a_later_life_has_nothing_of_an_earlier_one,
    *warm_history.CHECKS,
    *warm_events.CHECKS,
    *warm_archives.CHECKS,
    *warm_claims.CHECKS,
    *warm_finding.CHECKS,
)


async def check_warm_tier(make: Callable[[], Awaitable[WarmTier]]) -> None:
    """
    Run every check, each over a fresh store of *make*.

    Raises:
        AssertionError: the store does not keep the contract.
    """
    for check in CHECKS:
        tier = await make()
        try:
            await tier.prepare()
            await tier.prepare()
            await check(tier)
        finally:
            tier.close()
