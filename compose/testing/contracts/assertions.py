"""
Comparisons and error texts that the checks of warm tiers share.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from everbus.bus.errors import Invalid
from everbus.bus.messages import Session, SessionChange, TimelineEntry
from everbus.compose.testing.contracts.sample_histories import SampleHistory
from everbus.gateway.store.tiers import SNAPSHOT_EVERY, WarmSession
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import ListSessions
from everbus.handlers.history import first_of, replayed
from everbus.handlers.patches import merge

Check = Callable[[WarmTier], Awaitable[None]]


def same(found: object, wanted: object, what: str) -> None:
    """
    Complain unless *found* is *wanted*.

    Raises:
        AssertionError: naming *what* was looked at.
    """
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")


async def refuses(question: Awaitable[object], field: str) -> None:
    """
    Complain unless *question* is refused as Invalid, naming *field*.
    """
    try:
        answer = await question
    except Invalid as error:
        same(error.details.get("field"), field, "the field that is named")
        return
    raise AssertionError(f"{field}: found {answer!r}, wanted Invalid")


def a_rich_story(name: str) -> SampleHistory:
    """
    A session with values of every kind.
    """
    return SampleHistory(
        name,
        acl=("hopper", "bob"),
        participants={"hopper": {"role": "critic", "since": 1.5}},
        tags=("sea", "Moon-Phase"),
        fields={"model": "gpt", "limits": {"n": 2**53, "x": [1, 1.0, None]}},
        context_summary={"topic": "Tides", "deep": [{"ü": "ß"}], "empty": {}},
        work_in_progress={"step": 3, "secret": "undertow"},
    )


def entry_in(packed: bytes) -> TimelineEntry:
    """
    The timeline entry in *packed*.
    """
    return msgspec.msgpack.decode(packed, type=TimelineEntry)


async def seqs(tier: WarmTier, story: SampleHistory) -> list[int]:
    """
    The seqs of all entries that *tier* holds of that generation.
    """
    found = await tier.entries(story.session.id, story.generation, 1, 1000)

    return [entry_in(packed).seq for packed in found]


async def steps(tier: WarmTier, story: SampleHistory) -> list[SessionChange]:
    """
    All steps of the version that *tier* holds of that generation.
    """
    return list(await tier.changes(story.session.id, story.generation, 0, 1000))


async def is_empty(tier: WarmTier, story: SampleHistory) -> None:
    """
    Complain if *tier* holds anything of that generation beside a document.
    """
    name, generation = story.session.id, story.generation
    same(await seqs(tier, story), [], "entries")
    same(await steps(tier, story), [], "changes")
    same(await tier.events(name, generation, (0, 0), 1000), [], "events")
    same(await tier.snapshot(name, generation, 2 * SNAPSHOT_EVERY), None, "snapshot")
    page = await tier.checkpoints(name, generation, None, 10)
    same(page.checkpoints, (), "checkpoints")


async def rebuilt(tier: WarmTier, story: SampleHistory, version: int) -> Session:
    """
    The session as it was, from a snapshot and the steps behind it.
    """
    name, generation = story.session.id, story.generation
    base = await tier.snapshot(name, generation, version)
    reached = base.version if base else 0
    changes = list(await tier.changes(name, generation, reached, version))
    if base is None:
        base = first_of(name, generation, changes.pop(0))

    return replayed(base, changes)


async def checkpoint_state(
    tier: WarmTier, story: SampleHistory, checkpoint_id: str
) -> tuple[dict[str, Any], int]:
    """
    A checkpoint's state, and how many links lead to the full one it builds upon.
    """
    patches: list[dict[str, Any]] = []
    wanted = checkpoint_id
    while True:
        found = await tier.checkpoint(story.session.id, story.generation, wanted)
        if found is None:
            raise AssertionError(f"checkpoint {wanted}: found none")
        checkpoint, kept = found
        patches.append(kept)
        if checkpoint.kind == "full":
            break
        wanted = checkpoint.parent
    state: dict[str, Any] = {}
    for patch in reversed(patches):
        state = merge(state, patch)

    return state, len(patches) - 1


def whole(stub: WarmSession, session: Session, context: dict[str, Any]) -> WarmSession:
    """
    What *stub* becomes when its session returns.
    """
    return msgspec.structs.replace(
        stub,
        session=session,
        full_context=context,
        archival_status="ACTIVE",
        moves=stub.moves + 1,
        unpurged=False,
        unrestored=True,
    )


async def returned(
    tier: WarmTier, story: SampleHistory, context: dict[str, Any]
) -> None:
    """
    Bring the story's archived session back.
    """
    name = story.session.id
    stub = (await tier.sessions([name]))[name]
    done = await tier.swap(stub, whole(stub, story.session, context))
    same(done, True, "swap of a stub")
    story.moves += 1


async def all_found(tier: WarmTier, query: ListSessions) -> list[str]:
    """
    The ids on all pages of *query*.
    """
    found: list[str] = []
    while True:
        page = await tier.find(query, "")
        found += [session.id for session in page.sessions]
        same(len(page.sessions) <= query.limit, True, "at most limit")
        if page.next is None:
            return found
        query = msgspec.structs.replace(query, cursor=page.next)
