"""
The contract of every warm tier for claims: which branch of a session counts.
"""

from collections.abc import Sequence
from datetime import timedelta

import msgspec

from everbus.compose.testing.contracts.assertions import (
    Check,
    all_found,
    same,
    seqs,
    steps,
)
from everbus.compose.testing.contracts.sample_histories import (
    BEGIN,
    MAD,
    SampleHistory,
)
from everbus.gateway.store.claims import NO_LENGTH, Claim, length_of
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.tiers import Claimed, WarmSession
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import ListSessions

HOUR = timedelta(hours=1)


def under(lineage: int, *records: Record) -> list[Record]:
    """
    *records* as committed under that lineage.
    """
    return [msgspec.structs.replace(one, lineage=lineage) for one in records]


def forked(story: SampleHistory) -> SampleHistory:
    """
    Another branch of *story*, with commands of its own, from where it is now.
    """
    other = SampleHistory(story.session.id, story.generation)
    other.session = story.session
    other.commands = 1_000

    return other


async def claimed_by(tier: WarmTier, claim: Claim) -> Claimed:
    """
    The result of one claim.
    """
    return (await tier.claim([claim]))[claim.session]


async def refused_of(tier: WarmTier, *records: Record) -> list[bool]:
    """
    For each of the *records* that *tier* refuses, whether it diverged.
    """
    return [one.diverged for one in await tier.write(records)]


async def a_claim_holds_off_what_came_before(tier: WarmTier) -> None:
    """
    Records of an older lineage are written up to the claimed length, not beyond;
    those of the lineage that claimed are.
    """
    story = SampleHistory("claimed")
    shared = under(5, story.create(), story.append("a"), story.append("b"))
    length = length_of(story.session)
    dead, alive = story, forked(story)
    await tier.write(shared[:2])
    claim = Claim(session="claimed", lineage=7, hot=length, hot_lineage=5)
    claimed = await claimed_by(tier, claim)
    same((claimed.lineage, claimed.keeps_hot), (7, True), "the claim")

    of_the_dead = under(5, dead.append("x"), dead.update(tags=("x",)))
    of_the_dead += under(5, dead.broadcast("x"))
    same(await refused_of(tier, *of_the_dead), [True] * 3, "refused beyond the claim")
    same(await tier.write(shared), [], "refused up to the claim")
    rest = under(7, alive.append("c"), alive.update(tags=("y",)))
    same(await tier.write([*rest, *rest]), [], "refused of the new lineage")
    same(await refused_of(tier, *of_the_dead), [True] * 3, "refused afterwards")
    warm_session = (await tier.sessions(["claimed"]))["claimed"]
    same(warm_session, WarmSession(session=alive.session), "session")
    same(await seqs(tier, alive), [1, 2, 3], "entries")


async def the_later_of_hot_copy_and_document_counts(tier: WarmTier) -> None:
    """
    If the hot copy is of the document's branch; else the document counts.
    """
    story = SampleHistory("later")
    await tier.write(under(5, story.create(), story.append("a")))
    shorter = length_of(story.session)
    await tier.write(under(5, story.append("b")))
    longer = length_of(story.session)._replace(last_seq=9)
    for lineage, hot, of, keeps in (
        (10, shorter, 5, False),
        (11, longer, 9, False),
        (12, longer, 11, True),
        (12, longer, 11, True),
        (13, None, 0, False),
    ):
        claim = Claim(session="later", lineage=lineage, hot=hot, hot_lineage=of)
        claimed = await claimed_by(tier, claim)
        same(claimed.keeps_hot, keeps, f"hot copy kept by lineage {lineage}")
        held = claimed.held.session if claimed.held else None
        same(held, story.session, "document")
    stale = await claimed_by(tier, Claim(session="later", lineage=12, hot=longer))
    same((stale.lineage, stale.held), (13, None), "a claim of the stale side")


async def a_claim_of_an_unknown_session_is_seen_by_nobody(tier: WarmTier) -> None:
    """
    It keeps an older lineage from creating it; the first write takes its place.
    """
    claimed = await claimed_by(tier, Claim(session="unheard", lineage=7))
    same((claimed.held, claimed.keeps_hot), (None, False), "the claim")
    same(await tier.sessions(["unheard"]), {}, "sessions")
    same(await all_found(tier, ListSessions()), [], "find")
    same((await tier.counts()).states, {}, "counts")
    idle = await tier.idle(BEGIN + 10_000 * HOUR, None, 10)
    same(list(idle), [], "idle sessions")

    old, new = SampleHistory("unheard"), SampleHistory("unheard", BEGIN + HOUR)
    same(await refused_of(tier, *under(5, old.create())), [True], "an older creation")
    same(await tier.write(under(7, new.create(), new.append("a"))), [], "refused")
    warm_session = (await tier.sessions(["unheard"]))["unheard"]
    same(warm_session, WarmSession(session=new.session), "session")
    again = await claimed_by(tier, Claim(session="unheard", lineage=7))
    same(again.known, True, "commands known after the lineage's own writes")


