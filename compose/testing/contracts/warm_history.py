"""
What every warm tier has to keep of what was: contexts, versions, checkpoints.
"""

from everbus.compose.testing.contracts.assertions import (
    Check,
    checkpoint_state,
    rebuilt,
    refuses,
    same,
)
from everbus.compose.testing.contracts.sample_histories import BEGIN, MAD, SampleHistory
from everbus.gateway.store.tiers import SNAPSHOT_EVERY
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.history import state_of


async def the_full_context_is_patched_once(tier: WarmTier) -> None:
    """
    Merge patches of updates apply in order of version; repeats of them do not.
    """
    story = SampleHistory("context")
    records = [story.create(), story.update({"a": {"x": 1, "y": 2}, "n": [1]})]
    records += [story.update({"a": {"x": None}}), story.update(tags=("t",))]
    records.append(story.update({"b": "c"}))
    await tier.write(records[:2])
    await tier.write(records[1:])
    await tier.write(records[1:3])

    wanted = {"a": {"y": 2}, "n": [1], "b": "c"}
    warm_session = (await tier.sessions(["context"], context=True))["context"]
    same(warm_session.full_context, wanted, "full context")
    warm_session = (await tier.sessions(["context"]))["context"]
    same(warm_session.full_context, {}, "full context that was not asked for")
    await tier.write([records[1], story.update(tags=("u",))])
    warm_session = (await tier.sessions(["context"], context=True))["context"]
    same(
        warm_session.full_context,
        wanted,
        "full context after an old patch with a new state",
    )
    await tier.write([story.update(None)])
    warm_session = (await tier.sessions(["context"], context=True))["context"]
    same(warm_session.full_context, {}, "full context after null")


async def history_is_kept(tier: WarmTier) -> None:
    """
    `changes` and `snapshot` lead to every version there was.
    """
    story = SampleHistory("history", context_summary={"n": 0})
    records, states = [story.create()], [state_of(story.session)]
    for n in range(1, 2 * SNAPSHOT_EVERY + 20):
        records.append(story.update(context_summary={"n": n, str(n % 3): "x"}))
        states.append(state_of(story.session))
    await tier.write(records)
    await tier.write(records[5:40])

    for version in (1, 2, SNAPSHOT_EVERY - 1, SNAPSHOT_EVERY, 300, len(states)):
        again = await rebuilt(tier, story, version)
        same(state_of(again), states[version - 1], f"state at version {version}")
        same(again.version, version, "version")
    some = await tier.changes("history", BEGIN, 3, 6)
    same([change.version for change in some], [4, 5, 6], "changes")
    same((some[0].mad, some[0].kind), (MAD, "session.updated"), "who did what")
    snapshot = await tier.snapshot("history", BEGIN, len(states))
    kept = snapshot.version if snapshot is not None else 0
    same(len(states) - kept < SNAPSHOT_EVERY, True, "a snapshot near the end")


async def checkpoints_are_kept_in_order(tier: WarmTier) -> None:
    """
    Pages of them are newest first; each is kept once, whatever is repeated.
    """
    story = SampleHistory("checked")
    records = [story.create(), *(story.checkpoint(f"c{n}") for n in range(5))]
    await tier.write(records)
    await tier.write(records[2:4])

    first = await tier.checkpoints("checked", BEGIN, None, 2)
    same([c.name for c in first.checkpoints], ["c4", "c3"], "first page")
    second = await tier.checkpoints("checked", BEGIN, first.next, 2)
    same([c.name for c in second.checkpoints], ["c2", "c1"], "second page")
    last = await tier.checkpoints("checked", BEGIN, second.next, 2)
    same([c.name for c in last.checkpoints], ["c0"], "last page")
    same(last.next, None, "next of the last page")
    found = await tier.checkpoint("checked", BEGIN, first.checkpoints[0].id)
    wanted = (first.checkpoints[0], state_of(story.session))
    same(found, wanted, "a checkpoint with its state")
    same(await tier.checkpoint("checked", BEGIN, "no.0.1"), None, "an unknown one")
    await refuses(tier.checkpoints("checked", BEGIN, "x", 2), "before")


async def incremental_checkpoints_lead_to_their_states(tier: WarmTier) -> None:
    """
    Patches from parent to parent end at a full one, at most twenty links away.
    """
    story = SampleHistory("linked", context_summary={"n": 0, "same": "x" * 100})
    records, states = [story.create()], {}
    for n in range(30):
        record = story.checkpoint(str(n), "full" if n == 3 else "incremental")
        states[record.checkpoints[0].id] = state_of(story.session)
        records += [record, story.update(context_summary={"n": n, "same": "x" * 100})]
    await tier.write(records[:20])
    await tier.write(records[10:])

    for name, state in states.items():
        state_then, links = await checkpoint_state(tier, story, name)
        same(state_then, state, f"state of checkpoint {name}")
        same(links <= 20, True, f"{links} links to a full checkpoint")
    page = await tier.checkpoints("linked", BEGIN, None, 100)
    kinds = [c.kind for c in reversed(page.checkpoints)]
    same((kinds[0], kinds[3], kinds[4]), ("full", "full", "incremental"), "kinds")


CHECKS: tuple[Check, ...] = (
    the_full_context_is_patched_once,
    history_is_kept,
    checkpoints_are_kept_in_order,
    incremental_checkpoints_lead_to_their_states,
)
