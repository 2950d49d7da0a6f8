"""
What the checks of warm tiers have in common: how they look, and how they complain.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from bus.errors import Invalid
from bus.messages import Session, SessionChange, TimelineEntry
from gateway.store.contracts.stories import Story
from gateway.store.tiers import SNAPSHOT_EVERY, Held, WarmTier
from handlers.commands import ListSessions
from handlers.history import first_of, replayed
from handlers.session import merge

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


def a_rich_story(name: str) -> Story:
    """
    A session with values of every kind.
    """
    return Story(
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


async def seqs(tier: WarmTier, story: Story) -> list[int]:
    """
    The seqs of all entries that *tier* holds of that life.
    """
    found = await tier.entries(story.session.id, story.life, 1, 1000)

    return [entry_in(packed).seq for packed in found]


async def steps(tier: WarmTier, story: Story) -> list[SessionChange]:
    """
    All steps of the version that *tier* holds of that life.
    """
    return list(await tier.changes(story.session.id, story.life, 0, 1000))


async def is_empty(tier: WarmTier, story: Story) -> None:
    """
    Complain if *tier* holds anything of that life beside a document.
    """
    name, life = story.session.id, story.life
    same(await seqs(tier, story), [], "entries")
    same(await steps(tier, story), [], "changes")
    same(await tier.events(name, life, (0, 0), 1000), [], "events")
    same(await tier.snapshot(name, life, 2 * SNAPSHOT_EVERY), None, "snapshot")
    page = await tier.checkpoints(name, life, None, 10)
    same(page.checkpoints, (), "checkpoints")


async def rebuilt(tier: WarmTier, story: Story, version: int) -> Session:
    """
    The session as it was, from a snapshot and the steps behind it.
    """
    name, life = story.session.id, story.life
    base = await tier.snapshot(name, life, version)
    reached = base.version if base else 0
    changes = list(await tier.changes(name, life, reached, version))
    if base is None:
        base = first_of(name, life, changes.pop(0))

    return replayed(base, changes)


async def checkpoint_state(
    tier: WarmTier, story: Story, checkpoint_id: str
) -> tuple[dict[str, Any], int]:
    """
    A checkpoint's state, and how many links lead to the full one it builds upon.
    """
    patches: list[dict[str, Any]] = []
    wanted = checkpoint_id
    while True:
        found = await tier.checkpoint(story.session.id, story.life, wanted)
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


def whole(stub: Held, session: Session, context: dict[str, Any]) -> Held:
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


async def returned(tier: WarmTier, story: Story, context: dict[str, Any]) -> None:
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