async def an_unwritten_claim_may_be_repeated(tier: WarmTier) -> None:
    """
    Its lane may have ended before the admission: it ends the same once more, and
    nobody counts its commands as known.
    """
    story = SampleHistory("repeated")
    await tier.write(under(5, story.create(), story.append("a")))
    later = under(5, story.append("b"))
    hot = length_of(story.session)
    claim = Claim(session="repeated", lineage=7, hot=hot, hot_lineage=5)
    for _ in range(2):
        claimed = await claimed_by(tier, claim)
        same((claimed.keeps_hot, claimed.known), (True, False), "the claim")
        await tier.write(later)
    await tier.write(under(7, story.append("c")))
    claimed = await claimed_by(tier, Claim(session="repeated", lineage=7))
    same(claimed.known, True, "known after a write of its own")


async def another_command_never_counts_as_a_repeat(tier: WarmTier) -> None:
    """
    A record at a seq, version or notice that is taken; nothing of it is written.
    """
    story = SampleHistory("placed")
    records = [story.create()]
    other = forked(story)
    records += [story.append("a"), story.update(tags=("a",)), story.broadcast("a")]
    await tier.write(records)
    others = [other.append("x"), other.update(tags=("x",)), other.broadcast("x")]
    both = SampleHistory("beside")
    told = await refused_of(tier, others[0], both.create(), *others[1:])
    same(told, [True] * 3, "refused")

    same(await tier.write(records), [], "refused of a repeat")
    warm_session = await tier.sessions(["placed", "beside"])
    same(warm_session["placed"].session, story.session, "session")
    same(warm_session["beside"].session, both.session, "another session")
    await _is_story(tier, story, records)


async def _is_story(
    tier: WarmTier, story: SampleHistory, records: Sequence[Record]
) -> None:
    commands = [event.command_id for one in records for event in one.events]
    found = await tier.appended_by(story.session.id, story.generation, 1, 99)
    held = [command for command, _ in found.values()]
    events = await tier.events(story.session.id, story.generation, (0, 0), 99)
    held += [event.command_id for event in events]
    same(sorted(held), sorted(commands), "commands")


async def a_creation_never_replaces_a_session(tier: WarmTier) -> None:
    """
    A creation over a session that exists, by a later time or by another command.
    """
    story = SampleHistory("held")
    await tier.write([story.create(), story.append("a")])
    later = SampleHistory("held", BEGIN + HOUR, owner="bob")
    twin = SampleHistory("held", owner="bob")
    twin.commands = 50
    created = later.create()
    told = await refused_of(tier, created, later.append("x"), twin.create())
    same(told, [True] * 3, "refused")
    warm_session = (await tier.sessions(["held"]))["held"]
    same(warm_session.session, story.session, "session")
    same(await seqs(tier, story), [1], "entries")
    same(len(await steps(tier, story)), 1, "changes")

    same(await tier.write([story.delete(), created]), [], "refused after a deletion")
    warm_session = (await tier.sessions(["held"]))["held"]
    same(warm_session.session.owner_id, "bob", "owner")


async def a_claim_outlives_a_deletion(tier: WarmTier) -> None:
    """
    Nothing of a dead branch replaces it, not even a record of a later generation.
    """
    story = SampleHistory("ended")
    await tier.write(under(5, story.create()))
    dead = forked(story)
    hot = length_of(story.session)
    await claimed_by(tier, Claim(session="ended", lineage=7, hot=hot, hot_lineage=5))
    await tier.write(under(7, story.delete()))
    again = SampleHistory("ended", BEGIN + HOUR)
    await refused_of(tier, *under(5, dead.delete(), again.create()))
    same(await tier.sessions(["ended"]), {}, "sessions")

    claimed = await claimed_by(tier, Claim(session="ended", lineage=8, hot=hot))
    same((claimed.held, claimed.keeps_hot), (None, False), "a claim of the deleted")
    same(await tier.write(under(8, again.create())), [], "refused of the living")
    same(set(await tier.sessions(["ended"])), {"ended"}, "sessions")


async def commands_come_back(tier: WarmTier) -> None:
    """
    Those of the effects behind a length, the newest first, from a time on.
    """
    story = SampleHistory("numbers")
    records = [story.create(), story.append("a", "b")]
    middle = length_of(story.session)
    records += [story.update(tags=("t",)), story.append("c"), story.broadcast("d")]
    await tier.write(records)
    commands = [(MAD, e.command_id) for one in records for e in one.events]

    found = await tier.commands("numbers", BEGIN, NO_LENGTH, BEGIN)
    same(sorted(found), sorted(commands), "all commands")
    found = await tier.commands("numbers", BEGIN, middle, BEGIN)
    same(list(found), commands[:-4:-1], "commands behind a length")
    end = story.session.last_active
    same(len(await tier.commands("numbers", BEGIN, NO_LENGTH, end)), 1, "the last")


CHECKS: tuple[Check, ...] = (
    a_claim_holds_off_what_came_before,
    the_later_of_hot_copy_and_document_counts,
    a_claim_of_an_unknown_session_is_seen_by_nobody,
    an_unwritten_claim_may_be_repeated,
    another_command_never_counts_as_a_repeat,
    a_creation_never_replaces_a_session,
    a_claim_outlives_a_deletion,
    commands_come_back,
)
